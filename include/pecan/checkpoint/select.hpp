#pragma once
/// Which experts a partial checkpoint holds. Pure: equal inputs give equal sets on every rank.

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
  /// Unit of an expert of the layer-th MoE layer.
  [[nodiscard]] UnitIndex unit(int layer, int expert) const {
    return UnitIndex{1 + layer * num_experts + expert};
  }
  [[nodiscard]] int num_units() const { return num_layers * num_experts; }
  /// Index of an expert unit in vectors over (layer, expert).
  [[nodiscard]] static std::size_t index(UnitIndex unit) { return std::size_t(unit.value) - 1; }
};

/// The grid of a catalog; the expert-parallel size is the number of different sets of ranks that
/// hold a layer's experts. Throws InternalError where experts are not dealt evenly and in order.
[[nodiscard]] ExpertGrid expert_grid(const StateCatalog& catalog);

/// What selection remembers of earlier checkpoints.
struct SelectionHistory {
  std::vector<Step>
      newest;            ///< by (layer, expert): newest committed or in-flight version; -1: none
  int first_budget = 0;  ///< the run's first K, which orders ties
};

/// Chooses `budget` experts of each layer for the checkpoint of `step`; units ascending.
using SelectFunction = std::vector<UnitIndex> (*)(const ExpertGrid& grid,
                                                  const SelectionHistory& history,
                                                  int budget,
                                                  Step step);

/// The K experts of each layer with the oldest version, ties by (p - m*K1) mod N: p the position
/// in the rank-interleaved numbering, m the layer, K1 the run's first K. Every expert is saved
/// within ceil(N/K) committed checkpoints, whatever failed before; max/mean load of the
/// expert-parallel ranks is 1 wherever ep_size divides K * num_layers and K = K1.
/// Source: PEC v1 section 4 (sequential selection), fig. 4. Differs from the paper: oldest version
/// first instead of a counter, which is the same set while K divides N and survives failed saves.
[[nodiscard]] std::vector<UnitIndex> select_sequential(const ExpertGrid& grid,
                                                       const SelectionHistory& history,
                                                       int budget,
                                                       Step step);

/// The policy of `checkpoint.pec.selection`; ConfigError for an unknown name.
[[nodiscard]] SelectFunction selection_policy(std::string_view name);

/// For a full checkpoint at `step`: in which of the partial checkpoints after it (0, 1, ...) each
/// expert will be superseded if all of them succeed; by (layer, expert).
[[nodiscard]] std::vector<int> rotation_slots(
    const ExpertGrid& grid, SelectFunction policy, int budget, int first_budget, Step step);

}  // namespace pecan::checkpoint
