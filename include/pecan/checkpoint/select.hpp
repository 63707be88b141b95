#pragma once
/// Which experts a partial checkpoint holds. Pure: equal inputs give equal sets on every rank.

#include <cstdint>
#include <string_view>
#include <vector>

#include <pecan/core/ids.hpp>
#include <pecan/core/state_catalog.hpp>

namespace pecan::checkpoint {

/// The experts of a model as selection sees them. `ep_size` divides `num_experts`; expert e lives
/// on expert-parallel rank e / (num_experts / ep_size).
struct ExpertGrid {
  int num_layers = 0;   ///< layers that hold experts
  int num_experts = 0;  ///< a layer
  int ep_size = 1;
  /// Of an expert's rotating groups, on one of the ranks that share the writing of it; by layer.
  /// Empty: all 1.
  std::vector<std::int64_t> unit_bytes = {};
  /// Unit of an expert of the layer-th MoE layer.
  [[nodiscard]] UnitIndex unit(int layer, int expert) const {
    return UnitIndex{1 + layer * num_experts + expert};
  }
  [[nodiscard]] int num_units() const { return num_layers * num_experts; }
  /// Index of a unit's layer among those that hold experts.
  [[nodiscard]] int layer_of(UnitIndex unit) const { return int(index(unit)) / num_experts; }
  /// Expert-parallel rank that a unit lives on.
  [[nodiscard]] int ep_rank(UnitIndex unit) const {
    return int(index(unit)) % num_experts / (num_experts / ep_size);
  }
  [[nodiscard]] std::int64_t bytes_of(int layer) const {
    return unit_bytes.empty() ? 1 : unit_bytes[std::size_t(layer)];
  }
  /// Index of an expert unit in vectors over (layer, expert).
  [[nodiscard]] static std::size_t index(UnitIndex unit) { return std::size_t(unit.value) - 1; }
};

/// The grid of a catalog; the expert-parallel size is the number of different sets of ranks that
/// hold a layer's experts. Throws InternalError where experts are not dealt evenly and in order.
[[nodiscard]] ExpertGrid expert_grid(const StateCatalog& catalog,
                                     const std::vector<RoleGroup>& always_saved = {});

/// What selection remembers of earlier checkpoints of a level, by (layer, expert).
struct SelectionHistory {
  std::vector<Step> newest;             ///< newest committed or in-flight version; -1: none
  int first_budget = 0;                 ///< the run's first K, which orders ties
  std::vector<int> age;                 ///< checkpoints since that version
  std::vector<std::int64_t> unsaved;    ///< token slots since that version
  /// All experts as old as a version of `step`.
  static SelectionHistory uniform(const ExpertGrid& grid, int first_budget, Step step);
  /// Notes a checkpoint of `step` that holds `units`.
  void saved(const std::vector<UnitIndex>& units, Step step);
};

/// What a checkpoint may hold.
struct SelectionBudget {
  int experts = 0;              ///< of each layer
  int max_age = 0;              ///< checkpoints that an expert may miss; 0: no limit
  std::int64_t rank_bytes = 0;  ///< of experts that a rank copies at no cost; for `auto`
};

/// Chooses experts for the checkpoint of `step`; units ascending.
using SelectFunction = std::vector<UnitIndex> (*)(const ExpertGrid& grid,
                                                  const SelectionHistory& history,
                                                  const SelectionBudget& budget,
                                                  Step step);

/// The K experts of each layer with the oldest version, ties by (p - m*K1) mod N: p the position
/// in the rank-interleaved numbering, m the layer, K1 the run's first K. Every expert is saved
/// within ceil(N/K) committed checkpoints, whatever failed before; max/mean load of the
/// expert-parallel ranks is 1 wherever ep_size divides K * num_layers and K = K1.
/// Source: PEC v1 section 4 (sequential selection), fig. 4. Differs from the paper: oldest version
/// first instead of a counter, which is the same set while K divides N and survives failed saves.
[[nodiscard]] std::vector<UnitIndex> select_sequential(const ExpertGrid& grid,
                                                       const SelectionHistory& history,
                                                       const SelectionBudget& budget,
                                                       Step step);

/// The K experts of each layer with the most token slots since their last save, ties to the lowest
/// id, except those that must be saved now so that none ever misses more than max_age checkpoints
/// (kept if max_age >= ceil(N/K) - 1).
/// Source: PEC v1 section 4 (load-aware selection). Differs from the paper: the maximum age.
[[nodiscard]] std::vector<UnitIndex> select_load_aware(const ExpertGrid& grid,
                                                       const SelectionHistory& history,
                                                       const SelectionBudget& budget,
                                                       Step step);

/// All experts.
[[nodiscard]] std::vector<UnitIndex> select_full(const ExpertGrid& grid,
                                                 const SelectionHistory& history,
                                                 const SelectionBudget& budget,
                                                 Step step);

/// Experts of any layer, most unsaved token slots first, as many as fit into rank_bytes of each
/// expert-parallel rank, at most K of each layer and at least one in all; besides those that must
/// be saved now so that none misses more than max_age checkpoints (0: default_max_age of as many as
/// fit).
/// Source: MoC section 5.3 (adaptive configuration), which sets one K for all layers.
[[nodiscard]] std::vector<UnitIndex> select_auto(const ExpertGrid& grid,
                                                 const SelectionHistory& history,
                                                 const SelectionBudget& budget,
                                                 Step step);

/// The policy of `checkpoint.pec.selection`; ConfigError for an unknown name.
[[nodiscard]] SelectFunction selection_policy(std::string_view name);

/// What `checkpoint.pec.max_expert_age` = 0 stands for: the largest with which kept files hold at
/// most 1.25 times all experts (2.5 times with a fallback copy). A file of K experts stays until the
/// last of them is superseded, so the files of max_age + 1 checkpoints stay, each of K/N of all.
[[nodiscard]] int default_max_age(int num_experts, int experts);

/// Experts for a snapshot in memory: those that `policy` chooses for storage (if it is to be
/// persisted), filled up to `budget.experts` of each layer by what it would choose for memory.
/// `storage.experts` <= `memory.experts`. Pure.
/// Source: MoC section 5.2 (two-level PEC). Differs from the paper: what storage waits for longest
/// is always part of a snapshot that is persisted, so that no ratio of intervals starves an expert.
struct LevelSelection {
  std::vector<UnitIndex> snapshot;  ///< ascending
  std::vector<UnitIndex> persist;   ///< a subset, ascending; empty if not for storage
};
struct Level {
  SelectionHistory history;
  SelectionBudget budget;
};
enum class ForStorage : std::uint8_t { kNo, kYes };
[[nodiscard]] LevelSelection select_levels(const ExpertGrid& grid,
                                           SelectFunction policy,
                                           const Level& memory,
                                           const Level& storage,
                                           ForStorage for_storage,
                                           Step step);

/// For a full checkpoint at `step`: in which of the partial checkpoints after it (0, 1, ...) each
/// expert will be superseded if all of them succeed; by (layer, expert).
[[nodiscard]] std::vector<int> rotation_slots(const ExpertGrid& grid,
                                              SelectFunction policy,
                                              const SelectionBudget& budget,
                                              int first_budget,
                                              Step step);

}  // namespace pecan::checkpoint
