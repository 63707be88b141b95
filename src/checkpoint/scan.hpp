#pragma once
/// What a run's checkpoints directory holds: the view that retention and recovery share.

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/file_system.hpp>

#include <pecan/checkpoint/manifest.hpp>
#include <pecan/checkpoint/plan.hpp>

namespace pecan::checkpoint {

inline constexpr std::string_view kManifestName = "manifest.json";
/// Name of the manifest of a checkpoint whose state files are gone: its experts are still sources,
/// but no recovery continues from its step.
inline constexpr std::string_view kRetiredName = "manifest.retired.json";

/// A checkpoint whose manifest is good.
struct StoredCheckpoint {
  std::string directory;  ///< inside the checkpoints directory
  bool retired = false;
  Manifest manifest;
  std::vector<bool> present;  ///< by manifest file: there, with the recorded size
  std::map<UnitGroup, std::vector<int>> files_of;  ///< files that hold the copies written here
  [[nodiscard]] bool has(const UnitGroup& key) const;
};

/// Fills files_of from the manifest.
void index_groups(StoredCheckpoint& checkpoint);
/// Step of a name like "step-00000120", nothing else.
[[nodiscard]] std::optional<Step> step_of_directory(std::string_view name);
/// Reads `root`/`directory`. kNotFound: no manifest; kCorrupt: damaged or of another step.
Result<StoredCheckpoint> load_checkpoint(FileSystem& fs,
                                         const std::string& root,
                                         const std::string& directory);

}  // namespace pecan::checkpoint
