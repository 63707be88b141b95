#include <algorithm>
#include <utility>

#include <pecan/checkpoint/select.hpp>

namespace pecan::checkpoint {
namespace {

/// Position of an expert in the numbering that walks over the ranks first.
int interleaved_position(const ExpertGrid& grid, int expert) {
  const int per_rank = grid.num_experts / grid.ep_size;
  return expert % per_rank * grid.ep_size + expert / per_rank;
}

}  // namespace

std::vector<UnitIndex> select_sequential(const ExpertGrid& grid,
                                         const SelectionHistory& history,
                                         const SelectionBudget& budget,
                                         Step /*step*/) {
  PECAN_EXPECTS(budget.experts >= 0 && budget.experts <= grid.num_experts);
  PECAN_EXPECTS(history.newest.size() == std::size_t(grid.num_units()));
  std::vector<UnitIndex> selected;
  for (int layer = 0; layer < grid.num_layers; ++layer) {
    std::vector<std::pair<Step, int>> order;  // (version, tie); the tie gives the expert back
    std::vector<int> expert_of_tie(std::size_t(grid.num_experts));
    const auto start = std::int64_t(layer) * history.first_budget % grid.num_experts;
    for (int expert = 0; expert < grid.num_experts; ++expert) {
      const auto tie =
          int((interleaved_position(grid, expert) - start + grid.num_experts) % grid.num_experts);
      expert_of_tie[std::size_t(tie)] = expert;
      order.emplace_back(history.newest[grid.index(grid.unit(layer, expert))], tie);
    }
    std::ranges::sort(order);
    for (int i = 0; i < budget.experts; ++i) {
      const int tie = order[std::size_t(i)].second;
      selected.push_back(grid.unit(layer, expert_of_tie[std::size_t(tie)]));
    }
  }
  std::ranges::sort(selected);
  return selected;
}

}  // namespace pecan::checkpoint
