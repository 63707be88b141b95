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
constexpr Policy kPolicies[] = {{"sequential", select_sequential},
                                {"load_aware", select_load_aware},
                                {"full", select_full},
                                {"auto", select_auto}};

}  // namespace

ExpertGrid expert_grid(const StateCatalog& catalog, const std::vector<RoleGroup>& always_saved) {
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
  grid.unit_bytes.resize(std::size_t(grid.num_layers));
  for (const StateItem& item : catalog.items) {
    const int index = item.unit.value - 1;
    if (index < 0) continue;
    if (index % grid.num_experts == 0 && std::ranges::count(always_saved, item.group) == 0)
      grid.unit_bytes[std::size_t(index / grid.num_experts)] += std::int64_t(item.num_bytes());
    if (index >= grid.num_experts) continue;
    for (const StateBlock& part : item.blocks) {
      holders[std::size_t(index)].insert(part.holders.begin(), part.holders.end());
    }
  }
  const auto replicas = std::int64_t(holders[0].size());
  for (std::int64_t& bytes : grid.unit_bytes) bytes = (bytes + replicas - 1) / replicas;
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

SelectionHistory SelectionHistory::uniform(const ExpertGrid& grid, int first_budget, Step step) {
  const auto num_units = std::size_t(grid.num_units());
  return {std::vector<Step>(num_units, step),
          first_budget,
          std::vector<int>(num_units, 0),
          std::vector<std::int64_t>(num_units, 0)};
}

void SelectionHistory::saved(const std::vector<UnitIndex>& units, Step step) {
  for (int& checkpoints : age) ++checkpoints;
  for (const UnitIndex unit : units) {
    const std::size_t at = ExpertGrid::index(unit);
    newest[at] = step;
    age[at] = 0;
    unsaved[at] = 0;
  }
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

int default_max_age(int num_experts, int experts) {
  if (experts <= 0) return 0;
  const int rotation = (num_experts + experts - 1) / experts;
  return std::max({1, rotation - 1, 5 * num_experts / (4 * experts) - 1});
}

LevelSelection select_levels(const ExpertGrid& grid,
                             SelectFunction policy,
                             const Level& memory,
                             const Level& storage,
                             ForStorage for_storage,
                             Step step) {
  PECAN_EXPECTS(storage.budget.experts <= memory.budget.experts);
  LevelSelection selection;
  std::vector<int> chosen_of_layer(std::size_t(grid.num_layers));
  std::vector<std::int64_t> load(std::size_t(grid.ep_size));
  if (for_storage == ForStorage::kYes) {
    selection.persist = policy(grid, storage.history, storage.budget, step);
    selection.snapshot = selection.persist;
    for (const UnitIndex unit : selection.persist) {
      const int layer = grid.layer_of(unit);
      ++chosen_of_layer[std::size_t(layer)];
      load[std::size_t(grid.ep_rank(unit))] += grid.bytes_of(layer);
    }
  }
  // As if what storage takes were saved in memory already, so that the rest is what comes after.
  SelectionHistory history = memory.history;
  history.saved(selection.persist, step);
  SelectionBudget rest = memory.budget;
  const int most = chosen_of_layer.empty() ? 0 : std::ranges::max(chosen_of_layer);
  rest.experts = std::max(0, memory.budget.experts - most);
  rest.rank_bytes -= std::ranges::max(load);
  if (rest.experts > 0) {
    for (const UnitIndex unit : policy(grid, history, rest, step)) {
      if (std::ranges::count(selection.persist, unit) == 0) selection.snapshot.push_back(unit);
    }
  }
  std::ranges::sort(selection.snapshot);
  return selection;
}

std::vector<int> rotation_slots(const ExpertGrid& grid,
                                SelectFunction policy,
                                const SelectionBudget& budget,
                                int first_budget,
                                Step step) {
  PECAN_EXPECTS(budget.experts > 0);
  const int num_slots = (grid.num_experts + budget.experts - 1) / budget.experts;
  std::vector<int> slots(std::size_t(grid.num_units()), -1);
  SelectionHistory history = SelectionHistory::uniform(grid, first_budget, step);
  for (int slot = 0; slot < num_slots; ++slot) {
    const Step next{step.value + slot + 1};
    const std::vector<UnitIndex> units = policy(grid, history, budget, next);
    history.saved(units, next);
    for (const UnitIndex unit : units) {
      int& mine = slots[grid.index(unit)];
      if (mine < 0) mine = slot;
    }
  }
  // A policy that does not reach every expert within a rotation leaves the rest to the last file.
  std::ranges::replace(slots, -1, num_slots - 1);
  return slots;
}

}  // namespace pecan::checkpoint
