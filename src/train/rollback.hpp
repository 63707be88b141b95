#pragma once
/// When skipped steps lead back to an earlier checkpoint, and to which.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include <pecan/core/file_system.hpp>

#include <pecan/config/config.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/checkpoint/checkpointer.hpp>

#include <pecan/train/metrics.hpp>

#include "train/skipped_data.hpp"

namespace pecan::train {

/// Watches one incarnation. What it is told is equal on all ranks, and so is what it decides.
class RollbackKeeper {
 public:
  /// `skipped` outlives the object, and the state that a rollback returns to.
  RollbackKeeper(FileSystem& fs,
                 std::string run_directory,
                 const config::TrainingConfig& config,
                 SkippedData& skipped);
  /// Training goes on after `step`; `recovered`: that state is in a checkpoint. Reads what is
  /// passed over; returns what to say about it. CheckpointError: the file cannot be used.
  /// Collective over `world`.
  [[nodiscard]] std::string begin(Context& ctx,
                                  comm::Group& world,
                                  const checkpoint::RunIdentity& identity,
                                  Step step,
                                  std::int64_t consumed_samples,
                                  bool recovered);
  /// `step` was skipped or not.
  void judged(Step step, bool skipped);
  /// `step` is over.
  void stepped(Step step, std::int64_t consumed_samples);
  void saved(const checkpoint::SaveRecord& save);
  /// Skipped steps in a row up to now.
  [[nodiscard]] int skips_in_row() const { return streak_.length; }
  [[nodiscard]] bool due() const;
  /// States behind skipped steps are not saved where a rollback may follow: they would push out the
  /// one that it returns to.
  [[nodiscard]] bool holds_saves() const;
  /// Makes durable that the samples since the newest state before the skipped steps are passed
  /// over; then, before others go on, rank 0 calls `written`. CheckpointError if that cannot be
  /// written. Collective over `world`; no save is under way.
  [[nodiscard]] RollbackRecord roll_back(
      Context& ctx,
      comm::Group& world,
      const std::function<void(const RollbackRecord&)>& written = {});
  /// DivergenceError if there is no state to return to, or rollbacks have not helped often enough.
  void check(const RollbackRecord& record) const;

 private:
  [[nodiscard]] std::string path() const { return skipped_data_path(run_directory_); }

  FileSystem& fs_;
  std::string run_directory_;
  int after_skips_;
  int max_rollbacks_;
  SkippedData& skipped_;
  std::string run_id_;
  Incarnation incarnation_;
  SkipStreak streak_;
  Step now_;
  std::optional<Step> good_;                          ///< newest state in a checkpoint
  std::map<std::int64_t, std::int64_t> consumed_at_;  ///< by step, since then
};

/// "rollback 1 of 3: ...".
[[nodiscard]] std::string describe(const RollbackRecord& record);

}  // namespace pecan::train
