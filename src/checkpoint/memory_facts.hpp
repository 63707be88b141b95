#pragma once
/// What the system says about a memory directory, apart from what follows from it, so that each
/// sentence of the check can be tested on any machine.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <pecan/checkpoint/memory.hpp>

namespace pecan::checkpoint {

/// A memory cgroup that this process is charged to.
struct MemoryGroup {
  std::string path;
  std::uint64_t limit_bytes = 0;
  std::uint64_t used_bytes = 0;  ///< without file caches, which the kernel drops when it must
};

struct MemoryFacts {
  std::string directory;  ///< as configured
  std::string real;       ///< without links
  bool exists = false;
  bool is_directory = false;
  bool writable = false;
  bool in_memory = false;                   ///< a tmpfs or ramfs
  std::optional<std::uint64_t> free_bytes;  ///< none: unlimited
  std::uint64_t replaced_bytes = 0;         ///< held by unused buffers of the same run
  unsigned uid = 0;
  bool logind = false;              ///< systemd-logind runs
  std::string logind_conf;          ///< its configuration, what rules last
  std::string own_mounts;           ///< mountinfo of this process
  std::string init_mounts;          ///< and of process 1; empty where it must not be read
  std::string slurm_job;            ///< empty outside of Slurm
  std::vector<MemoryGroup> groups;  ///< with a limit, innermost first
};

/// All buffers in `directory`, without a look into them; as inspect_memory.
[[nodiscard]] std::vector<SegmentReport> list_segments(const std::string& directory);

/// Asks the system, whose files lie below `root` ("" but in tests).
[[nodiscard]] MemoryFacts observe_memory(const std::string& directory,
                                         const std::string& run_id,
                                         const std::string& root);
/// What follows. Pure.
[[nodiscard]] MemoryCheck judge(const MemoryFacts& facts, std::uint64_t needed_bytes);

}  // namespace pecan::checkpoint
