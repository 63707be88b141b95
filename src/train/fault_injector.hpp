#pragma once
/// Failures on purpose as they strike one rank (docs/how-to/inject-faults.md).

#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/file_system.hpp>

#include <pecan/config/fault.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/parallel/params.hpp>
#include <pecan/parallel/stage_listener.hpp>

#include <pecan/checkpoint/checkpointer.hpp>

#include "train/faulty_disk.hpp"

namespace pecan::train {

/// A fault of one start, random choices made.
struct ResolvedFault {
  config::Fault fault;
  std::int64_t step = 1;
  int rank = 0;  ///< or Fault::kEveryRank; meaningless with a node
  [[nodiscard]] bool strikes(Rank this_rank, std::string_view host) const;
  /// "kill at step 4, in phase vote, on rank 1".
  [[nodiscard]] std::string text() const;
};

/// Those of `faults` that the start strikes with. Random steps and ranks follow from a fault's
/// seed, its place in the list and the start alone. Pure.
[[nodiscard]] std::vector<ResolvedFault> resolve_faults(std::span<const config::Fault> faults,
                                                        Incarnation start,
                                                        int world_size);

/// Throws ConfigError for a fault that could never strike under this configuration. Pure.
void check_faults(std::span<const config::Fault> faults, const config::Config& config);

/// What strikes this rank and when. One object for a run, over all its incarnations. Main thread,
/// unless said.
class FaultInjector final : public parallel::StageListener {
 public:
  /// Takes the faults of the configuration and of PECAN_FAULT as rank 0 has it. ConfigError: one
  /// that cannot be parsed or could never strike. `fs` outlives the object. Collective over
  /// `world`.
  FaultInjector(Context& ctx, comm::Group& world, const config::Config& config, FileSystem& fs);

  /// What checkpoints are written through.
  [[nodiscard]] FileSystem& disk() { return disk_; }
  /// Another incarnation begins: resolves its faults and warns of each (rank 0), and of those that
  /// name no rank of this start. Collective where there are faults.
  void begin_start(Context& ctx, comm::Group& world, Incarnation start);
  /// A step begins: kill, stop and exit strike; disks become full or slow.
  void begin_step(Step step);
  /// kill, stop and exit in a phase of a save. Any thread.
  void in_phase(checkpoint::SavePhase phase, Step step);
  /// The step's forward and backward begin, for the first time or once more; `params` outlives
  /// them.
  void begin_pass(parallel::ParamSet& params);
  /// A gradient of the stage becomes NaN before it is summed over ranks, if one is to.
  void after_backward(Context& ctx, int stage) override;
  /// What this rank multiplies its part of the step's loss by.
  [[nodiscard]] double loss_factor();
  [[nodiscard]] bool flips() { return due(config::FaultKind::kFlip) != nullptr; }
  /// Flips a bit of a weight after the step's update: of one that is in `replicated` (names), if
  /// this rank has any.
  void flip_weight(Context& ctx,
                   std::span<parallel::Param> params,
                   std::span<const std::string> replicated);
  /// A save to storage has ended: a bit of a shard of this rank flips, if one is to.
  void saved(const std::string& run_directory, const checkpoint::SaveRecord& record);

 private:
  struct Pending {
    ResolvedFault resolved;
    bool struck = false;
  };
  /// The fault of this kind that the present step strikes this rank with.
  [[nodiscard]] Pending* due(config::FaultKind kind);
  void say(const ResolvedFault& resolved, const std::string& what) const;
  void end_process(Pending& pending, const std::string& when);

  std::vector<config::Fault> faults_;
  Rank rank_;
  std::string host_;
  FileSystem& fs_;
  FaultyDisk disk_;
  std::mutex mutex_;              ///< of `struck` of those that end the process
  std::vector<Pending> pending_;  ///< of this rank and start
  Step step_;
  const parallel::Param* poisoned_ = nullptr;  ///< its gradient becomes NaN in this pass
};

}  // namespace pecan::train
