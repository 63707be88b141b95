#pragma once
/// Snapshots in host memory, seen from outside: what lies in a memory directory, cleaning it, and
/// whether it is fit for a run (docs/formats/memory.md, docs/recovery.md).

#include <cstdint>
#include <string>
#include <vector>

#include <pecan/core/ids.hpp>

#include <pecan/checkpoint/manifest.hpp>

namespace pecan::checkpoint {

/// One buffer of one rank.
struct SegmentReport {
  std::string path;
  std::string run_id;
  std::string host;
  Rank rank;
  int buffer = 0;
  int copy = 0;                 ///< 0: the rank's own; else which copy on another node
  std::uint64_t num_bytes = 0;  ///< of memory
  bool in_use = false;          ///< by a process, or so it must be assumed
  bool committed = false;       ///< holds a snapshot
  Version version;              ///< of it, if committed
  std::int64_t expert_units = 0;
  std::string problem;  ///< why a recovery could not use it; empty if it could, or there is none
};

/// All buffers in `directory`, ordered by run, host, rank, buffer and copy. Every byte of a
/// snapshot that no process uses is verified; of others, whose payload may change, the description.
/// CheckpointError if the directory cannot be listed.
[[nodiscard]] std::vector<SegmentReport> inspect_memory(const std::string& directory);

/// What became of a run's buffers.
struct Removal {
  std::vector<std::string> removed;  ///< paths
  std::vector<std::string> left;     ///< a sentence each: which, and why
};

/// Removes the buffers of a run (empty: of all runs) that no process uses. CheckpointError if the
/// directory cannot be listed.
Removal remove_segments(const std::string& directory, const std::string& run_id);

/// What is wrong with a memory directory, a sentence each.
struct MemoryCheck {
  std::vector<std::string> errors;    ///< snapshots cannot be made
  std::vector<std::string> warnings;  ///< snapshots may be slow, or vanish
};

/// Whether the ranks of this node can have `needed_bytes` of snapshots there. Memory that buffers
/// of `run_id` hold counts as free: the new ones replace them.
[[nodiscard]] MemoryCheck check_memory_directory(const std::string& directory,
                                                 std::uint64_t needed_bytes,
                                                 const std::string& run_id = {});

}  // namespace pecan::checkpoint
