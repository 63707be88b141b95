#include <cstring>
#include <map>
#include <vector>

#include <pecan/parallel/params.hpp>
#include <pecan/parallel/storage_binding.hpp>

#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::parallel;

namespace {

constexpr int kNumExperts = 4;

std::vector<ParamSpec> specs() {
  std::vector<ParamSpec> all;
  all.push_back({.name = "embed", .shape = Shape{5, 3}, .padded_rows = 8});
  all.push_back({.name = "norm", .shape = Shape{3}, .padded_rows = 3});
  for (std::int32_t e = 0; e < kNumExperts; ++e) {
    all.push_back({.name = "expert" + std::to_string(e),
                   .shape = Shape{2, 3},
                   .padded_rows = 2,
                   .layer = LayerId{0},
                   .expert = ExpertId{e}});
  }
  return all;
}

/// One of each way to cut a parameter, over three stages.
std::vector<ParamSpec> cut_specs() {
  using enum TensorSplit;
  std::vector<ParamSpec> all{
      {.name = "vocabulary", .shape = Shape{14, 3}, .padded_rows = 16, .split = kRows},
      {.name = "norm",
       .shape = Shape{6},
       .padded_rows = 6,
       .replica_gradient = ReplicaGradient::kPartial,
       .first_stage = 1,
       .last_stage = 1},
      {.name = "keys",
       .shape = Shape{8, 6},
       .padded_rows = 8,
       .split = kRows,
       .num_parts = 2,
       .replica_gradient = ReplicaGradient::kPartial,
       .first_stage = 1,
       .last_stage = 1},
      {.name = "output",
       .shape = Shape{5, 8},
       .padded_rows = 5,
       .split = kColumns,
       .first_stage = 1,
       .last_stage = 1},
      {.name = "tied", .shape = Shape{3, 4}, .padded_rows = 3, .first_stage = 0, .last_stage = 2},
  };
  for (std::int32_t e = 0; e < kNumExperts; ++e) {
    all.push_back({.name = "up" + std::to_string(e),
                   .shape = Shape{8, 3},
                   .padded_rows = 8,
                   .layer = LayerId{0},
                   .expert = ExpertId{e},
                   .split = kRows,
                   .first_stage = 2,
                   .last_stage = 2});
    all.push_back({.name = "down" + std::to_string(e),
                   .shape = Shape{3, 8},
                   .padded_rows = 3,
                   .layer = LayerId{0},
                   .expert = ExpertId{e},
                   .split = kColumns,
                   .first_stage = 2,
                   .last_stage = 2});
  }
  return all;
}

const MeshShape kMesh{.world = 4, .tp = 1, .dp = 4, .etp = 1, .ep = 2, .edp = 2};

const std::vector<MeshShape> kMeshes{
    {.world = 1},
    {.world = 4, .tp = 1, .dp = 4, .etp = 1, .ep = 2, .edp = 2},
    {.world = 4, .tp = 2, .dp = 2, .etp = 1, .ep = 4, .edp = 1},
    {.world = 4, .tp = 4, .dp = 1, .etp = 2, .ep = 1, .edp = 2},
    {.world = 8, .tp = 4, .dp = 2, .etp = 2, .ep = 2, .edp = 2},
    {.world = 16, .tp = 2, .dp = 8, .etp = 1, .ep = 4, .edp = 4},
};

/// Adds one to each element of `block` in a row-major tensor of `shape`.
void count_block(const Shape& shape, const Block& block, std::vector<int>& counts) {
  const std::int64_t width = shape.num_dims() > 1 ? shape[1] : 1;
  const std::int64_t columns = block.extent.num_dims() > 1 ? block.extent[1] : 1;
  const std::int64_t first_column = block.offset.num_dims() > 1 ? block.offset[1] : 0;
  for (std::int64_t row = 0; row < block.extent[0]; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      ++counts.at(std::size_t((block.offset[0] + row) * width + first_column + column));
    }
  }
}

}  // namespace

TEST_CASE("each rank holds all dense parameters and its contiguous share of the experts",
          "[parallel]") {
  for (int r = 0; r < 4; ++r) {
    ParamSet params(device::cpu(), specs(), kNumExperts, kMesh, Rank{r}, DType::kF32);
    REQUIRE(params.params().size() == 4);
    const int first = r % 2 == 0 ? 0 : 2;
    CHECK(params.params()[2].spec.name == "expert" + std::to_string(first));
    CHECK(params.params()[3].spec.name == "expert" + std::to_string(first + 1));
    CHECK_THROWS_AS(params.at("expert" + std::to_string(first == 0 ? 2 : 0)), InternalError);
    for (const Param& param : params.params()) {
      CHECK(reinterpret_cast<std::uintptr_t>(param.weight.memory()) % device::kBufferAlignment ==
            0);
    }
  }
}

