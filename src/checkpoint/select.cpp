#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include <fmt/ranges.h>

#include <pecan/checkpoint/select.hpp>

namespace pecan::checkpoint {
namespace {

struct Policy {
  std::string_view name;
  SelectFunction function;
};
constexpr Policy kPolicies[] = {{"sequential", select_sequential}};

/// Position of an expert in the numbering that walks over the ranks first.
int interleaved_position(const ExpertGrid& grid, int expert) {
  const int per_rank = grid.num_experts / grid.ep_size;
  return expert % per_rank * grid.ep_size + expert / per_rank;
}

}  // namespace

ExpertGrid expert_grid(const StateCatalog& catalog) {
  ExpertGrid grid{catalog.num_moe_layers, catalog.num_experts, 1};
  PECAN_VALIDATE(int(catalog.units.size()) == 1 + grid.num_units(),
                 InternalError,
                 "the catalog has {} units; {} MoE layers of {} experts need {}",
                 catalog.units.size(),
                 grid.num_layers,
                 grid.num_experts,
                 1 + grid.num_units());
  if (grid.num_units() == 0) return grid;

  std::vector<std::set<Rank>> holders(std::size_t(grid.num_experts));
  for (const StateItem& item : catalog.items) {
    const int index = item.unit.value - 1;
    if (index < 0 || index >= grid.num_experts) continue;
    for (const StateBlock& part : item.blocks) {
      holders[std::size_t(index)].insert(part.holders.begin(), part.holders.end());
    }
  }
  grid.ep_size = int(std::set(holders.begin(), holders.end()).size());
  const std::size_t per_rank = holders.size() / std::size_t(grid.ep_size);
  bool in_order = per_rank * std::size_t(grid.ep_size) == holders.size();
  for (std::size_t e = 0; in_order && e < holders.size(); ++e) {
    in_order = holders[e] == holders[e / per_rank * per_rank];
  }
  PECAN_VALIDATE(in_order,
                 InternalError,
                 "{} experts are not dealt evenly and in order to {} expert-parallel ranks",
                 grid.num_experts,
                 grid.ep_size);
  return grid;
}

std::vector<UnitIndex> select_sequential(const ExpertGrid& grid,
                                         const SelectionHistory& history,
                                         int budget,
                                         Step /*step*/) {
  PECAN_EXPECTS(budget >= 0 && budget <= grid.num_experts);
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
    for (int i = 0; i < budget; ++i) {
      const int tie = order[std::size_t(i)].second;
      selected.push_back(grid.unit(layer, expert_of_tie[std::size_t(tie)]));
    }
  }
  std::ranges::sort(selected);
  return selected;
}

SelectFunction selection_policy(std::string_view name) {
  const auto* found = std::ranges::find(kPolicies, name, &Policy::name);
  if (found == std::end(kPolicies)) {
    std::vector<std::string_view> names;
    for (const Policy& policy : kPolicies) names.push_back(policy.name);
    throw ConfigError(fmt::format("checkpoint.pec.selection=\"{}\" is no selection policy; use {}",
                                  name,
                                  fmt::join(names, " or ")));
  }
  return found->function;
}

std::vector<int> rotation_slots(
    const ExpertGrid& grid, SelectFunction policy, int budget, int first_budget, Step step) {
  PECAN_EXPECTS(budget > 0);
  const int num_slots = (grid.num_experts + budget - 1) / budget;
  std::vector<int> slots(std::size_t(grid.num_units()), -1);
  SelectionHistory history{std::vector<Step>(slots.size(), step), first_budget};
  for (int slot = 0; slot < num_slots; ++slot) {
    const Step next{step.value + slot + 1};
    for (const UnitIndex unit : policy(grid, history, budget, next)) {
      history.newest[grid.index(unit)] = next;
      int& mine = slots[grid.index(unit)];
      if (mine < 0) mine = slot;
    }
  }
  // A policy that does not reach every expert within a rotation leaves the rest to the last file.
  std::ranges::replace(slots, -1, num_slots - 1);
  return slots;
}

}  // namespace pecan::checkpoint
