#pragma once
/// The state of a training job as plain data: what there is (StateCatalog, global and pure) and how
/// this rank's part is copied (StateBinding). `checkpoint` knows nothing else of the model.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/ids.hpp>
#include <pecan/core/tensor.hpp>

namespace pecan {

enum class Role : std::uint8_t {
  kWeight,         ///< "weight": what forward computes with (in fp32 runs also the master)
  kMaster,         ///< "master": fp32 master of a lower-precision weight
  kExpAvg,         ///< "exp_avg": Adam's first moment
  kExpAvgSq,       ///< "exp_avg_sq": Adam's second moment
  kUpdateCount,    ///< "update_count": i64, updates of the unit so far
  kAbsorbed,       ///< "absorbed_<group>": i64, token-slots whose updates the group's copy holds
  kCounter,        ///< "counter": tables of the whole job (routed, lost, expert bias, ...)
  kDefaultVector,  ///< "default_vector": moving average of an expert's outputs
};

/// What is restored together at one version. A unit is a set of role groups.
enum class RoleGroup : std::uint8_t {
  kWeight,
  kMaster,
  kMoments,
  kJob,            ///< non-expert counters
  kDefaultVector,  ///< saved of every expert wherever its weight is kept current
};
[[nodiscard]] std::string_view name_of(RoleGroup group);
[[nodiscard]] RoleGroup role_group_from_name(std::string_view name);
[[nodiscard]] std::string_view name_of(Role role);

/// What changes an item; the checkpoint protects `update` items by its barrier (A) and copies
/// `forward` ones at (B).
enum class MutatedIn : std::uint8_t { kForward, kUpdate };

/// Index into StateCatalog::units.
using UnitIndex = StrongId<struct UnitTag, std::int32_t>;
/// Index into StateCatalog::items.
using ItemIndex = StrongId<struct ItemTag, std::int32_t>;

/// The non-expert state (one unit, always unit 0) or one expert of one layer.
struct StateUnit {
  std::string name;  ///< "non_expert" or "layers.3.experts.5"
  LayerId layer = kNoLayer;
  ExpertId expert{-1};
  [[nodiscard]] bool is_expert() const { return expert.value >= 0; }
  bool operator==(const StateUnit&) const = default;
};

/// A block of an item and the ranks (ascending) that hold the same bytes of it.
struct StateBlock {
  Block block;
  std::vector<Rank> holders;
  bool operator==(const StateBlock&) const = default;
};

/// One tensor of state. Its dataset in a shard is "<name>/<dataset>".
struct StateItem {
  std::string
      name;  ///< Hugging Face's Qwen3-MoE name, e.g. "model.layers.0.mlp.experts.3.up_proj.weight"
  std::string dataset;  ///< "weight", "exp_avg", "absorbed_moments", "routed", ...
  UnitIndex unit;
  Role role = Role::kWeight;
  RoleGroup group = RoleGroup::kWeight;
  MutatedIn mutated_in = MutatedIn::kUpdate;
  Shape global_shape;
  DType dtype = DType::kF32;
  /// Can be made from other items: recovery does without it, and it is no part of the model's
  /// identity.
  bool derived = false;
  std::vector<StateBlock> blocks;  ///< cover global_shape without overlap
  [[nodiscard]] std::string path() const { return name + "/" + dataset; }
  [[nodiscard]] std::size_t num_bytes() const;
  bool operator==(const StateItem&) const = default;
};

/// All state of a job, equal on every rank; a pure function of configuration and layout.
struct StateCatalog {
  int world_size = 1;
  int num_moe_layers = 0;        ///< layers that hold experts
  int num_experts = 0;           ///< experts a layer
  std::vector<StateUnit> units;  ///< [0] non-expert; experts ordered by (layer, expert)
  std::vector<StateItem> items;
  /// Layout-free identity of the model: hash of the names, datasets, shapes, dtypes, units and
  /// groups of all items but the derived ones.
  [[nodiscard]] std::uint64_t model_fingerprint() const;
  /// Role groups that `unit` has, ascending.
  [[nodiscard]] std::vector<RoleGroup> groups_of(UnitIndex unit) const;
  /// Throws InternalError where blocks overlap, leave gaps, lack holders, or paths repeat.
  void validate() const;
  bool operator==(const StateCatalog&) const = default;
};

/// This rank's access to the blocks that it holds. Elements pass in logical row-major order of the
/// block.
class StateBinding {
 public:
  StateBinding() = default;
  virtual ~StateBinding() = default;
  StateBinding(const StateBinding&) = delete;
  StateBinding& operator=(const StateBinding&) = delete;
  /// What copy_out gives from now on is the state as it is after all that was done to it so far,
  /// also where a device was only asked for it. Main thread only, between steps.
  virtual void begin_copies() const {}
  /// Copies `block` of `item` to `destination` (block elements * dtype bytes), which holds it after
  /// finish_copies(). `block` lies inside a block this rank holds. Safe from another thread while
  /// forward and backward run, for items mutated in `update`.
  virtual void copy_out(ItemIndex item,
                        const Block& block,
                        std::span<std::byte> destination) const = 0;
  /// Blocks until all that copy_out was asked for, by any thread, is where it should be.
  virtual void finish_copies() const {}
  /// Inverse of copy_out; `source` may change when it returns. Main thread only, before the loop
  /// starts.
  virtual void copy_in(ItemIndex item, const Block& block, std::span<const std::byte> source) = 0;
};

}  // namespace pecan
