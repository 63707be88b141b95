#pragma once
/// Reading what a RestorePlan names into this rank's state.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
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
  std::optional<MemoryPiece> piece = {};  ///< the part that is to blame, in memory
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
         const Nodes& nodes,
         Rank rank);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// Reads and verifies what `restores` name and this rank holds into `binding`; `received` has
  /// what lies in the memory of other nodes. Returns what failed; the rest is in place.
  std::vector<Failure> load(std::span<const UnitRestore> restores,
                            const Received& received,
                            StateBinding& binding);

 private:
  struct Reader;
  /// A block in storage (a file of a checkpoint) or in memory.
  struct StoredBlock {
    const ShardBlock* block = nullptr;
    std::string file = {};  ///< path of the shard
    std::optional<MemoryPiece> piece = {};
  };
  Status load_group(const UnitRestore& restore, const Received& received, StateBinding& binding);
  Status load_block(const UnitRestore& from,
                    ItemIndex item,
                    const Block& block,
                    const Received& received,
                    StateBinding& binding);
  /// What is stored of an item at a version.
  [[nodiscard]] std::vector<StoredBlock> stored_blocks(const UnitRestore& from,
                                                       const StateItem& item) const;
  Status read(const StoredBlock& stored,
              const Received& received,
              std::span<std::byte> destination);

  FileSystem& fs_;
  const std::string& root_;
  const StateCatalog& catalog_;
  Rank rank_;
  const MemorySources& memory_;
  int node_;
  std::map<Version, const StoredCheckpoint*> checkpoint_of_;
  std::map<UnitGroup, std::vector<ItemIndex>> items_of_;
  std::map<Version, std::map<std::string, std::vector<const BlockEntry*>>> blocks_of_;
  std::unique_ptr<Reader> reader_;
  std::optional<MemoryPiece> failed_piece_;  ///< of the group being loaded
};

}  // namespace pecan::checkpoint
