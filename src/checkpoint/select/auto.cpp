#include <algorithm>
#include <utility>

#include "checkpoint/select/deadline.hpp"

namespace pecan::checkpoint {

std::vector<UnitIndex> select_auto(const ExpertGrid& grid,
                                   const SelectionHistory& history,
                                   const SelectionBudget& budget,
                                   Step /*step*/) {
  PECAN_EXPECTS(history.unsaved.size() == std::size_t(grid.num_units()));
  std::vector<std::int64_t> load(std::size_t(grid.ep_size));
  std::vector<int> chosen_of_layer(std::size_t(grid.num_layers));
  std::vector<UnitIndex> selected;
  const auto bytes_of = [&](UnitIndex unit) { return grid.bytes_of(grid.layer_of(unit)); };
  const auto take = [&](UnitIndex unit) {
    load[std::size_t(grid.ep_rank(unit))] += bytes_of(unit);
    ++chosen_of_layer[std::size_t(grid.layer_of(unit))];
    selected.push_back(unit);
  };

  std::int64_t a_layer = 0;  // bytes of one expert of every layer
  for (int layer = 0; layer < grid.num_layers; ++layer) a_layer += grid.bytes_of(layer);
  const std::int64_t hidden =
      a_layer > 0 ? std::max<std::int64_t>(1, budget.rank_bytes * grid.ep_size / a_layer) : 1;
  const int a_checkpoint = int(std::min<std::int64_t>(hidden, budget.experts));
  SelectionBudget limit = budget;
  if (limit.max_age == 0) limit.max_age = default_max_age(grid.num_experts, a_checkpoint);
  std::vector<std::pair<std::int64_t, UnitIndex>> order;  // most tokens first, then lowest id
  for (int layer = 0; layer < grid.num_layers; ++layer) {
    const std::vector<UnitIndex> must = overdue(grid, history, limit, a_checkpoint, layer);
    for (const UnitIndex unit : must) take(unit);
    for (int expert = 0; expert < grid.num_experts; ++expert) {
      const UnitIndex unit = grid.unit(layer, expert);
      if (std::ranges::count(must, unit) == 0)
        order.emplace_back(-history.unsaved[grid.index(unit)], unit);
    }
  }
  std::ranges::sort(order);
  for (const auto& [tokens, unit] : order) {
    if (chosen_of_layer[std::size_t(grid.layer_of(unit))] >= budget.experts) continue;
    const bool fits =
        load[std::size_t(grid.ep_rank(unit))] + bytes_of(unit) <= budget.rank_bytes;
    if (fits || selected.empty()) take(unit);
  }
  std::ranges::sort(selected);
  return selected;
}

}  // namespace pecan::checkpoint
