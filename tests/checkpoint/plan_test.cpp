#include <algorithm>
#include <set>

#include <pecan/checkpoint/plan.hpp>

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

TEST_CASE("files are named by rank, lifetime and slot", "[plan]") {
  SavePlan plan;
  CHECK(shard_name(Rank{3}, kStateSlot, plan) == "rank-00003.state.h5");
  CHECK(shard_name(Rank{3}, 0, plan) == "rank-00003.experts.h5");
  plan.slotted = true;
  CHECK(shard_name(Rank{12345}, 7, plan) == "rank-12345.experts-07.h5");
  CHECK(index_name(Rank{0}) == "rank-00000.index.json");
}

TEST_CASE("always-saved groups are those of experts", "[plan]") {
  CHECK(always_saved_groups({"weight", "moments"}) ==
        std::vector{RoleGroup::kWeight, RoleGroup::kMoments});
  CHECK_THROWS_AS(always_saved_groups({"job"}), ConfigError);
  CHECK_THROWS_AS(always_saved_groups({"weights"}), ConfigError);
}
