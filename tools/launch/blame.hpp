#pragma once
/// Who made a start fail: read from what mpirun and the ranks print, and from heartbeats.

#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pecan/core/heartbeat.hpp>

#include "launch/hosts.hpp"
#include "launch/policy.hpp"

namespace pecan::launch {

/// Ranks and hosts to blame, and why; none where nothing is known.
struct Culprits {
  std::vector<int> ranks;
  std::vector<std::string> hosts;
  std::string reason;
  bool operator==(const Culprits&) const = default;
};

/// Reads the output of a start line by line.
class OutputScan {
 public:
  /// `own_host`: where mpirun runs, as it calls itself.
  explicit OutputScan(std::string own_host) : own_host_(std::move(own_host)) {}
  /// Lines of Open MPI 4 and of pecan-train that tell who failed; all others are of no interest.
  void read(std::string_view line);
  /// In the order of certainty: a host that mpirun lost, the rank that it saw die of a signal,
  /// ranks that others waited for in vain, the rank that ended the job or first returned a code.
  [[nodiscard]] Culprits culprits() const;
  /// mpirun has lost a daemon, or the agent that started one: its exit code is then none of
  /// pecan-train's, whatever it is.
  [[nodiscard]] bool lost_a_daemon() const { return lost_a_daemon_ || !lost_nodes_.empty(); }

 private:
  std::vector<int> signalled_, returned_, aborted_;
  std::vector<std::string> lost_nodes_, cut_off_nodes_;
  std::string own_host_;
  bool in_connection_report_ = false;
  bool lost_a_daemon_ = false;
  std::set<int> missing_, waiting_;
};

/// Ranks without a heartbeat where others have one, else those of the smallest sequence; none where
/// all are equal.
[[nodiscard]] std::vector<int> laggards(std::span<const HeartbeatRecord> beats, int world);
/// Where a rank is: "all_to_all_v #812 (dispatch, layer 3, step 12)", or its phase before the
/// first.
[[nodiscard]] std::string describe_place(const HeartbeatRecord& beat);
/// "rank 1 behind: ...; ranks 0, 2 ...": one line for people.
[[nodiscard]] std::string describe_standstill(std::span<const HeartbeatRecord> beats, int world);

/// What /proc says of processes, for one host: "PID (name) STATE ..." and "PID gone" lines. By pid,
/// the letter of the state or '-' of one that is gone.
[[nodiscard]] std::map<std::int64_t, char> parse_process_states(std::string_view text);
/// The shell command that prints them.
[[nodiscard]] std::string process_states_command(std::span<const std::int64_t> pids);
/// The shell command that kills those of `pids` in whose environment `marker` stands, and prints
/// them. Without quotes, and evaluated once, as an agent hands it on.
[[nodiscard]] std::string kill_command(std::span<const std::int64_t> pids, std::string_view marker);

/// Whether two names are one host's: equal, or one the other's short form.
[[nodiscard]] bool is_same_host(std::string_view a, std::string_view b);
/// The host of a rank: the one of the assignment that calls itself as the heartbeat says, else the
/// one that the rank's number falls on.
[[nodiscard]] std::string host_of(const Assignment& assignment,
                                  std::span<const HeartbeatRecord> beats,
                                  int rank);

/// Who holds up a job that stands still: hosts that do not answer, else stopped or dead processes
/// (`states` by rank), else those behind.
[[nodiscard]] Culprits standstill_culprits(std::span<const HeartbeatRecord> beats,
                                           int world,
                                           const std::map<int, char>& states,
                                           std::span<const std::string> silent_hosts);

}  // namespace pecan::launch
