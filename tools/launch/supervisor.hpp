#pragma once
/// Starts a run, watches it, and starts it again until it is done.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <pecan/core/heartbeat.hpp>

#include <pecan/config/config.hpp>

#include "launch/blame.hpp"
#include "launch/command.hpp"
#include "launch/hosts.hpp"
#include "launch/policy.hpp"
#include "launch/process.hpp"
#include "launch/run_files.hpp"

namespace pecan::launch {

/// What the job prints, and what is said about it: to this process's output and the log file.
class Output {
 public:
  /// No log where `log_path` is empty. ConfigError if it cannot be written.
  explicit Output(const std::string& log_path);
  ~Output();
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;
  /// To descriptor 1 or 2. What takes nothing any more is not tried again.
  void pass(int descriptor, std::string_view text);
  void say(std::string_view text);

 private:
  Fd log_;
  bool open_[2] = {true, true};
};

struct SupervisorOptions {
  JobCommand job;
  std::vector<Host> hosts;
  std::string log_path;
};

/// From now on the signals that a Supervisor takes wait for it, instead of ending the process.
void hold_signals();

/// One supervised run. One thread; signals are taken from a descriptor and by nobody else.
class Supervisor {
 public:
  Supervisor(const config::Config& config, SupervisorOptions options);
  /// Returns pecan-launch's exit code. Throws ConfigError and CheckpointError for what stands in
  /// the way of the first start.
  int run();

 private:
  using Clock = std::chrono::steady_clock;
  enum class Stop : std::uint8_t { kNone, kAsked, kForced };
  struct End {
    int exit_code = 0;
    Ending ending = Ending::kOther;
    Culprits culprits;
    std::vector<HeartbeatRecord> beats;  ///< the last that were seen
    StartMetrics metrics;
    Clock::time_point last_progress;
    double detection_s = 0;  ///< from there until the failure was known
  };
  /// A failure that no start has made up for yet.
  struct OpenFailure {
    Clock::time_point last_progress;
    std::int64_t last_step = 0;
  };

  void prepare();
  /// Each task on its host, all at once, for elastic.probe_timeout_s at most.
  [[nodiscard]] std::vector<HostAnswer> on_hosts(std::span<const HostTask> tasks) const;
  void ask_hosts();
  /// A pattern of the run's snapshots in a host's memory; empty if the run has none yet, or a shell
  /// would read the directory's name as more than a name.
  [[nodiscard]] std::string snapshots_of_run() const;
  /// On all hosts, at the end of the run.
  void remove_snapshots();
  [[nodiscard]] std::vector<Host> reachable() const;
  [[nodiscard]] bool is_here(const std::string& host) const;
  void end_leftovers();
  [[nodiscard]] End run_job(const Assignment& assignment);
  void watch(Child& mpirun, const Assignment& assignment, End& end);
  void look_at(const Assignment& assignment, End& end);
  void judge_standstill(const Assignment& assignment, End& end);
  /// Hosts of the assignment that do not answer now.
  [[nodiscard]] std::vector<std::string> silent_hosts(const Assignment& assignment) const;
  [[nodiscard]] std::vector<std::string> culprit_hosts(const Assignment& assignment,
                                                       const End& end) const;
  /// False, and told, where another start would repeat one that diverged.
  [[nodiscard]] bool may_restart_after_divergence(const End& end);
  void tell_failure(const Assignment& assignment, const End& end);
  void tell_resumed(const End& end);
  /// False when asked to stop.
  bool pause(double seconds);
  void take_signals();
  void event(std::string_view name, nlohmann::ordered_json fields);

  const config::Config& config_;
  SupervisorOptions options_;
  Output output_;
  std::vector<std::string> agent_;
  std::string own_name_;
  std::string marker_;
  Fd signals_;
  Stop stop_ = Stop::kNone;
  std::optional<LaunchLock> lock_;
  std::optional<EventLog> events_;
  HostRecord host_record_;
  DivergencePolicy divergence_policy_;
  std::map<std::string, std::string> unreachable_;  ///< with what was said
  SnapshotHolders held_;  ///< by host that answers and holds snapshots of the run
  std::map<std::string, std::set<std::int64_t>> leftovers_;  ///< pids by host, not known to be gone
  int num_starts_ = 0;
  std::uint64_t metrics_offset_ = 0;
  std::optional<OpenFailure> open_failure_;
  OutputScan scan_{""};
};

}  // namespace pecan::launch
