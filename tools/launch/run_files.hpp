#pragma once
/// What the supervisor reads and writes in a run directory.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <pecan/core/error.hpp>

namespace pecan::launch {

/// The step of the newest committed checkpoint; -1 without one.
[[nodiscard]] std::int64_t newest_checkpointed_step(const std::string& run_directory);

/// The number that the next start of the run is going to have, by its lock; 0 without one.
[[nodiscard]] int expected_incarnation(const std::string& run_directory);

/// The run's id, by its lock; empty without one.
[[nodiscard]] std::string run_id_of(const std::string& run_directory);

/// Bytes of metrics.jsonl; 0 without one.
[[nodiscard]] std::uint64_t metrics_size(const std::string& run_directory);
/// A step that was not to be believed, and ended a start.
struct Divergence {
  std::int64_t step = 0;
  bool repeatable = false;  ///< another start from the same state would end alike
  bool operator==(const Divergence&) const = default;
};
/// What metrics.jsonl says about one start.
struct StartMetrics {
  std::optional<std::int64_t> resumed_step;  ///< of its recovery record; none: a fresh start
  std::optional<std::int64_t> last_step;     ///< of its newest step record
  std::optional<std::int64_t> kept_step;     ///< the newest whose snapshot in memory was whole
  std::optional<Divergence> divergence;
  bool operator==(const StartMetrics&) const = default;
};
/// Of the lines that a start has appended; cut or foreign lines are left out. Pure.
[[nodiscard]] StartMetrics parse_start_metrics(std::string_view appended);
/// The same of the file from `offset` on, reading at most the first and the last 64 MiB of it.
[[nodiscard]] StartMetrics read_start_metrics(const std::string& run_directory,
                                              std::uint64_t offset);

/// events.jsonl: one JSON record a line, appended whole (docs/formats/events.md).
class EventLog {
 public:
  /// CheckpointError if the file cannot be written.
  explicit EventLog(const std::string& run_directory);
  ~EventLog();
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;
  /// Appends `fields` behind the time and `event`. False if the file does not take it.
  bool write(std::string_view event, const nlohmann::ordered_json& fields);

 private:
  int fd_ = -1;
};
/// "2026-01-31T23:59:59.123Z" of milliseconds since 1970. Pure.
[[nodiscard]] std::string time_text(std::int64_t ms_since_1970);

/// The right to supervise a run, held until the process ends.
class LaunchLock {
 public:
  /// Who held the run before, as far as it is still of interest.
  struct Former {
    std::string host;
    std::int64_t mpirun_pid = 0;  ///< 0: its job had ended
  };
  /// CheckpointError while another process holds it, or if the file cannot be written.
  explicit LaunchLock(const std::string& run_directory);
  ~LaunchLock();
  LaunchLock(const LaunchLock&) = delete;
  LaunchLock& operator=(const LaunchLock&) = delete;
  [[nodiscard]] const Former& former() const { return former_; }
  /// Notes the job under way, for a successor; 0: none.
  void note_mpirun(std::int64_t pid);

 private:
  std::string path_;
  int fd_ = -1;
  Former former_;
};

/// What stands in the environment of every process of a run's starts, "PECAN_SUPERVISED=<hash>".
[[nodiscard]] std::string supervision_marker(const std::string& run_directory);

}  // namespace pecan::launch
