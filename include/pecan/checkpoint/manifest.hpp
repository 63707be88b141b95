#pragma once
/// What a checkpoint is on disk: each rank's index and the merged manifest
/// (docs/formats/checkpoint.md).

#include <cstdint>
#include <string>
#include <vector>

#include <pecan/core/error.hpp>
#include <pecan/core/ids.hpp>
#include <pecan/core/state_catalog.hpp>

#include <pecan/checkpoint/dynamic_k.hpp>
#include <pecan/checkpoint/shard.hpp>

namespace pecan::checkpoint {

inline constexpr int kFormatVersion =
    1;  // on-disk: raise with every change that old readers cannot read

/// Step identity: an abandoned branch may have had the same step.
struct Version {
  Incarnation incarnation;
  Step step;
  auto operator<=>(const Version&) const = default;
};

/// One start of the run: from which version it continued (none: fresh).
struct LineageEntry {
  Incarnation incarnation;
  bool fresh = true;
  Version parent;  ///< meaningful unless fresh
  bool operator==(const LineageEntry&) const = default;
};

/// What a file of a checkpoint holds.
enum class FileKind : std::uint8_t { kState, kExperts };

struct FileEntry {
  std::string name;  ///< inside the step's directory
  FileKind kind = FileKind::kState;
  Rank writer;
  FileDigest digest;
  bool operator==(const FileEntry&) const = default;
};

/// One block written in this checkpoint; `file` indexes the list of files of the same index or
/// manifest.
struct BlockEntry {
  int file = 0;
  UnitIndex unit;
  RoleGroup group = RoleGroup::kWeight;
  ShardBlock block;
  bool operator==(const BlockEntry&) const = default;
};

/// rank-R.index.json: what one rank wrote.
struct RankIndex {
  Version version;
  Rank rank;
  std::vector<FileEntry> files;
  std::vector<BlockEntry> blocks;
};

/// Where the newest copy of (unit, group) is that this manifest counts on: written now or earlier.
struct UnitCopy {
  UnitIndex unit;
  RoleGroup group = RoleGroup::kWeight;
  Version version;
  std::uint64_t digest = 0;  ///< XXH3 of its blocks' checksums in order of (dataset path, offset);
                             ///< binds the older manifest's entries
  bool operator==(const UnitCopy&) const = default;
};

/// manifest.json: the whole catalog's state as of one step.
struct Manifest {
  std::string run_id;
  Version version;
  std::vector<LineageEntry> lineage;  ///< oldest first; the last is this incarnation
  int world_size = 1;
  std::uint64_t model_fingerprint = 0;
  std::int64_t consumed_samples = 0;
  bool full = false;               ///< every unit was written now
  std::string build;               ///< version and git id of the writer
  std::vector<StateUnit> units;    ///< names, so that the inspector needs no configuration
  std::vector<UnitCopy> copies;    ///< every (unit, group) of the catalog, ascending
  std::vector<FileEntry> files;    ///< written in this checkpoint
  std::vector<BlockEntry> blocks;  ///< written in this checkpoint
  std::string extra_json;  ///< opaque object of the trainer (layout, PEC settings, token tables),
                           ///< for the inspector
  int first_budget = 0;  ///< experts a layer and checkpoint when the run began; orders the rotation
  /// By expert unit: checkpoints since its newest copy. Empty in files of versions before it.
  std::vector<int> ages;
  ExpertBudget budget;  ///< K in force and what it has cost; K = 0 in files of versions before it
};

[[nodiscard]] std::string to_json(const RankIndex& index);
[[nodiscard]] std::string to_json(const Manifest& manifest);
/// kCorrupt with the JSON path of what is missing, of the wrong type or out of range; kInvalid for
/// a newer format version. The text carries its own checksum, so that a flipped bit anywhere is
/// found.
Result<RankIndex> parse_rank_index(const std::string& text);
Result<Manifest> parse_manifest(const std::string& text);
/// Digest of a unit's group over `blocks` (those of that unit and group), see UnitCopy::digest.
[[nodiscard]] std::uint64_t copy_digest(const std::vector<BlockEntry>& blocks,
                                        UnitIndex unit,
                                        RoleGroup group);

/// The copies that `blocks` make, ascending by (unit, group): copy_digest of each in one pass.
[[nodiscard]] std::vector<UnitCopy> written_copies(const std::vector<BlockEntry>& blocks,
                                                   Version version);

/// "step-00000120".
[[nodiscard]] std::string step_directory_name(Step step);

}  // namespace pecan::checkpoint
