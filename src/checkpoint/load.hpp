#pragma once
/// Reading what a RestorePlan names into this rank's state.

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>
#include <pecan/core/state_catalog.hpp>

#include <pecan/checkpoint/plan.hpp>
#include <pecan/checkpoint/recovery.hpp>

#include "checkpoint/memory_sources.hpp"
#include "checkpoint/scan.hpp"

namespace pecan::checkpoint {

/// A copy that could not be read whole.
struct Failure {
  UnitIndex unit;
  RoleGroup group = RoleGroup::kWeight;
  Version version;
  Tier tier = Tier::kStorage;
  std::string why;
};

/// Loads this rank's blocks, assembling each from the stored blocks that overlap it, so that the
/// layout may differ from the one that was saved. Not collective.
class Loader {
 public:
  /// All arguments outlive the object.
  Loader(FileSystem& fs,
         const std::string& root,
         const StateCatalog& catalog,
         const std::vector<StoredCheckpoint>& checkpoints,
         const MemorySources& memory,
         Rank rank);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// Reads and verifies what `plan` names and this rank holds, except groups already loaded at that
  /// version, into `binding`. Returns what failed; the rest is in place.
  std::vector<Failure> load(const RestorePlan& plan, StateBinding& binding);

 private:
  struct Reader;
  Status load_group(const UnitRestore& restore, StateBinding& binding);
  Status load_block(const UnitRestore& from,
                    ItemIndex item,
                    const Block& block,
                    StateBinding& binding);
  /// What is stored of an item at a version.
  [[nodiscard]] std::vector<StoredBlock> stored_blocks(const UnitRestore& from,
                                                       const StateItem& item) const;
  Status read(const StoredBlock& stored, std::span<std::byte> destination);

  FileSystem& fs_;
  const std::string& root_;
  const StateCatalog& catalog_;
  Rank rank_;
  const MemorySources& memory_;
  std::map<Version, const StoredCheckpoint*> checkpoint_of_;
  std::map<UnitGroup, std::vector<ItemIndex>> items_of_;
  std::map<Version, std::map<std::string, std::vector<const BlockEntry*>>> blocks_of_;
  std::map<UnitGroup, std::pair<Version, Tier>> loaded_;
  std::unique_ptr<Reader> reader_;
};

}  // namespace pecan::checkpoint
