#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include <pecan/checkpoint/plan.hpp>

namespace pecan::checkpoint {
namespace {

using config::WriteSharding;

struct Pending {
  PlannedWrite write;
  int turn = 0;  ///< 0: a single holder, 1: expert, 2: non-expert
  std::uint64_t bytes = 0;
};

/// What a request says of every block.
class Wanted {
 public:
  Wanted(const StateCatalog& catalog, const SaveRequest& request)
      : catalog_(catalog), request_(request), selected_(catalog.units.size()) {
    for (const UnitIndex unit : request.units) selected_[std::size_t(unit.value)] = true;
  }
  /// File slot of an item's blocks; none if they are not saved.
  [[nodiscard]] std::optional<int> slot(const StateItem& item) const {
    const auto unit = std::size_t(item.unit.value);
    const bool always = !catalog_.units[unit].is_expert() ||
                        std::ranges::count(request_.always_saved, item.group) > 0;
    if (always) return kStateSlot;
    if (!selected_[unit]) return {};
    return request_.slots.empty() ? 0 : request_.slots[unit - 1];
  }

 private:
  const StateCatalog& catalog_;
  const SaveRequest& request_;
  std::vector<bool> selected_;
};

std::uint64_t bytes_of(const StateItem& item, const StateBlock& part) {
  return std::uint64_t(part.block.extent.num_elements()) * size_of(item.dtype);
}

/// Deals whole experts to their replicas in turn: for each set of experts that the same ranks hold,
/// in order of their units.
class Replicas {
 public:
  /// Index into the holders of any of the unit's blocks.
  std::size_t of(UnitIndex unit, const std::vector<Rank>& holders) {
    const auto [known, is_new] = turn_of_unit_.emplace(unit, 0);
    if (is_new) known->second = next_turn_[holders.front()]++;
    return known->second % holders.size();
  }

 private:
  std::map<UnitIndex, std::size_t> turn_of_unit_;
  std::map<Rank, std::size_t> next_turn_;  ///< by lowest holder
};

}  // namespace

std::vector<UnitGroup> unit_groups(const StateCatalog& catalog) {
  std::set<UnitGroup> groups;
  for (const StateItem& item : catalog.items) groups.emplace(item.unit, item.group);
  return {groups.begin(), groups.end()};
}

SavePlan plan_save(const StateCatalog& catalog, const SaveRequest& request) {
  SavePlan none;
  none.slotted = !request.slots.empty();
  none.rank_bytes.resize(std::size_t(catalog.world_size));
  return extend_plan(catalog, std::move(none), request);
}

SavePlan extend_plan(const StateCatalog& catalog, SavePlan plan, const SaveRequest& request) {
  const Wanted wanted(catalog, request);
  const auto is_expert = [&](const StateItem& item) {
    return catalog.units[std::size_t(item.unit.value)].is_expert();
  };
  std::vector<std::uint64_t> non_expert_bytes(plan.rank_bytes.size());
  for (const PlannedWrite& write : plan.writes) {
    const StateItem& item = catalog.items[std::size_t(write.item.value)];
    if (!is_expert(item))
      non_expert_bytes[std::size_t(write.writer.value)] +=
          bytes_of(item, item.blocks[std::size_t(write.block)]);
  }
  std::vector<Pending> pending;
  auto known = plan.writes.begin();  // both ascend by (item, block)
  for (std::size_t i = 0; i < catalog.items.size(); ++i) {
    const StateItem& item = catalog.items[i];
    const std::optional<int> slot = wanted.slot(item);
    for (std::size_t b = 0; b < item.blocks.size(); ++b) {
      const bool is_known = known != plan.writes.end() && known->item.value == std::int32_t(i) &&
                            known->block == int(b);
      if (is_known) ++known;
      if (is_known || !slot) continue;
      const StateBlock& part = item.blocks[b];
      const int turn = part.holders.size() == 1 ? 0 : is_expert(item) ? 1 : 2;
      pending.push_back(
          {{ItemIndex{std::int32_t(i)}, int(b), Rank{}, *slot}, turn, bytes_of(item, part)});
    }
  }
  // Experts in order of their units, as they are dealt in turn; the rest largest first.
  std::ranges::stable_sort(pending, [](const Pending& a, const Pending& b) {
    if (a.turn != b.turn || a.turn != 2) return a.turn < b.turn;
    return a.bytes > b.bytes;
  });

  plan.writes.reserve(plan.writes.size() + pending.size());
  const std::vector<std::uint64_t>& loads =
      request.sharding == WriteSharding::kEqual ? non_expert_bytes : plan.rank_bytes;
  Replicas replicas;
  // Dealing goes on where the plan that is extended ended, so that nobody gets two first turns.
  for (const PlannedWrite& write : plan.writes) {
    const StateItem& item = catalog.items[std::size_t(write.item.value)];
    const auto& holders = item.blocks[std::size_t(write.block)].holders;
    if (is_expert(item) && holders.size() > 1) static_cast<void>(replicas.of(item.unit, holders));
  }
  for (Pending& next : pending) {
    const StateItem& item = catalog.items[std::size_t(next.write.item.value)];
    const auto& holders = item.blocks[std::size_t(next.write.block)].holders;
    Rank writer = holders.front();
    if (request.sharding != WriteSharding::kRank0 && next.turn == 1) {
      writer = holders[replicas.of(item.unit, holders)];
    } else if (request.sharding != WriteSharding::kRank0 && next.turn == 2) {
      writer = *std::ranges::min_element(
          holders, {}, [&](Rank rank) { return loads[std::size_t(rank.value)]; });
    }
    next.write.writer = writer;
    plan.rank_bytes[std::size_t(writer.value)] += next.bytes;
    if (!is_expert(item)) non_expert_bytes[std::size_t(writer.value)] += next.bytes;
    plan.writes.push_back(next.write);
  }
  std::ranges::sort(plan.writes, {}, [](const PlannedWrite& write) {
    return std::pair(write.item, write.block);
  });
  return plan;
}

std::uint64_t replicated_bytes(const StateCatalog& catalog) {
  std::uint64_t bytes = 0;
  for (const StateItem& item : catalog.items) {
    for (const StateBlock& part : item.blocks) {
      if (part.holders.size() > 1) bytes += bytes_of(item, part);
    }
  }
  return bytes;
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
    if (name != "moments") groups.push_back(RoleGroup::kDefaultVector);
  }
  return groups;
}

}  // namespace pecan::checkpoint
