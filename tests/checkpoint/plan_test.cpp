#include <algorithm>
#include <map>
#include <set>

#include <pecan/checkpoint/plan.hpp>
#include <pecan/checkpoint/select.hpp>

#include "checkpoint/job.hpp"
#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::checkpoint;

TEST_CASE("every selected block has one writer among its holders, and nothing else is written",
          "[plan]") {
  for (const auto& [ep, edp] : {std::pair(1, 1), {2, 1}, {4, 1}, {2, 2}, {1, 4}}) {
    const StateCatalog catalog = test::make_catalog({2, 4, ep, edp});
    for (const bool weights_always : {false, true}) {
      SaveRequest request;
      request.units = {UnitIndex{2}, UnitIndex{7}};
      if (weights_always) request.always_saved = {RoleGroup::kWeight};
      const SavePlan plan = plan_save(catalog, request);
      std::set<std::pair<ItemIndex, int>> written;
      std::vector<std::uint64_t> bytes(std::size_t(catalog.world_size));
      for (const PlannedWrite& write : plan.writes) {
        const StateItem& item = catalog.items[std::size_t(write.item.value)];
        const StateBlock& part = item.blocks[std::size_t(write.block)];
        REQUIRE(written.emplace(write.item, write.block).second);
        REQUIRE(std::ranges::count(part.holders, write.writer) == 1);
        bytes[std::size_t(write.writer.value)] +=
            std::uint64_t(part.block.extent.num_elements()) * size_of(item.dtype);
        const bool always =
            item.unit.value == 0 || (weights_always && item.group == RoleGroup::kWeight);
        REQUIRE(write.slot == (always ? kStateSlot : 0));
      }
      CHECK(bytes == plan.rank_bytes);
      for (std::size_t i = 0; i < catalog.items.size(); ++i) {
        const StateItem& item = catalog.items[i];
        const bool wanted = item.unit.value == 0 || std::ranges::count(request.units, item.unit) ||
                            std::ranges::count(request.always_saved, item.group);
        for (std::size_t b = 0; b < item.blocks.size(); ++b) {
          REQUIRE(written.contains({ItemIndex{int(i)}, int(b)}) == wanted);
        }
      }
      CHECK(plan_save(catalog, request).writes == plan.writes);
    }
  }
}

TEST_CASE("replicated blocks go to the least loaded holder", "[plan]") {
  // Four equal replicated items beside 40 bytes that rank 1 must write: 3 go to rank 0.
  StateCatalog catalog;
  catalog.world_size = 2;
  catalog.units = {{"non_expert", kNoLayer, ExpertId{-1}}};
  StateItem item{"a", "weight", UnitIndex{0}};
  item.global_shape = Shape{10};
  item.blocks = {{Block::whole(item.global_shape), {Rank{1}}}};
  catalog.items.push_back(item);
  item.blocks[0].holders = {Rank{0}, Rank{1}};
  item.global_shape = Shape{5};
  item.blocks[0].block = Block::whole(item.global_shape);
  for (const char* name : {"b", "c", "d", "e"}) {
    item.name = name;
    catalog.items.push_back(item);
  }
  const SavePlan plan = plan_save(catalog, {});
  CHECK(plan.rank_bytes == std::vector<std::uint64_t>{60, 60});
  // Largest first bounds the imbalance by one block, whatever the sizes.
  for (int largest = 1; largest < 40; ++largest) {
    catalog.items.back().global_shape = Shape{largest};
    catalog.items.back().blocks[0].block = Block::whole(Shape{largest});
    const auto loads = plan_save(catalog, {}).rank_bytes;
    const auto [least, most] = std::ranges::minmax(loads);
    CHECK(most - least <= 4 * std::uint64_t(std::max(largest, 5)));
  }
}

TEST_CASE("sharding decides who writes what several ranks hold", "[plan]") {
  using config::WriteSharding;
  const auto experts_of = [](const StateCatalog& catalog, WriteSharding sharding) {
    SaveRequest request;
    for (int u = 1; u < int(catalog.units.size()); ++u) request.units.push_back(UnitIndex{u});
    request.sharding = sharding;
    std::map<UnitIndex, std::set<Rank>> writers;
    for (const PlannedWrite& write : plan_save(catalog, request).writes) {
      const UnitIndex unit = catalog.items[std::size_t(write.item.value)].unit;
      writers[unit].insert(write.writer);
    }
    return writers;
  };
  // Ranks 0 and 2 hold experts 0, 1; ranks 1 and 3 hold 2, 3; all hold the rest.
  const StateCatalog catalog = test::make_catalog({2, 4, 2, 2});
  auto baseline = experts_of(catalog, WriteSharding::kRank0);
  for (int layer = 0; layer < 2; ++layer) {
    for (int expert = 0; expert < 4; ++expert)
      CHECK(baseline[UnitIndex{1 + layer * 4 + expert}] == std::set{Rank{expert / 2}});
  }
  for (const WriteSharding sharding : {WriteSharding::kEqual, WriteSharding::kAdaptive}) {
    auto dealt = experts_of(catalog, sharding);
    std::map<Rank, int> units;
    for (int u = 1; u <= 8; ++u) {
      REQUIRE(dealt[UnitIndex{u}].size() == 1);  // whole
      ++units[*dealt[UnitIndex{u}].begin()];
    }
    CHECK(units == std::map<Rank, int>{{Rank{0}, 2}, {Rank{1}, 2}, {Rank{2}, 2}, {Rank{3}, 2}});
  }
}

