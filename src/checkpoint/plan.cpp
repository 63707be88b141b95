#include <algorithm>
#include <set>
#include <tuple>

#include <pecan/checkpoint/plan.hpp>

namespace pecan::checkpoint {
namespace {

struct Pending {
  PlannedWrite write;
  int turn = 0;  ///< 0: a single holder, 1: expert, 2: non-expert
  std::uint64_t bytes = 0;
};

}  // namespace

std::vector<UnitGroup> unit_groups(const StateCatalog& catalog) {
  std::set<UnitGroup> groups;
  for (const StateItem& item : catalog.items) groups.emplace(item.unit, item.group);
  return {groups.begin(), groups.end()};
}

SavePlan plan_save(const StateCatalog& catalog, const SaveRequest& request) {
  std::vector<bool> selected(catalog.units.size());
  for (const UnitIndex unit : request.units) selected[std::size_t(unit.value)] = true;

  std::vector<Pending> pending;
  for (std::size_t i = 0; i < catalog.items.size(); ++i) {
    const StateItem& item = catalog.items[i];
    const bool expert = catalog.units[std::size_t(item.unit.value)].is_expert();
    const bool always = !expert || std::ranges::count(request.always_saved, item.group) > 0;
    if (!always && !selected[std::size_t(item.unit.value)]) continue;
    int slot = kStateSlot;
    if (!always) slot = request.slots.empty() ? 0 : request.slots[std::size_t(item.unit.value) - 1];
    for (std::size_t b = 0; b < item.blocks.size(); ++b) {
      const StateBlock& part = item.blocks[b];
      const int turn = part.holders.size() == 1 ? 0 : expert ? 1 : 2;
      const std::uint64_t bytes =
          std::uint64_t(part.block.extent.num_elements()) * size_of(item.dtype);
      pending.push_back({{ItemIndex{std::int32_t(i)}, int(b), Rank{}, slot}, turn, bytes});
    }
  }
  std::ranges::stable_sort(pending, [](const Pending& a, const Pending& b) {
    return std::tuple(a.turn, b.bytes) < std::tuple(b.turn, a.bytes);
  });

  SavePlan plan;
  plan.slotted = !request.slots.empty();
  plan.rank_bytes.resize(std::size_t(catalog.world_size));
  plan.writes.reserve(pending.size());
  for (Pending& next : pending) {
    const StateItem& item = catalog.items[std::size_t(next.write.item.value)];
    const auto& holders = item.blocks[std::size_t(next.write.block)].holders;
    next.write.writer = *std::ranges::min_element(
        holders, {}, [&](Rank rank) { return plan.rank_bytes[std::size_t(rank.value)]; });
    plan.rank_bytes[std::size_t(next.write.writer.value)] += next.bytes;
    plan.writes.push_back(next.write);
  }
  std::ranges::sort(plan.writes, {}, [](const PlannedWrite& write) {
    return std::pair(write.item, write.block);
  });
  return plan;
}

std::string shard_name(Rank rank, int slot, const SavePlan& plan) {
  if (slot == kStateSlot) return fmt::format("rank-{:05}.state.h5", rank.value);
  if (!plan.slotted) return fmt::format("rank-{:05}.experts.h5", rank.value);
  return fmt::format("rank-{:05}.experts-{:02}.h5", rank.value, slot);
}

std::string index_name(Rank rank) {
  return fmt::format("rank-{:05}.index.json", rank.value);
}

std::vector<RoleGroup> always_saved_groups(const std::vector<std::string>& names) {
  std::vector<RoleGroup> groups;
  for (const std::string& name : names) {
    PECAN_VALIDATE(name == "weight" || name == "master" || name == "moments",
                   ConfigError,
                   "checkpoint.pec.always_saved: \"{}\" is no role group of an expert; use weight, "
                   "master or moments",
                   name);
    groups.push_back(role_group_from_name(name));
  }
  return groups;
}

}  // namespace pecan::checkpoint
