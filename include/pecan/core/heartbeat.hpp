#pragma once
/// A small mapped file in which each rank of a run says where it is, for who supervises the run
/// (docs/formats/heartbeat.md).

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/error.hpp>
#include <pecan/core/ids.hpp>

namespace pecan {

/// What a rank is about; on-disk: never renumber.
enum class RunPhase : std::uint32_t {
  kStarting = 0,    ///< plans and builds
  kRecovering = 1,  ///< reads what an earlier start has left
  kTraining = 2,
  kDraining = 3,  ///< has trained its last step, and finishes its saves
  kDone = 4
};
[[nodiscard]] std::string_view name_of(RunPhase phase);

/// What one heartbeat file says.
struct HeartbeatRecord {
  Rank rank;
  int world = 0;
  std::int64_t pid = 0;         ///< in the pid namespace of its host
  std::string host;             ///< as the host calls itself
  Incarnation incarnation{-1};  ///< -1 before the rank knows
  RunPhase phase = RunPhase::kStarting;
  std::uint64_t sequence = 0;  ///< collectives and messages begun
  std::string operation;       ///< of the newest one: "all_to_all_v"; empty before the first
  std::string purpose;         ///< "dispatch"
  LayerId layer = kNoLayer;
  Step step;                   ///< under way; 0 before the first
  std::int64_t changed_s = 0;  ///< seconds since 1970 by the rank's clock, at its last change
  bool operator==(const HeartbeatRecord&) const = default;
};

namespace detail {
struct HeartbeatBytes;
}

/// This rank's file, `<run directory>/heartbeat/rank-00003`. Updates are stores into mapped memory,
/// without allocation or communication; once in a second one of them asks the system to write the
/// page back. Nothing here fails a run: without its file a heartbeat beats unseen. One thread uses
/// it.
class Heartbeat {
 public:
  /// Touches no file yet.
  Heartbeat(std::string run_directory, Rank rank, int world);
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  /// Begins to write the file if it can be had: what another process holds stays as it is, since
  /// that process may be of a run that goes on.
  void start();
  /// The run belongs to this start, whose number is `incarnation`: takes the file, whoever has it,
  /// and on rank 0 removes those of ranks beyond the world. A failure says why nobody can see this
  /// heartbeat.
  Status claim(Incarnation incarnation);

  void enter(RunPhase phase);
  /// This rank begins its collective number `sequence`.
  void enter(std::uint64_t sequence,
             std::string_view operation,
             std::string_view purpose,
             LayerId layer,
             Step step);

 private:
  enum class Taking : std::uint8_t { kIfFree, kAlways };
  [[nodiscard]] Status open_file(Taking taking);
  void changed();

  std::string directory_;
  int world_;
  int rank_;
  std::unique_ptr<detail::HeartbeatBytes> own_;
  detail::HeartbeatBytes* bytes_;  ///< mapped, or own_
  int fd_ = -1;
};

[[nodiscard]] std::string heartbeat_directory(const std::string& run_directory);
/// The bytes of a file; kCorrupt for what is none, kInvalid for a newer version.
[[nodiscard]] Result<HeartbeatRecord> parse_heartbeat(std::string_view bytes);
/// All that can be read in the run's heartbeat directory, by rank; what is missing, short or not a
/// heartbeat is left out. A record may mix two neighbouring updates.
[[nodiscard]] std::vector<HeartbeatRecord> read_heartbeats(const std::string& run_directory);
/// Removes all heartbeats of a run of which no process is left.
void clear_heartbeats(const std::string& run_directory);

}  // namespace pecan