TEST_CASE("a rank's state takes the bytes that follow from its parameters", "[parallel]") {
  const auto bytes = [](const MeshShape& mesh, Sharding sharding, DType dtype) {
    const MeshPosition position = position_of(mesh, Rank{0});
    const ParamLayout layout = plan_layout(specs(), kNumExperts, mesh, position, dtype);
    return plan_state_memory(layout, sharding, position, dtype).bytes;
  };
  // Each parameter begins at a multiple of 64 bytes, 16 numbers of f32: 8 x 3 takes 32 of them, 3
  // take 16, each of the two experts 16.
  const StateBytes whole = bytes(kMesh, Sharding::kNone, DType::kF32);
  CHECK(whole.weights == 4 * 80);
  CHECK(whole.masters == 0);
  CHECK(whole.gradients == 4 * 80);
  CHECK(whole.moment == 4 * 80);
  const StateBytes sharded = bytes(kMesh, Sharding::kOptimizer, DType::kF32);
  CHECK(sharded.weights == whole.weights);
  CHECK(sharded.gradients == whole.gradients);
  CHECK(sharded.moment < whole.moment);
  const StateBytes rounded = bytes(kMesh, Sharding::kNone, DType::kBF16);
  CHECK(rounded.masters > 0);
  CHECK(rounded.weights < whole.weights);
}

TEST_CASE("a binding copies a block to where its item's rows lie, true rows only", "[parallel]") {
  ParamSet params(device::cpu(), specs(), kNumExperts, kMesh, Rank{1}, DType::kF32);
  StateCatalog catalog;
  catalog.world_size = 4;
  catalog.units = {{"non_expert", kNoLayer, ExpertId{-1}}};
  StateItem item{
      .name = "embed", .dataset = "weight", .unit = UnitIndex{0}, .global_shape = Shape{5, 3}};
  item.blocks = place(specs(), kNumExperts, kMesh, Sharding::kNone, DType::kF32)[0];
  catalog.items = {item};
  device::Stream stream{device::cpu()};
  StorageBinding binding(catalog, Rank{1}, stream);
  CHECK_THROWS_AS(binding.validate(), InternalError);
  binding.bind("embed/weight", params.at("embed").weight, Shape{0, 0}, Memory::kDevice);
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
  const auto placed = place(specs(), kNumExperts, kMesh, Sharding::kNone, DType::kF32);
  REQUIRE(placed.size() == specs().size());
  REQUIRE(placed[0].size() == 1);
  CHECK(placed[0][0].holders.size() == 4);
  CHECK(placed[0][0].block == Block::whole(Shape{5, 3}));
  REQUIRE(placed[4].size() == 1);
  CHECK(placed[4][0].holders == std::vector<Rank>{Rank{1}, Rank{3}});
}

TEST_CASE("blocks of any layout cover each parameter once, and each rank owns what is said of it",
          "[parallel]") {
  for (const MeshShape& mesh : kMeshes) {
    for (const Sharding sharding : {Sharding::kNone, Sharding::kOptimizer, Sharding::kGradients}) {
      CAPTURE(mesh.world, mesh.tp, mesh.ep, mesh.etp, int(sharding));
      const auto all = cut_specs();
      const auto placed = place(all, kNumExperts, mesh, sharding, DType::kF64);
      REQUIRE(placed.size() == all.size());
      std::map<std::string, std::map<int, std::vector<Block>>> of_rank;
      for (std::size_t i = 0; i < all.size(); ++i) {
        std::vector<int> counts(std::size_t(all[i].shape.num_elements()), 0);
        for (const StateBlock& block : placed[i]) {
          REQUIRE_FALSE(block.holders.empty());
          count_block(all[i].shape, block.block, counts);
          for (const Rank holder : block.holders)
            of_rank[all[i].name][holder.value].push_back(block.block);
        }
        CAPTURE(all[i].name);
        CHECK(counts == std::vector<int>(counts.size(), 1));
      }
      for (int r = 0; r < mesh.world; ++r) {
        const ParamSet params(
            device::cpu(), all, kNumExperts, mesh, Rank{r}, DType::kF64, sharding);
        for (const Param& param : params.params()) {
          CAPTURE(r, param.spec.name);
          const Block owned = param.owned_block();
          const auto& said = of_rank[param.spec.name][r];
          if (owned.extent.num_elements() == 0) {
            CHECK(said.empty());
          } else {
            CHECK(said == std::vector<Block>{owned});
          }
        }
      }
    }
  }
}
