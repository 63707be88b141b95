#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include <pecan/core/hash.hpp>
#include <pecan/core/state_catalog.hpp>
#include <pecan/core/text.hpp>

namespace pecan {
namespace {

constexpr std::array<std::pair<RoleGroup, std::string_view>, 5> kGroupNames{
    {{RoleGroup::kWeight, "weight"},
     {RoleGroup::kMaster, "master"},
     {RoleGroup::kMoments, "moments"},
     {RoleGroup::kJob, "job"},
     {RoleGroup::kDefaultVector, "default_vector"}}};
constexpr std::array<std::pair<Role, std::string_view>, 8> kRoleNames{
    {{Role::kWeight, "weight"},
     {Role::kMaster, "master"},
     {Role::kExpAvg, "exp_avg"},
     {Role::kExpAvgSq, "exp_avg_sq"},
     {Role::kUpdateCount, "update_count"},
     {Role::kAbsorbed, "absorbed"},
     {Role::kCounter, "counter"},
     {Role::kDefaultVector, "default_vector"}}};

bool overlap(const Block& a, const Block& b) {
  for (int dim = 0; dim < a.offset.num_dims(); ++dim) {
    if (a.offset[dim] + a.extent[dim] <= b.offset[dim] ||
        b.offset[dim] + b.extent[dim] <= a.offset[dim])
      return false;
  }
  return true;
}

void validate_blocks(const StateItem& item, int world_size) {
  std::int64_t covered = 0;
  for (std::size_t i = 0; i < item.blocks.size(); ++i) {
    const StateBlock& part = item.blocks[i];
    PECAN_VALIDATE(part.block.fits(item.global_shape),
                   InternalError,
                   "a block of {} lies outside its shape {}",
                   item.path(),
                   item.global_shape.to_string());
    const bool ascending = std::ranges::adjacent_find(part.holders, std::ranges::greater_equal{}) ==
                           part.holders.end();
    PECAN_VALIDATE(!part.holders.empty() && ascending,
                   InternalError,
                   "the holders of a block of {} are not one or more ascending ranks",
                   item.path());
    PECAN_VALIDATE(part.holders.front().value >= 0 && part.holders.back().value < world_size,
                   InternalError,
                   "a holder of {} is no rank of a world of {}",
                   item.path(),
                   world_size);
    for (std::size_t j = 0; j < i; ++j) {
      PECAN_VALIDATE(!overlap(part.block, item.blocks[j].block),
                     InternalError,
                     "blocks of {} overlap",
                     item.path());
    }
    covered += part.block.extent.num_elements();
  }
  PECAN_VALIDATE(covered == item.global_shape.num_elements(),
                 InternalError,
                 "the blocks of {} cover {} of {} elements",
                 item.path(),
                 covered,
                 item.global_shape.num_elements());
}

}  // namespace

std::string_view name_of(RoleGroup group) {
  return std::ranges::find(kGroupNames, group, &std::pair<RoleGroup, std::string_view>::first)
      ->second;
}

RoleGroup role_group_from_name(std::string_view name) {
  const auto it =
      std::ranges::find(kGroupNames, name, &std::pair<RoleGroup, std::string_view>::second);
  PECAN_VALIDATE(it != kGroupNames.end(),
                 CorruptionError,
                 "\"{}\" is no role group (weight, master, moments, job, default_vector)",
                 shortened(name));
  return it->first;
}

std::string_view name_of(Role role) {
  return std::ranges::find(kRoleNames, role, &std::pair<Role, std::string_view>::first)->second;
}

std::size_t StateItem::num_bytes() const {
  return std::size_t(global_shape.num_elements()) * size_of(dtype);
}

std::uint64_t StateCatalog::model_fingerprint() const {
  std::string text;
  for (const StateUnit& unit : units) text += fmt::format("unit {}\n", unit.name);
  for (const StateItem& item : items) {
    if (item.derived) continue;
    text += fmt::format("item {} {} {} {} {}\n",
                        item.path(),
                        item.global_shape.to_string(),
                        name_of(item.dtype),
                        item.unit.value,
                        name_of(item.group));
  }
  return xxh3(text);
}

std::vector<RoleGroup> StateCatalog::groups_of(UnitIndex unit) const {
  std::set<RoleGroup> groups;
  for (const StateItem& item : items) {
    if (item.unit == unit) groups.insert(item.group);
  }
  return {groups.begin(), groups.end()};
}

void StateCatalog::validate() const {
  PECAN_VALIDATE(!units.empty() && !units[0].is_expert(),
                 InternalError,
                 "unit 0 must be the non-expert state");
  std::set<std::string> paths;
  for (const StateItem& item : items) {
    PECAN_VALIDATE(paths.insert(item.path()).second,
                   InternalError,
                   "{} stands twice in the catalog",
                   item.path());
    PECAN_VALIDATE(item.unit.value >= 0 && std::size_t(item.unit.value) < units.size(),
                   InternalError,
                   "{} belongs to unit {} of {}",
                   item.path(),
                   item.unit,
                   units.size());
    validate_blocks(item, world_size);
  }
}

}  // namespace pecan
