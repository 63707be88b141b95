#include "checkpoint/select/deadline.hpp"

#include <algorithm>
#include <functional>
#include <utility>

namespace pecan::checkpoint {

std::vector<UnitIndex> overdue(const ExpertGrid& grid,
                               const SelectionHistory& history,
                               const SelectionBudget& budget,
                               int per_checkpoint,
                               int layer) {
  if (budget.max_age <= 0) return {};
  PECAN_EXPECTS(history.age.size() == std::size_t(grid.num_units()));
  std::vector<std::pair<int, UnitIndex>> by_deadline;
  for (int expert = 0; expert < grid.num_experts; ++expert) {
    const UnitIndex unit = grid.unit(layer, expert);
    by_deadline.emplace_back(std::max(0, budget.max_age - history.age[grid.index(unit)]), unit);
  }
  std::ranges::sort(by_deadline);
  std::int64_t must = 0;
  for (std::size_t i = 0; i < by_deadline.size(); ++i) {
    must = std::max(must,
                    std::int64_t(i) + 1 - std::int64_t(by_deadline[i].first) * per_checkpoint);
  }
  std::vector<UnitIndex> units;
  for (std::size_t i = 0; i < std::size_t(must); ++i) units.push_back(by_deadline[i].second);
  return units;
}

}  // namespace pecan::checkpoint
