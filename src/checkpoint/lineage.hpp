#pragma once
/// Who owns a run directory: the lock, its heartbeat, and the chain of incarnations.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <pecan/core/file_system.hpp>

#include <pecan/checkpoint/recovery.hpp>

namespace pecan::checkpoint {

/// Content of run/lock.json.
struct LockState {
  std::string run_id;
  Incarnation incarnation;
  std::string owner;           ///< random; tells two takers of one incarnation apart
  std::int64_t heartbeat = 0;  ///< grows while the holder lives
  bool clean = false;          ///< released at a regular end
};

[[nodiscard]] std::string to_json(const LockState& state);
/// nullopt if damaged; the text carries its own checksum.
[[nodiscard]] std::optional<LockState> parse_lock(const std::string& text);

/// The lock as the last holder left it.
struct FormerHolder {
  bool exists = false;
  std::optional<LockState> state;  ///< none: there is no lock, or it is damaged
};

/// Holds the run's lock: writes a heartbeat each period until destroyed, then releases it. Rank 0.
class RunLock {
 public:
  /// Waits until the holder is known to be gone: at once if the lock is free or released, else
  /// after `takeover` without a change. CheckpointError if it lives or the lock cannot be read.
  static FormerHolder await_holder(FileSystem& fs,
                                   const std::string& run_directory,
                                   const LockOptions& options);
  /// Takes the lock over. CheckpointError if it cannot be written or another process was faster.
  RunLock(FileSystem& fs,
          const std::string& run_directory,
          const std::string& run_id,
          Incarnation incarnation,
          const LockOptions& options);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  /// Reads the lock: failure if a newer incarnation has taken it, which `fenced` then reports too.
  Status check();
  /// Whether this holder was seen to have lost the lock. Any thread.
  [[nodiscard]] bool fenced() const { return fenced_; }

 private:
  void beat(const std::stop_token& stop);
  Status write();

  FileSystem& fs_;
  std::string path_;
  std::chrono::milliseconds period_;
  std::mutex mutex_;  ///< of state_ and of the file's read-modify-write
  std::condition_variable_any wake_;
  LockState state_;
  std::atomic<bool> fenced_ = false;
  std::jthread thread_;  ///< last: it uses all the others
};

/// 16 random hexadecimal digits.
[[nodiscard]] std::string random_hex();

/// Whether the version lies on the chain that ends in the last entry: of each earlier incarnation
/// only what came up to the version from which the next one continued.
[[nodiscard]] bool in_lineage(Version version, const std::vector<LineageEntry>& lineage);

}  // namespace pecan::checkpoint
