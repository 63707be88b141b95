#pragma once
/// A training job without a model: small catalogs whose items say which version they are of.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>
#include <pecan/core/state_catalog.hpp>

#include <pecan/config/config.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/checkpoint/checkpointer.hpp>
#include <pecan/checkpoint/recovery.hpp>

namespace pecan::test {

struct CatalogShape {
  int layers = 2;
  int experts = 4;
  int ep = 1;
  int edp = 1;
};

/// Experts of weight, moments (with an i64 counter mutated in forward); non-expert weight
/// (replicated), moments (split by rows over all ranks) and a job counter. Rank r has
/// expert-parallel coordinate r % ep.
[[nodiscard]] StateCatalog make_catalog(const CatalogShape& shape);

/// Bytes of a whole item as of a version.
[[nodiscard]] std::vector<std::byte> content_of(const StateCatalog& catalog,
                                                ItemIndex item,
                                                checkpoint::Version version);

/// This rank's copies of all items; only held blocks may be touched.
class FakeBinding final : public StateBinding {
 public:
  FakeBinding(const StateCatalog& catalog, Rank rank);
  void copy_out(ItemIndex item,
                const Block& block,
                std::span<std::byte> destination) const override;
  void copy_in(ItemIndex item, const Block& block, std::span<const std::byte> source) override;
  /// Items mutated in `phase` become those of `version`.
  void set(checkpoint::Version version, MutatedIn phase);
  /// Makes the next copy_out of an item mutated in `phase` throw. Between saves.
  void fail_next_copy(MutatedIn phase) { fails_in_ = phase; }
  /// First held block whose bytes are not those of the version that the plan names; empty if none.
  [[nodiscard]] std::string difference(const checkpoint::RestorePlan& plan) const;

 private:
  [[nodiscard]] bool holds(ItemIndex item, const Block& block) const;
  const StateCatalog& catalog_;
  Rank rank_;
  std::vector<std::vector<std::byte>> values_;
  mutable std::optional<MutatedIn> fails_in_;
};

/// Options of a Job, with a lock that neither waits nor beats.
struct JobOptions {
  config::CheckpointConfig checkpoint;
  checkpoint::ResumeMode mode = checkpoint::ResumeMode::kFromFailure;
  std::string path;
  checkpoint::LockOptions lock{std::chrono::hours(1), std::chrono::milliseconds(0)};
  std::vector<std::int64_t> slots_a_step = {};  ///< token slots by (layer, expert); empty: none
  std::function<double()> seconds = {};         ///< the checkpointer's clock; empty: the real one
  std::vector<std::string> nodes = {};          ///< of each rank; empty: all on one
  std::function<std::string(Step)> extra = {};  ///< the trainer's object; empty: {}
  bool too_little_memory = false;               ///< reserves less than the plan says
};

/// K experts a checkpoint, saved every step, training waits for the files.
[[nodiscard]] JobOptions job_options(int experts_per_checkpoint, int fallback_copies = 1);

/// The same with snapshots in `memory_dir` each step, and a checkpoint in storage every
/// `save_interval` steps; training waits for neither.
[[nodiscard]] JobOptions two_level_options(const std::string& memory_dir,
                                           int in_storage,
                                           int in_memory,
                                           int save_interval,
                                           int fallback_copies);

/// One rank of a run, from recovery to the end.
class Job {
 public:
  Job(FileSystem& fs, const StateCatalog& catalog, const JobOptions& options, comm::Group& world);
  /// `steps` steps, with the saves that are due; each save is drained before the next step.
  void train(int steps);
  /// A step without draining.
  void step();
  /// Votes until no rank is busy.
  void drain();
  void exchange_votes();

  [[nodiscard]] const checkpoint::Recovered& recovered() const { return recovered_; }
  [[nodiscard]] checkpoint::Checkpointer& checkpointer() { return *checkpointer_; }
  [[nodiscard]] FakeBinding& binding() { return binding_; }
  [[nodiscard]] checkpoint::StepFacts facts() const {
    return {step_, step_.value * 8, extra_ ? extra_(step_) : "{}", routed()};
  }
  /// Every save that ended, in order.
  [[nodiscard]] const std::vector<checkpoint::SaveRecord>& records() const { return records_; }
  [[nodiscard]] Step newest_committed() const;
  /// What differs from the restore plan, empty if nothing.
  [[nodiscard]] std::string difference() const {
    return binding_.difference(recovered_.report.plan);
  }

 private:
  /// Token slots so far, as if every step had been equal.
  [[nodiscard]] std::vector<std::int64_t> routed() const;
  device::Stream stream_;
  device::Arena arena_;
  Context ctx_;
  comm::Group& world_;
  FakeBinding binding_;
  std::vector<std::int64_t> slots_a_step_;
  std::function<std::string(Step)> extra_;
  checkpoint::Recovered recovered_;
  std::unique_ptr<checkpoint::Checkpointer> checkpointer_;
  std::vector<checkpoint::SaveRecord> records_;
  Step step_{0};
};

/// Copies all files below a directory to another file system, durably.
void copy_below(FileSystem& from, FileSystem& to, const std::string& directory);
/// Names of the files below a directory, relative to it, sorted.
[[nodiscard]] std::vector<std::string> files_below(FileSystem& fs, const std::string& directory);

}  // namespace pecan::test
