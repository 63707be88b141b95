#pragma once
/// Which files of earlier checkpoints live on, and the sweep of the rest.

#include <cstdint>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>

#include <pecan/checkpoint/inspect.hpp>

#include "checkpoint/scan.hpp"

namespace pecan::checkpoint {

struct RetentionPolicy {
  int keep_latest_k = 1;
  std::int64_t save_retain_interval = 0;  ///< steps; 0: none is kept for ever
  int fallback_copies = 1;
};

/// By checkpoint: whether recovery may continue from it; by checkpoint and file: whether the file
/// lives.
struct RetentionMarks {
  std::vector<bool> candidate;
  std::vector<KeptAs> kept_as;  ///< of the candidates
  std::vector<std::vector<bool>> live;
};

/// Marks what the policy keeps. Kept are the last k checkpoints, the newest whole one and those
/// whose step save_retain_interval divides; candidates are these and the `fallback_copies` older
/// ones next to the last k. Live are all copies that a candidate names, and `fallback_copies` older
/// ones of each rotating copy that a kept one names. `checkpoints` ascend in version. Pure.
[[nodiscard]] RetentionMarks mark(const std::vector<StoredCheckpoint>& checkpoints,
                                  const RetentionPolicy& policy);

/// Sweeps the checkpoints directory of a run. Rank 0, one thread at a time, never while a
/// checkpoint is being committed.
class Retention {
 public:
  Retention(FileSystem& fs, std::string root, RetentionPolicy policy)
      : fs_(fs), root_(std::move(root)), policy_(policy) {}
  /// Retires, deletes files, deletes directories, in an order that leaves every candidate whole at
  /// any crash. Stops at the first failure; the next sweep goes on.
  Status sweep();

 private:
  Status refresh();
  Status retire(const RetentionMarks& marks);
  Status delete_files(const RetentionMarks& marks);
  Status delete_directories(const RetentionMarks& marks);
  [[nodiscard]] std::string path_of(const std::string& directory) const {
    return root_ + "/" + directory;
  }

  FileSystem& fs_;
  std::string root_;
  RetentionPolicy policy_;
  std::vector<StoredCheckpoint> checkpoints_;  ///< ascending; what the last sweep left
  std::vector<std::string> unreadable_;        ///< step directories without a good manifest
  std::vector<std::string> garbage_;           ///< names that nothing reads any more
};

/// Prefixes of directories that recovery and retention have given up; never read again.
inline constexpr std::string_view kAbandonedPrefix = "abandoned-";
inline constexpr std::string_view kRemovedPrefix = "removed-";

}  // namespace pecan::checkpoint
