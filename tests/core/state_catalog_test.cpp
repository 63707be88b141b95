#include <pecan/core/state_catalog.hpp>

#include "support/catch.hpp"

using namespace pecan;

namespace {

StateCatalog small_catalog() {
  StateCatalog catalog;
  catalog.world_size = 2;
  catalog.num_moe_layers = 1;
  catalog.num_experts = 1;
  catalog.units = {{"non_expert", kNoLayer, ExpertId{-1}},
                   {"layers.0.experts.0", LayerId{0}, ExpertId{0}}};
  StateItem norm{.name = "model.norm.weight",
                 .dataset = "weight",
                 .unit = UnitIndex{0},
                 .global_shape = Shape{4}};
  norm.blocks = {{Block::whole(Shape{4}), {Rank{0}, Rank{1}}}};
  StateItem expert{.name = "model.layers.0.mlp.experts.0.up_proj.weight",
                   .dataset = "exp_avg",
                   .unit = UnitIndex{1},
                   .role = Role::kExpAvg,
                   .group = RoleGroup::kMoments,
                   .global_shape = Shape{4, 2}};
  expert.blocks = {{Block{Shape{0, 0}, Shape{1, 2}}, {Rank{0}}},
                   {Block{Shape{1, 0}, Shape{3, 2}}, {Rank{1}}}};
  catalog.items = {norm, expert};
  return catalog;
}

}  // namespace

TEST_CASE("a whole catalog is valid and each kind of hole is found", "[core]") {
  CHECK_NOTHROW(small_catalog().validate());
  SECTION("a gap") {
    StateCatalog catalog = small_catalog();
    catalog.items[1].blocks.pop_back();
    CHECK_THROWS_AS(catalog.validate(), InternalError);
  }
  SECTION("an overlap") {
    StateCatalog catalog = small_catalog();
    catalog.items[1].blocks[0].block.extent = Shape{2, 2};
    CHECK_THROWS_AS(catalog.validate(), InternalError);
  }
  SECTION("no holder, a repeated one, one outside of the world") {
    for (const std::vector<Rank>& holders :
         {std::vector<Rank>{}, std::vector<Rank>{Rank{0}, Rank{0}}, std::vector<Rank>{Rank{2}}}) {
      StateCatalog catalog = small_catalog();
      catalog.items[0].blocks[0].holders = holders;
      CHECK_THROWS_AS(catalog.validate(), InternalError);
    }
  }
  SECTION("a path that stands twice") {
    StateCatalog catalog = small_catalog();
    catalog.items[1].name = catalog.items[0].name;
    catalog.items[1].dataset = catalog.items[0].dataset;
    CHECK_THROWS_AS(catalog.validate(), InternalError);
  }
}

TEST_CASE("the fingerprint names the model and not the layout", "[core]") {
  const StateCatalog catalog = small_catalog();
  StateCatalog other_layout = catalog;
  other_layout.world_size = 1;
  other_layout.items[1].blocks = {{Block::whole(Shape{4, 2}), {Rank{0}}}};
  other_layout.items[0].blocks[0].holders = {Rank{0}};
  CHECK(other_layout.model_fingerprint() == catalog.model_fingerprint());
  StateCatalog other_model = catalog;
  other_model.items[1].global_shape = Shape{4, 3};
  CHECK(other_model.model_fingerprint() != catalog.model_fingerprint());
}

TEST_CASE("role groups of a unit are those of its items", "[core]") {
  const StateCatalog catalog = small_catalog();
  CHECK(catalog.groups_of(UnitIndex{0}) == std::vector<RoleGroup>{RoleGroup::kWeight});
  CHECK(catalog.groups_of(UnitIndex{1}) == std::vector<RoleGroup>{RoleGroup::kMoments});
  for (const RoleGroup group :
       {RoleGroup::kWeight, RoleGroup::kMaster, RoleGroup::kMoments, RoleGroup::kJob}) {
    CHECK(role_group_from_name(name_of(group)) == group);
  }
  CHECK_THROWS(role_group_from_name("moment"));
}
