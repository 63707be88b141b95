#include <cstring>
#include <vector>

#include <pecan/parallel/params.hpp>

#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::parallel;

namespace {

std::vector<ParamSpec> specs() {
  std::vector<ParamSpec> all;
  all.push_back({.name = "embed", .shape = Shape{5, 3}, .padded_rows = 8});
  all.push_back({.name = "norm", .shape = Shape{3}, .padded_rows = 3});
  for (std::int32_t e = 0; e < 4; ++e) {
    all.push_back({.name = "expert" + std::to_string(e),
                   .shape = Shape{2, 3},
                   .padded_rows = 2,
                   .layer = LayerId{0},
                   .expert = ExpertId{e}});
  }
  return all;
}

const MeshShape kMesh{.world = 4, .tp = 1, .dp = 4, .etp = 1, .ep = 2, .edp = 2};

}  // namespace

TEST_CASE("each rank holds all dense parameters and its contiguous share of the experts",
          "[parallel]") {
  for (int r = 0; r < 4; ++r) {
    ParamSet params(device::cpu(), specs(), 4, kMesh, Rank{r}, DType::kF32);
    REQUIRE(params.params().size() == 4);
    const int first = r % 2 == 0 ? 0 : 2;
    CHECK(params.params()[2].spec.name == "expert" + std::to_string(first));
    CHECK(params.params()[3].spec.name == "expert" + std::to_string(first + 1));
    CHECK_THROWS_AS(params.at("expert" + std::to_string(first == 0 ? 2 : 0)), InternalError);
    CHECK(params.num_elements() ==
          ParamSet::plan_elements(specs(), 4, kMesh, Rank{r}, DType::kF32).total());
    for (const Param& param : params.params()) {
      CHECK(reinterpret_cast<std::uintptr_t>(param.weight.memory()) % device::kBufferAlignment ==
            0);
    }
  }
}

TEST_CASE("a binding copies a block to where its item's rows lie, true rows only", "[parallel]") {
  ParamSet params(device::cpu(), specs(), 4, kMesh, Rank{1}, DType::kF32);
  StateCatalog catalog;
  catalog.world_size = 4;
  catalog.units = {{"non_expert", kNoLayer, ExpertId{-1}}};
  StateItem item{
      .name = "embed", .dataset = "weight", .unit = UnitIndex{0}, .global_shape = Shape{5, 3}};
  item.blocks = place(specs()[0], 4, kMesh);
  catalog.items = {item};
  StorageBinding binding(catalog, Rank{1});
  CHECK_THROWS_AS(binding.validate(), InternalError);
  binding.bind("embed/weight", params.at("embed").weight, Shape{0, 0});
  CHECK_NOTHROW(binding.validate());

  std::vector<float> values{1, 2, 3, 4, 5, 6};
  const Block block{Shape{3, 0}, Shape{2, 3}};
  binding.copy_in(ItemIndex{0}, block, std::as_bytes(std::span(values)));
  const auto stored = params.at("embed").weight.row_major().as<float>();
  CHECK(stored[9] == 1.0F);
  CHECK(stored[14] == 6.0F);
  CHECK(stored[15] == 0.0F);
  std::vector<float> back(6);
  binding.copy_out(ItemIndex{0}, block, std::as_writable_bytes(std::span(back)));
  CHECK(back == values);
  CHECK_THROWS_AS(
      binding.copy_out(
          ItemIndex{0}, Block{Shape{7, 0}, Shape{2, 3}}, std::as_writable_bytes(std::span(back))),
      InternalError);
}

TEST_CASE("placement covers every parameter with the ranks that hold it", "[parallel]") {
  const auto dense = place(specs()[0], 4, kMesh);
  REQUIRE(dense.size() == 1);
  CHECK(dense[0].holders.size() == 4);
  CHECK(dense[0].block == Block::whole(Shape{5, 3}));
  const auto expert = place(specs()[4], 4, kMesh);
  CHECK(expert[0].holders == std::vector<Rank>{Rank{1}, Rank{3}});
}
