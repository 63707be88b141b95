#include <algorithm>
#include <optional>
#include <random>

#include <pecan/checkpoint/plan.hpp>
#include <pecan/checkpoint/recovery.hpp>

#include "checkpoint/job.hpp"
#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::checkpoint;

namespace {

/// A non-expert unit and two experts, of one group each.
StateCatalog small_catalog() {
  StateCatalog catalog;
  catalog.num_moe_layers = 1;
  catalog.num_experts = 2;
  catalog.units = {{"non_expert", kNoLayer, ExpertId{-1}},
                   {"layers.0.experts.0", LayerId{0}, ExpertId{0}},
                   {"layers.0.experts.1", LayerId{0}, ExpertId{1}}};
  for (int unit = 0; unit < 3; ++unit) {
    StateItem item{fmt::format("item{}", unit), "weight", UnitIndex{unit}};
    item.global_shape = Shape{2};
    item.blocks = {{Block::whole(item.global_shape), {Rank{0}}}};
    catalog.items.push_back(item);
  }
  return catalog;
}

Version at(int step) {
  return {Incarnation{0}, Step{step}};
}

/// The definition, tried on every choice of versions: the largest t, then the newest sources.
std::optional<std::vector<int>> brute_force(const std::vector<Source>& sources,
                                            const std::vector<Version>& candidates,
                                            int last_step) {
  std::optional<std::vector<int>> best;
  const auto exists = [&](int unit, int step) {
    return std::ranges::any_of(sources, [&](const Source& source) {
      return source.unit.value == unit && source.version == at(step);
    });
  };
  for (int t = 1; t <= last_step; ++t) {
    if (std::ranges::count(candidates, at(t)) == 0) continue;
    for (int a = 1; a <= t; ++a) {
      for (int b = 1; b <= t; ++b) {
        if (!exists(0, t) || !exists(1, a) || !exists(2, b)) continue;
        const std::vector<int> choice{t, a, b};
        if (!best || choice > *best) best = choice;
      }
    }
  }
  return best;
}

}  // namespace

TEST_CASE("the restore plan is the best of all choices, in every small case", "[restore_plan]") {
  const StateCatalog catalog = small_catalog();
  constexpr int kSteps = 3;
  int without = 0;
  // One bit for each (unit, step) that has a source and for each step that is a candidate.
  for (int bits = 0; bits < 1 << (4 * kSteps); ++bits) {
    std::vector<Source> sources;
    std::vector<Version> candidates;
    for (int step = 1; step <= kSteps; ++step) {
      for (int unit = 0; unit < 3; ++unit) {
        if (bits >> (unit * kSteps + step - 1) & 1) {
          sources.push_back(
              {UnitIndex{unit}, RoleGroup::kWeight, at(step), step_directory_name(Step{step})});
        }
      }
      if (bits >> (3 * kSteps + step - 1) & 1) candidates.push_back(at(step));
    }
    const auto expected = brute_force(sources, candidates, kSteps);
    const auto plan = plan_restore(catalog, sources, candidates);
    REQUIRE(plan.has_value() == expected.has_value());
    if (!plan) {
      ++without;
      continue;
    }
    REQUIRE(plan->recovery == at((*expected)[0]));
    REQUIRE(plan->restores.size() == 3);
    for (std::size_t unit = 0; unit < 3; ++unit) {
      REQUIRE(plan->restores[unit].version == at((*expected)[unit]));
      REQUIRE(plan->restores[unit].directory == step_directory_name(Step{(*expected)[unit]}));
    }
  }
  CHECK(without > 0);
}

TEST_CASE("groups of a unit are planned on their own, all non-expert ones at the same step",
          "[restore_plan]") {
  const StateCatalog catalog = test::make_catalog({1, 2, 1, 1});
  std::vector<Source> sources;
  for (int step = 1; step <= 2; ++step) {
    for (const auto& [unit, group] : unit_groups(catalog)) {
      sources.push_back({unit, group, at(step), step_directory_name(Step{step})});
    }
  }
  const auto drop = [&](int unit, RoleGroup group, int step) {
    std::erase_if(sources, [&](const Source& source) {
      return source.unit.value == unit && source.group == group && source.version == at(step);
    });
  };
  drop(1, RoleGroup::kMoments, 2);
  auto plan = plan_restore(catalog, sources, {at(1), at(2)});
  REQUIRE(plan);
  CHECK(plan->recovery == at(2));
  for (const UnitRestore& restore : plan->restores) {
    const bool stale = restore.unit.value == 1 && restore.group == RoleGroup::kMoments;
    CHECK(restore.version == at(stale ? 1 : 2));
  }
  drop(0, RoleGroup::kJob, 2);
  plan = plan_restore(catalog, sources, {at(2), at(1)});
  REQUIRE(plan);
  CHECK(plan->recovery == at(1));
}

TEST_CASE("equal plans hash equal, and any difference shows", "[restore_plan]") {
  const StateCatalog catalog = small_catalog();
  std::vector<Source> sources;
  for (int unit = 0; unit < 3; ++unit) {
    sources.push_back({UnitIndex{unit}, RoleGroup::kWeight, at(1), "step-00000001"});
  }
  const auto plan = plan_restore(catalog, sources, {at(1)});
  std::shuffle(sources.begin(), sources.end(), std::mt19937(7));
  const auto again = plan_restore(catalog, sources, {at(1)});
  REQUIRE(plan);
  REQUIRE(again);
  CHECK(plan->hash() == again->hash());
  RestorePlan other = *plan;
  other.restores[1].version.incarnation = Incarnation{1};
  CHECK(other.hash() != plan->hash());
  other = *plan;
  other.recovery.step = Step{2};
  CHECK(other.hash() != plan->hash());
}
