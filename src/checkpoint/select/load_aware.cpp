#include <algorithm>
#include <utility>

#include "checkpoint/select/deadline.hpp"

namespace pecan::checkpoint {

std::vector<UnitIndex> select_load_aware(const ExpertGrid& grid,
                                         const SelectionHistory& history,
                                         const SelectionBudget& budget,
                                         Step /*step*/) {
  PECAN_EXPECTS(budget.experts >= 0 && budget.experts <= grid.num_experts);
  PECAN_EXPECTS(history.unsaved.size() == std::size_t(grid.num_units()));
  std::vector<UnitIndex> selected;
  for (int layer = 0; layer < grid.num_layers; ++layer) {
    std::vector<UnitIndex> chosen = overdue(grid, history, budget, budget.experts, layer);
    std::vector<std::pair<std::int64_t, UnitIndex>> order;  // most tokens first, then lowest id
    for (int expert = 0; expert < grid.num_experts; ++expert) {
      const UnitIndex unit = grid.unit(layer, expert);
      if (std::ranges::count(chosen, unit) == 0)
        order.emplace_back(-history.unsaved[grid.index(unit)], unit);
    }
    std::ranges::sort(order);
    for (const auto& [tokens, unit] : order) chosen.push_back(unit);
    chosen.resize(std::size_t(budget.experts));
    selected.insert(selected.end(), chosen.begin(), chosen.end());
  }
  std::ranges::sort(selected);
  return selected;
}

}  // namespace pecan::checkpoint
