#pragma once
/// The profile of a run: which steps are recorded, against which limits, and what becomes of it.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <pecan/core/profile.hpp>

#include <pecan/device/limits.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/train/run.hpp>

namespace pecan::train {

/// "<run directory>/profile/rank-00003.trace.json"
[[nodiscard]] std::string trace_path(const std::string& run_directory, Rank rank);

/// What one rank has recorded, as a table of operators, collectives and phases; without limits
/// nothing is compared with them. Pure.
[[nodiscard]] std::string describe(const std::vector<ProfileRow>& main_rows,
                                   const std::vector<ProfileRow>& save_rows,
                                   const std::optional<device::MachineLimits>& limits,
                                   int threads);

/// Recording begins before a step and ends before another, when the thread is inside of no span.
/// Where a device computes, each span waits for it at both ends.
class ProfileSession {
 public:
  /// Measures the limits on all ranks at once, as they compute, if they do so on the CPU.
  /// Collective.
  ProfileSession(Context& ctx,
                 comm::Group& world,
                 const ProfileOptions& options,
                 std::string run_directory,
                 device::DeviceKind computes_on,
                 int threads);

  [[nodiscard]] Profiler& profiler() { return profiler_; }
  /// Before step `next` of a start that goes on to `last`: begins to record, or ends. Returns the
  /// table once, when recording has ended on rank 0.
  std::string before_step(Context& ctx, FileSystem& fs, Step next, Step last);
  /// No step follows. Returns as before_step.
  std::string finish(Context& ctx, FileSystem& fs);

 private:
  enum class State : std::uint8_t { kBefore, kRecording, kOver };

  ProfileOptions options_;
  std::string run_directory_;
  int threads_;
  Rank rank_;
  int world_;
  std::int64_t origin_ns_ = 0;
  std::optional<device::MachineLimits> limits_;
  Profiler profiler_;
  State state_ = State::kBefore;
  std::optional<Step> first_, last_;  ///< to be recorded
  Step recorded_first_, recorded_last_;
};

}  // namespace pecan::train
