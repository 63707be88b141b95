#pragma once
/// What a run's checkpoints hold, for people and programs (docs/formats/inspect.md); reads only.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>

#include <pecan/checkpoint/dynamic_k.hpp>
#include <pecan/checkpoint/exactness.hpp>
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

/// Why retention leaves a checkpoint.
enum class KeptAs : std::uint8_t {
  kUnknown,      ///< its manifest does not say what the run keeps
  kLatest,       ///< one of the last keep_latest_k
  kNewestWhole,  ///< the newest of which everything is there
  kForever,      ///< save_retain_interval divides its step
  kFallback,     ///< one of the fallback_copies before the last k
  kSource        ///< only its experts, which newer checkpoints use or fall back to
};

struct FileReport {
  std::string path;  ///< relative to the run directory
  std::string kind;  ///< "state" or "experts"
  std::uint64_t num_bytes = 0;
  bool needed = false;                ///< a recovery may read it
  std::vector<Step> named_by;         ///< checkpoints that count on it; empty: a fallback's copies
  std::vector<std::string> problems;  ///< by verify only
};

/// A recovery, or what one would be: what it restores and what it loses.
struct RecoveryFacts {
  Exactness exactness;
  std::optional<double> plt;  ///< lost by it; none where the manifests do not say
};

struct CheckpointReport {
  std::string directory;
  Version version;
  bool full = false;
  KeptAs kept_as = KeptAs::kUnknown;
  bool retired = false;           ///< only its experts are kept, as sources of newer checkpoints
  std::int64_t expert_units = 0;  ///< written in it
  std::uint64_t num_bytes = 0;    ///< of its files that are there
  std::optional<RecoveryFacts> recovery;  ///< from it alone, without memory; none if retired
  std::vector<FileReport> files;
};

struct RunReport {
  std::string run_id;
  int num_layers = 0;  ///< with experts
  int num_experts = 0;
  std::vector<CheckpointReport> checkpoints;   ///< ascending in version
  std::vector<std::string> problems;           ///< unreadable manifests, one sentence each
  std::vector<LineageEntry> lineage;           ///< of the newest checkpoint
  std::vector<ExpertAge> experts;              ///< as of the newest checkpoint
  std::vector<std::uint64_t> rank_bytes;       ///< written by each rank in the newest checkpoint
  std::string settings_json;                   ///< the trainer's object in the newest manifest
  ExpertBudget budget;                         ///< K in force; K = 0: not said
  std::optional<RecoveryFacts> last_recovery;  ///< that the newest checkpoint's start began with
  double plt = -1;                             ///< of all recoveries; -1: not said
  // Bytes by why they stay; together all that is there.
  std::uint64_t newest_bytes = 0;    ///< that the newest checkpoint counts on
  std::uint64_t older_bytes = 0;     ///< that only older ones count on
  std::uint64_t fallback_bytes = 0;  ///< copies that none counts on, in case one is damaged
};

enum class Verify : std::uint8_t { kNo, kYes /*read every file and recompute every checksum*/ };

/// Reads the checkpoints below `run_directory`. CheckpointError if there is nothing to inspect.
[[nodiscard]] RunReport inspect_run(FileSystem& fs,
                                    const std::string& run_directory,
                                    Verify verify);
/// Number of problems in the report.
[[nodiscard]] int count_problems(const RunReport& report);

}  // namespace pecan::checkpoint
