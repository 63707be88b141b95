#pragma once
/// Who writes which block into which file. Pure: every rank computes the same plan without
/// communication.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <pecan/core/ids.hpp>
#include <pecan/core/state_catalog.hpp>

#include <pecan/config/config.hpp>

#include <pecan/checkpoint/manifest.hpp>

namespace pecan::checkpoint {

/// A role group of a unit: what is saved and restored together.
using UnitGroup = std::pair<UnitIndex, RoleGroup>;
/// All groups of all units of the catalog, ascending.
[[nodiscard]] std::vector<UnitGroup> unit_groups(const StateCatalog& catalog);

/// What a checkpoint is to hold beside the non-expert unit, which it always holds.
struct SaveRequest {
  std::vector<UnitIndex> units;         ///< experts saved whole, ascending
  std::vector<RoleGroup> always_saved;  ///< groups saved of every expert
  std::vector<int> slots = {};  ///< file slot of each expert, by (layer, expert); empty: one file
  config::WriteSharding sharding = config::WriteSharding::kAdaptive;
};

/// Lifetime of the file: with the step (state) or until its experts are superseded (slot 0, 1,
/// ...).
inline constexpr int kStateSlot = -1;

struct PlannedWrite {
  ItemIndex item;
  int block = 0;  ///< index into StateItem::blocks
  Rank writer;
  int slot = kStateSlot;
  bool operator==(const PlannedWrite&) const = default;
};

struct SavePlan {
  std::vector<PlannedWrite> writes;       ///< ascending (item, block)
  std::vector<std::uint64_t> rank_bytes;  ///< payload that each rank writes
  bool slotted = false;                   ///< experts files carry their slot's number
};

/// Gives every block to one of its holders. A block with a single holder (a ZeRO share) is written
/// by it. Of the others
///   rank0:    all go to their lowest holder;
///   equal:    each expert goes whole to one of its replicas, in turn; each non-expert block, the
///             largest first, to the holder with the fewest non-expert bytes;
///   adaptive: experts as in `equal`; non-expert blocks to the holder with the fewest bytes of any
///             kind, so that they balance the experts of this very checkpoint.
/// Ties go to the lowest rank. Non-expert units and always-saved groups go to the state file.
/// Cost: O(blocks log blocks).
/// Source: MoC section 4: baseline, EE + EN, EE + AN. Differs from the paper: non-expert blocks are
/// single tensors instead of modules, and optimizer state that is not sharded is dealt out too.
[[nodiscard]] SavePlan plan_save(const StateCatalog& catalog, const SaveRequest& request);

/// `plan` with what `request` asks for and it lacks; the writers and slots that it has stay. A
/// snapshot's plan is that of the checkpoint in storage which is taken from it, extended by the
/// experts that stay in memory: so the slower level is the balanced one.
[[nodiscard]] SavePlan extend_plan(const StateCatalog& catalog,
                                   SavePlan plan,
                                   const SaveRequest& request);

/// Bytes of all blocks that have a choice of writers, in a full checkpoint: 0 where sharding
/// changes nothing.
[[nodiscard]] std::uint64_t replicated_bytes(const StateCatalog& catalog);

/// "rank-00000.state.h5", "rank-00000.experts.h5" or "rank-00000.experts-03.h5".
[[nodiscard]] std::string shard_name(Rank rank, int slot, const SavePlan& plan);
/// "rank-00000.index.json".
[[nodiscard]] std::string index_name(Rank rank);

/// Role groups named in `checkpoint.pec.always_saved`; ConfigError for an unknown word.
[[nodiscard]] std::vector<RoleGroup> always_saved_groups(const std::vector<std::string>& names);

}  // namespace pecan::checkpoint