TEST_CASE("experts are imbalanced exactly where equation 9 says so", "[plan]") {
  int even = 0, uneven = 0;
  for (const int layers : {1, 2, 3, 4}) {
    for (const auto& [ep, edp] : {std::pair(1, 2), {2, 1}, {2, 2}, {4, 1}, {2, 3}, {4, 2}}) {
      const StateCatalog catalog = test::make_catalog({layers, 4, ep, edp});
      const ExpertGrid grid = expert_grid(catalog);
      for (int budget = 1; budget <= 4; ++budget) {
        SaveRequest request;
        request.sharding = config::WriteSharding::kEqual;
        SelectionHistory history = SelectionHistory::uniform(grid, budget, Step{0});
        request.units = select_sequential(grid, history, {budget}, Step{1});
        std::vector<int> units(std::size_t(catalog.world_size));
        for (const PlannedWrite& write : plan_save(catalog, request).writes) {
          const StateItem& item = catalog.items[std::size_t(write.item.value)];
          if (item.unit.value > 0 && item.dataset == "weight")
            ++units[std::size_t(write.writer.value)];
        }
        const bool balanced = budget * layers % ep == 0 && budget * layers / ep % edp == 0;
        const auto [least, most] = std::ranges::minmax(units);
        INFO("layers " << layers << " ep " << ep << " edp " << edp << " K " << budget);
        REQUIRE((least == most) == balanced);
        ++(balanced ? even : uneven);
      }
    }
  }
  CHECK(even > 20);
  CHECK(uneven > 20);
}

TEST_CASE("adaptive sharding evens out what the experts leave uneven", "[plan]") {
  using config::WriteSharding;
  // One expert a checkpoint on four ranks: one of them writes it, the others take the rest.
  StateCatalog catalog = test::make_catalog({1, 4, 1, 4});
  StateItem dense = catalog.items[0];
  for (int i = 0; i < 12; ++i) {
    dense.name = fmt::format("model.layers.{}.self_attn.q_proj.weight", i);
    dense.global_shape = Shape{4, 6};
    dense.blocks[0].block = Block::whole(dense.global_shape);
    catalog.items.push_back(dense);
  }
  const auto most = [&](WriteSharding sharding) {
    SaveRequest request{{UnitIndex{2}}, {}, {}, sharding};
    return std::ranges::max(plan_save(catalog, request).rank_bytes);
  };
  CHECK(most(WriteSharding::kRank0) > most(WriteSharding::kEqual));
  CHECK(most(WriteSharding::kEqual) > most(WriteSharding::kAdaptive));
  CHECK(replicated_bytes(catalog) > 0);
  CHECK(replicated_bytes(test::make_catalog({1, 4, 1, 1})) == 0);
}

TEST_CASE("a snapshot is a checkpoint's plan and more experts, with the same writers", "[plan]") {
  const StateCatalog catalog = test::make_catalog({2, 4, 2, 2});
  const SavePlan stored = plan_save(catalog, {{UnitIndex{4}}, {RoleGroup::kWeight}});
  const SavePlan snapshot = extend_plan(
      catalog, stored, {{UnitIndex{1}, UnitIndex{4}, UnitIndex{6}}, {RoleGroup::kWeight}});
  std::set<std::pair<ItemIndex, int>> in_storage;
  for (const PlannedWrite& write : stored.writes) {
    in_storage.emplace(write.item, write.block);
    CHECK(std::ranges::count(snapshot.writes, write) == 1);
  }
  std::vector<std::uint64_t> bytes(4);
  std::set<UnitIndex> added;
  for (const PlannedWrite& write : snapshot.writes) {
    const StateItem& item = catalog.items[std::size_t(write.item.value)];
    const StateBlock& part = item.blocks[std::size_t(write.block)];
    CHECK(std::ranges::count(part.holders, write.writer) == 1);
    bytes[std::size_t(write.writer.value)] +=
        std::uint64_t(part.block.extent.num_elements()) * size_of(item.dtype);
    if (!in_storage.contains({write.item, write.block})) added.insert(item.unit);
  }
  CHECK(bytes == snapshot.rank_bytes);
  CHECK(added == std::set{UnitIndex{1}, UnitIndex{6}});
  CHECK(std::ranges::is_sorted(snapshot.writes, {}, [](const PlannedWrite& write) {
    return std::pair(write.item, write.block);
  }));
  CHECK(extend_plan(catalog, stored, {{UnitIndex{4}}, {RoleGroup::kWeight}}).writes ==
        stored.writes);
}

TEST_CASE("files are named by rank, lifetime and slot", "[plan]") {
  SavePlan plan;
  CHECK(shard_name(Rank{3}, kStateSlot, plan) == "rank-00003.state.h5");
  CHECK(shard_name(Rank{3}, 0, plan) == "rank-00003.experts.h5");
  plan.slotted = true;
  CHECK(shard_name(Rank{12345}, 7, plan) == "rank-12345.experts-07.h5");
  CHECK(index_name(Rank{0}) == "rank-00000.index.json");
}

TEST_CASE("always-saved groups are those of experts", "[plan]") {
  // Default vectors are current wherever weights are.
  CHECK(always_saved_groups({"weight", "moments"}) ==
        std::vector{RoleGroup::kWeight, RoleGroup::kDefaultVector, RoleGroup::kMoments});
  CHECK(always_saved_groups({"master"}) ==
        std::vector{RoleGroup::kMaster, RoleGroup::kDefaultVector});
  CHECK(always_saved_groups({"moments"}) == std::vector{RoleGroup::kMoments});
  CHECK_THROWS_AS(always_saved_groups({"job"}), ConfigError);
  CHECK_THROWS_AS(always_saved_groups({"weights"}), ConfigError);
}
