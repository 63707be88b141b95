#include <algorithm>
#include <map>
#include <set>

#include <pecan/core/hash.hpp>

#include <pecan/checkpoint/plan.hpp>
#include <pecan/checkpoint/recovery.hpp>

namespace pecan::checkpoint {
namespace {

using Copies = std::map<Version, const Source*>;

/// The plan for one recovery version, if every group has its source.
std::optional<RestorePlan> plan_for(Version recovery,
                                    const std::vector<UnitGroup>& groups,
                                    const std::set<UnitGroup>& derived,
                                    const std::map<UnitGroup, Copies>& copies_of) {
  RestorePlan plan{recovery, {}};
  for (const UnitGroup& key : groups) {
    const auto found = copies_of.find(key);
    const auto after =
        found == copies_of.end() ? Copies::const_iterator{} : found->second.upper_bound(recovery);
    if (found == copies_of.end() || after == found->second.begin()) {
      if (derived.contains(key)) continue;
      return {};
    }
    const auto& [version, source] = *std::prev(after);
    const bool non_expert = key.first.value == 0;
    if (non_expert && version != recovery) return {};
    plan.restores.push_back({key.first, key.second, version, source->directory, source->tier});
  }
  return plan;
}

}  // namespace

std::uint64_t RestorePlan::hash() const {
  std::string text = fmt::format("{} {}\n", recovery.incarnation, recovery.step);
  for (const UnitRestore& restore : restores) {
    text += fmt::format("{} {} {} {} {} {}\n",
                        restore.unit,
                        name_of(restore.group),
                        restore.version.incarnation,
                        restore.version.step,
                        restore.directory,
                        int(restore.tier));
  }
  return xxh3(text);
}

std::optional<RestorePlan> plan_restore(const StateCatalog& catalog,
                                        const std::vector<Source>& sources,
                                        const std::vector<Version>& candidates) {
  std::map<UnitGroup, Copies> copies_of;
  for (const Source& source : sources) {
    const Source*& known = copies_of[{source.unit, source.group}][source.version];
    if (known == nullptr || source.tier == Tier::kMemory) known = &source;
  }
  const std::vector<UnitGroup> groups = unit_groups(catalog);
  std::set<UnitGroup> derived;
  for (const StateItem& item : catalog.items) {
    if (item.derived) derived.emplace(item.unit, item.group);
  }
  std::vector<Version> newest_first = candidates;
  std::ranges::sort(newest_first, std::ranges::greater{});
  for (const Version recovery : newest_first) {
    if (std::optional<RestorePlan> plan = plan_for(recovery, groups, derived, copies_of))
      return plan;
  }
  return {};
}

}  // namespace pecan::checkpoint
