#pragma once
/// A whole training run on one rank: plan, build, recover, loop, drain.

#include <iosfwd>
#include <optional>
#include <string>

#include <pecan/core/file_system.hpp>
#include <pecan/core/heartbeat.hpp>

#include <pecan/config/config.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/checkpoint/recovery.hpp>

namespace pecan::train {

/// Steps whose times are written to the run directory (docs/formats/profile.md).
struct ProfileOptions {
  /// By number, as the metrics have it. None: ten steps, after the first two of this start.
  std::optional<Step> first_step = {};
  std::optional<Step> last_step = {};
};

struct RunOptions {
  std::string run_directory;
  checkpoint::ResumeMode resume = checkpoint::ResumeMode::kFreshOnly;
  std::string resume_path;
  bool allow_reinit_expert = false;  ///< experts of which no copy is left begin anew
  std::string node = {};             ///< of this rank; empty: named after the host
  bool terminal = false;             ///< progress on one line that is rewritten
  std::ostream* out = nullptr;       ///< where rank 0 reports to people
  Heartbeat* heartbeat = nullptr;    ///< this rank's, which the world's observer beats; may be none
  comm::GroupOptions device_groups = {};  ///< of groups between devices, like the world's
  std::optional<ProfileOptions> profile = {};
};

/// Trains until train_iters, a stop on request, or an error. Collective over `world`; MPI or
/// Thread. Returns kDone or kStoppedOnRequest; everything else is an exception whose exit_code()
/// the program returns.
[[nodiscard]] ExitCode run(const config::Config& config,
                           const RunOptions& options,
                           FileSystem& fs,
                           comm::Group& world);

/// Sets the flag with which every rank of this process's run stops together at the next step
/// boundary (SIGUSR1). Async-signal-safe.
void request_stop() noexcept;

}  // namespace pecan::train
