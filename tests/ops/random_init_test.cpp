#include <pecan/core/philox.hpp>

#include <pecan/ops/random_init.hpp>

#include "ops/op_test.hpp"

namespace pecan::test {

TEST_CASE(
    "random_init: blocks of any cut and storage order hold the elements of the whole parameter") {
  const Shape global{6, 5, 4};
  for_each_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    Guarded whole(dtype, global);
    ops::init_normal(ctx, whole.storage(), global, {0, 0, 0}, 42, stream_of("w"), 0.02);
    const Values all = whole.values();
    for (std::size_t i = 0; i < all.size(); ++i) {
      const double drawn = 0.02 * philox_normal(42, stream_of("w"), i);
      CHECK(all[i] == (dtype == DType::kF32 ? double(float(drawn)) : drawn));
    }
    Guarded part(dtype, {2, 3, 4});
    ops::init_normal(ctx, part.storage(), global, {3, 1, 0}, 42, stream_of("w"), 0.02);
    const Values block = part.values();
    for (std::size_t a = 0; a < 2; ++a) {
      for (std::size_t b = 0; b < 3; ++b) {
        for (std::size_t c = 0; c < 4; ++c) {
          CHECK(block[(a * 3 + b) * 4 + c] == all[((a + 3) * 5 + b + 1) * 4 + c]);
        }
      }
    }
  });
}

TEST_CASE("random_init: a matrix cut into rows, columns or both is the same matrix") {
  constexpr std::int64_t kRows = 7, kColumns = 10;
  const Shape global{kRows, kColumns};
  for_each_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    Guarded whole(dtype, global);
    ops::init_normal(ctx, whole.storage(), global, {0, 0}, 7, stream_of("w"), 0.5);
    for (const auto& [row_parts, column_parts] :
         {std::pair{2, 1}, {7, 1}, {1, 3}, {1, 10}, {3, 4}}) {
      for (const std::int64_t panel : {0, 2}) {
        INFO(row_parts << " x " << column_parts << " blocks, panel " << panel);
        Guarded joined(dtype, global);
        const ops::ParamStorage all = joined.storage();
        for (std::int64_t i = 0; i < row_parts; ++i) {
          for (std::int64_t j = 0; j < column_parts; ++j) {
            const Shape offset{kRows * i / row_parts, kColumns * j / column_parts};
            const Shape shape{kRows * (i + 1) / row_parts - offset[0],
                              kColumns * (j + 1) / column_parts - offset[1]};
            Guarded memory(dtype, shape), logical(dtype, shape);
            const ops::ParamStorage block(
                memory.view().data,
                dtype,
                shape,
                panel == 0 ? device::StorageOrder::kRowMajor : device::StorageOrder::kRowPanels,
                panel);
            ops::init_normal(ctx, block, global, offset, 7, stream_of("w"), 0.5);
            const std::span<std::byte> bytes{logical.view().data, logical.view().num_bytes()};
            block.copy_out(Block::whole(shape), bytes);
            all.copy_in(Block{offset, shape}, bytes);
          }
        }
        CHECK(joined.values() == whole.values());
      }
    }
  });
}

TEST_CASE("random_init: a packed matrix holds the same logical elements") {
  OpContext ctx;
  const Shape shape{7, 5};
  Guarded plain(DType::kF32, shape), memory(DType::kF32, shape), logical(DType::kF32, shape);
  const ops::ParamStorage packed(
      memory.view().data, DType::kF32, shape, device::StorageOrder::kRowPanels, 3);
  ops::init_normal(ctx, plain.storage(), shape, {0, 0}, 1, 2, 1.0);
  ops::init_normal(ctx, packed, shape, {0, 0}, 1, 2, 1.0);
  packed.copy_out(Block::whole(shape), {logical.view().data, logical.view().num_bytes()});
  CHECK(logical.values() == plain.values());
  ops::init_constant(ctx, packed, 1.0);
  CHECK(memory.values() == Values(35, 1.0));
}

TEST_CASE("random_init: a block outside the parameter is refused") {
  OpContext ctx;
  Guarded block(DType::kF32, {2, 2});
  CHECK_THROWS_AS(ops::init_normal(ctx, block.storage(), {3, 3}, {2, 0}, 1, 2, 1.0), ShapeError);
}

}  // namespace pecan::test
