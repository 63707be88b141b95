#pragma once
/// What follows from how a start ended: whether there is another one, when, and on which hosts.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/heartbeat.hpp>

#include <pecan/config/config.hpp>

#include "launch/hosts.hpp"
#include "launch/run_files.hpp"

namespace pecan::launch {

/// How a start ended; its name stands in the event log.
enum class Ending : std::uint8_t {
  kDone,
  kStopped,     ///< on request, resumable
  kRefused,     ///< usage, configuration or data: another start would end the same way
  kCheckpoint,  ///< checkpoint or recovery
  kPeerLost,    ///< a rank that waited in vain ended the job
  kDiverged,
  kInternal,
  kSignal,    ///< a rank, or mpirun, died of a signal
  kHostLost,  ///< mpirun lost its daemon on a host
  kHung,      ///< no rank made progress, and the supervisor ended the job
  kOther
};
[[nodiscard]] std::string_view name_of(Ending ending);
/// Of an exit code of mpirun, a signal being 128 + its number. Pure; never kHung.
[[nodiscard]] Ending classify(int exit_code);
/// Whether the heartbeats of a whole world contradict that it was done or has stopped, as mpirun's
/// exit code says: agents and daemons have codes too. Pure.
[[nodiscard]] bool contradicts(Ending ending, std::span<const HeartbeatRecord> beats, int world);
/// Whether another start may end otherwise.
[[nodiscard]] bool calls_for_restart(Ending ending);

enum class Progress : std::uint8_t { kNone, kMade };

/// Counts restarts in a row that save no new step, in storage or in memory.
class RestartPolicy {
 public:
  struct Decision {
    Progress progress = Progress::kNone;  ///< of the start that ended, or since the last decision
    bool restart = false;                 ///< false: give up
    int in_row = 0;                       ///< number of the restart since the last progress
    double backoff_s = 0;                 ///< to wait before it
    bool operator==(const Decision&) const = default;
  };
  /// `saved_step`: the newest of the run before the first start; below 0 without one.
  RestartPolicy(const config::ElasticConfig& config, std::int64_t saved_step)
      : config_(config), newest_step_(saved_step) {}
  /// After a start that failed, or that found no hosts. The first restart after progress is
  /// immediate; the second waits restart_backoff_s, each further one twice as long.
  [[nodiscard]] Decision after_failure(std::int64_t saved_step);

 private:
  config::ElasticConfig config_;
  std::int64_t newest_step_;
  int in_row_ = 0;
};

/// Sees to it that no start is a second repetition of one that diverged.
class DivergencePolicy {
 public:
  enum class Verdict : std::uint8_t {
    kRestart,
    kRepeatable,  ///< give up: another start would diverge too
    kNotPassed    ///< give up: the start after the former divergence did not get past that
  };
  [[nodiscard]] Verdict after(const Divergence& divergence);

 private:
  std::optional<std::int64_t> former_;  ///< step of the last one
};

/// Remembers on which hosts starts failed.
class HostRecord {
 public:
  /// A start failed because of `culprits`. A host to blame twice in a row, without progress of the
  /// run between the two, is set aside. Returns those that are now.
  std::vector<std::string> after_failure(std::span<const std::string> culprits, Progress progress);
  [[nodiscard]] bool is_set_aside(const std::string& host) const;

  /// Takes hosts back that were set aside, so that a start does not go on from an older step than
  /// memory holds: those that alone of `held`, the hosts that answer, hold snapshots of some rank,
  /// while those of all other ranks are there too. Each once until the run makes progress, and not
  /// if it has made progress without the host. Returns them.
  std::vector<std::string> take_back(const SnapshotHolders& held);

  /// An assignment of hosts that are not set aside, or of all where these hold no layout.
  [[nodiscard]] std::optional<Assignment> assign(const config::Config& config,
                                                 std::span<const Host> reachable,
                                                 const SnapshotHolders& held = {}) const;

 private:
  std::map<std::string, int> blamed_in_row_;
  std::vector<std::string> set_aside_;
  std::set<std::string> not_again_;  ///< not taken back while they are set aside
};

}  // namespace pecan::launch
