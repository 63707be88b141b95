#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include <pecan/core/error.hpp>

#include <pecan/device/param_storage.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::device {
namespace {

using Index = std::int64_t;

/// Calls visit(coordinates) for all of `extent`, row-major; independent of Shape's arithmetic.
void for_each_coordinate(const Shape& extent,
                         const std::function<void(const std::vector<Index>&)>& visit) {
  std::vector<Index> at(std::size_t(extent.num_dims()), 0);
  std::function<void(int)> descend = [&](int dim) {
    if (dim == extent.num_dims()) return visit(at);
    for (at[std::size_t(dim)] = 0; at[std::size_t(dim)] < extent[dim]; ++at[std::size_t(dim)]) {
      descend(dim + 1);
    }
  };
  descend(0);
}

/// Logical row-major indices of a block's elements, in the block's order.
std::vector<Index> logical_indices(const Shape& shape, const Block& block) {
  std::vector<Index> indices;
  for_each_coordinate(block.extent, [&](const std::vector<Index>& at) {
    Index index = 0;
    for (int dim = 0; dim < shape.num_dims(); ++dim) {
      index = index * shape[dim] + block.offset[dim] + at[std::size_t(dim)];
    }
    indices.push_back(index);
  });
  return indices;
}

/// Storage position of each logical element of [rows, columns], by writing the panels out one after
/// another.
std::vector<Index> panel_oracle(Index rows, Index columns, Index panel_rows) {
  std::vector<Index> position(std::size_t(rows * columns));
  Index next = 0;
  for (Index first = 0; first < rows; first += panel_rows) {
    for (Index c = 0; c < columns; ++c) {
      for (Index r = first; r < first + panel_rows && r < rows; ++r) {
        position[std::size_t(r * columns + c)] = next++;
      }
    }
  }
  return position;
}

/// All blocks of `shape`, empty ones included.
std::vector<Block> all_blocks(const Shape& shape) {
  std::vector<Block> blocks;
  Shape offsets = shape;
  for (int dim = 0; dim < shape.num_dims(); ++dim) ++offsets[dim];
  for_each_coordinate(offsets, [&](const std::vector<Index>& offset) {
    Shape extents = shape;
    for (int dim = 0; dim < shape.num_dims(); ++dim) {
      extents[dim] = shape[dim] - offset[std::size_t(dim)] + 1;
    }
    for_each_coordinate(extents, [&](const std::vector<Index>& extent) {
      blocks.push_back({Shape(offset), Shape(extent)});
    });
  });
  return blocks;
}

/// Number of elements of blocks that were copied wrongly, over every block of `shape`.
template <typename T>
int count_mistakes(const Shape& shape,
                   StorageOrder order,
                   Index panel_rows,
                   const std::vector<Index>& position) {
  const auto total = std::size_t(shape.num_elements());
  std::vector<T> stored(total);
  int mistakes = 0;
  const auto make = [&](std::vector<T>& memory) {
    return ParamStorage(
        reinterpret_cast<std::byte*>(memory.data()), kDTypeOf<T>, shape, order, panel_rows);
  };
  const ParamStorage storage = make(stored);
  for (std::size_t logical = 0; logical < total; ++logical) {
    stored[std::size_t(position[logical])] = T(logical + 1);
    mistakes += storage.stored_index(Index(logical)) != position[logical];
  }
  for (const Block& block : all_blocks(shape)) {
    const std::vector<Index> indices = logical_indices(shape, block);
    std::vector<T> out(indices.size());
    storage.copy_out(block, std::as_writable_bytes(std::span(out)));
    std::vector<T> target(total, T(77)), expected(total, T(77));
    make(target).copy_in(block, std::as_bytes(std::span(out)));
    for (std::size_t i = 0; i < indices.size(); ++i) {
      mistakes += out[i] != T(indices[i] + 1);
      expected[std::size_t(position[std::size_t(indices[i])])] = T(indices[i] + 1);
    }
    mistakes += target != expected;  // copy_in touches nothing outside of the block
  }
  return mistakes;
}

TEST_CASE("row-major blocks of any shape are copied exactly", "[device]") {
  const std::vector<Shape> shapes = {{},
                                     {0},
                                     {1},
                                     {7},
                                     {3, 4},
                                     {4, 0},
                                     {1, 5},
                                     {5, 1},
                                     {2, 3, 4},
                                     {3, 1, 2},
                                     {2, 0, 3},
                                     {2, 2, 2},
                                     {3, 2, 2},
                                     {2, 3, 2, 3},
                                     {1, 2, 1, 4}};
  for (const Shape& shape : shapes) {
    CAPTURE(shape.to_string());
    std::vector<Index> position(std::size_t(shape.num_elements()));
    std::iota(position.begin(), position.end(), 0);
    CHECK(count_mistakes<float>(shape, StorageOrder::kRowMajor, 0, position) == 0);
    CHECK(count_mistakes<std::uint8_t>(shape, StorageOrder::kRowMajor, 0, position) == 0);
  }
}

TEST_CASE("blocks of row panels are copied exactly", "[device]") {
  for (Index rows = 0; rows <= 6; ++rows) {
    for (Index columns = 0; columns <= 4; ++columns) {
      for (Index panel_rows = 1; panel_rows <= 8; ++panel_rows) {
        CAPTURE(rows, columns, panel_rows);
        const auto position = panel_oracle(rows, columns, panel_rows);
        const Shape shape{rows, columns};
        CHECK(count_mistakes<float>(shape, StorageOrder::kRowPanels, panel_rows, position) == 0);
      }
    }
  }
  const auto position = panel_oracle(5, 3, 2);
  CHECK(count_mistakes<double>({5, 3}, StorageOrder::kRowPanels, 2, position) == 0);
  CHECK(count_mistakes<std::uint8_t>({5, 3}, StorageOrder::kRowPanels, 2, position) == 0);
}

TEST_CASE("bf16 elements move as bytes", "[device]") {
  std::vector<std::uint16_t> stored = {
      0, 3, 1, 4, 2, 5};  // one panel of two rows of {0, 1, 2}, {3, 4, 5}
  const ParamStorage storage(reinterpret_cast<std::byte*>(stored.data()),
                             DType::kBF16,
                             {2, 3},
                             StorageOrder::kRowPanels,
                             2);
  CHECK(storage.num_bytes() == 12);
  std::vector<std::uint16_t> out(6);
  storage.copy_out(Block::whole({2, 3}), std::as_writable_bytes(std::span(out)));
  CHECK(out == std::vector<std::uint16_t>{0, 1, 2, 3, 4, 5});
}

TEST_CASE("views of a stored parameter", "[device]") {
  std::vector<float> memory(12);
  auto* const bytes = reinterpret_cast<std::byte*>(memory.data());
  const ParamStorage plain(bytes, DType::kF32, {3, 4});
  CHECK(plain.row_major().data == bytes);
  CHECK(plain.row_major().shape == Shape{3, 4});
  CHECK(plain.flat().shape == Shape{12});
  const ParamStorage panels(bytes, DType::kF32, {3, 4}, StorageOrder::kRowPanels, 2);
  CHECK(panels.flat().as<float>().size() == 12);
  CHECK_THROWS_AS(panels.row_major(), ShapeError);
}

TEST_CASE("blocks, spans and orders that do not fit are refused", "[device]") {
  std::vector<float> memory(12);
  auto* const bytes = reinterpret_cast<std::byte*>(memory.data());
  const ParamStorage storage(bytes, DType::kF32, {3, 4});
  std::vector<std::byte> span(16);
  CHECK_THROWS_AS(storage.copy_out({{2, 2}, {2, 2}}, span), ShapeError);
  CHECK_THROWS_AS(storage.copy_in({{0, 0}, {2, 3}}, span), ShapeError);
  CHECK_THROWS_WITH(storage.copy_in({{0, 0}, {1, 3}}, span),
                    Catch::Contains("takes 12 bytes, but the span has 16"));
  CHECK_THROWS_AS(ParamStorage(bytes, DType::kF32, {12}, StorageOrder::kRowPanels, 2), ShapeError);
  CHECK_THROWS_AS(ParamStorage(bytes, DType::kF32, {3, 4}, StorageOrder::kRowPanels, 0),
                  ShapeError);
}

}  // namespace
}  // namespace pecan::device
