#pragma once
/// What a run's checkpoints hold, for people and programs (docs/formats/inspect.md); reads only.

#include <cstdint>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>

#include <pecan/checkpoint/manifest.hpp>

namespace pecan::checkpoint {

/// Newest copy of one expert that the newest checkpoint counts on.
struct ExpertAge {
  int layer = 0;  ///< of the model
  int expert = 0;
  Step step;  ///< oldest of its role groups' newest copies
  std::int64_t stale_steps = 0;
  std::int64_t stale_tokens =
      0;  ///< token slots routed to it since; -1 where the older manifest does not say
};

struct FileReport {
  std::string path;  ///< relative to the run directory
  std::string kind;  ///< "state" or "experts"
  std::uint64_t num_bytes = 0;
  bool needed = false;                ///< a recovery may read it
  std::vector<std::string> problems;  ///< by verify only
};

struct CheckpointReport {
  std::string directory;
  Version version;
  bool full = false;
  bool retired = false;           ///< only its experts are kept, as sources of newer checkpoints
  std::int64_t expert_units = 0;  ///< written in it
  std::uint64_t num_bytes = 0;    ///< of its files that are there
  std::vector<FileReport> files;
};

struct RunReport {
  std::string run_id;
  int num_layers = 0;  ///< with experts
  int num_experts = 0;
  std::vector<CheckpointReport> checkpoints;  ///< ascending in version
  std::vector<std::string> problems;          ///< unreadable manifests, one sentence each
  std::vector<LineageEntry> lineage;          ///< of the newest checkpoint
  std::vector<ExpertAge> experts;             ///< as of the newest checkpoint
  std::vector<std::uint64_t> rank_bytes;      ///< written by each rank in the newest checkpoint
  std::string settings_json;                  ///< the trainer's object in the newest manifest
};

enum class Verify : std::uint8_t { kNo, kYes /*read every file and recompute every checksum*/ };

/// Reads the checkpoints below `run_directory`. CheckpointError if there is nothing to inspect.
[[nodiscard]] RunReport inspect_run(FileSystem& fs,
                                    const std::string& run_directory,
                                    Verify verify);
/// Number of problems in the report.
[[nodiscard]] int count_problems(const RunReport& report);

}  // namespace pecan::checkpoint
