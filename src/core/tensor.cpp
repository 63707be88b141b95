#include <algorithm>
#include <limits>
#include <utility>

#include <fmt/ranges.h>

#include <pecan/core/tensor.hpp>
#include <pecan/core/text.hpp>

namespace pecan {
namespace {

struct DTypeFacts {
  DType dtype;
  std::string_view name;
  std::size_t num_bytes;
};
constexpr std::array<DTypeFacts, 6> kDTypes{{{DType::kF32, "f32", 4},
                                             {DType::kF64, "f64", 8},
                                             {DType::kBF16, "bf16", 2},
                                             {DType::kI64, "i64", 8},
                                             {DType::kI32, "i32", 4},
                                             {DType::kU8, "u8", 1}}};

const DTypeFacts& facts_of(DType dtype) {
  const auto it = std::ranges::find(kDTypes, dtype, &DTypeFacts::dtype);
  PECAN_VALIDATE(it != kDTypes.end(), InternalError, "{} is no element type", int(dtype));
  return *it;
}

/// Shape of rows [first, first + count) of `shape`, and the elements before them.
std::pair<Shape, std::int64_t> row_range(const Shape& shape,
                                         std::int64_t first,
                                         std::int64_t count) {
  PECAN_VALIDATE(shape.num_dims() >= 1 && first >= 0 && count >= 0 && first + count <= shape[0],
                 ShapeError,
                 "rows [{}, {}) do not lie in a tensor of shape {}",
                 first,
                 first + count,
                 shape.to_string());
  Shape part = shape;
  part[0] = count;
  Shape row = shape;
  row[0] = 1;
  return {part, first * row.num_elements()};
}

void validate_reshape(const Shape& from, const Shape& to) {
  PECAN_VALIDATE(from.num_elements() == to.num_elements(),
                 ShapeError,
                 "a tensor of shape {} cannot be seen as {}: the numbers of elements differ",
                 from.to_string(),
                 to.to_string());
}

}  // namespace

std::size_t size_of(DType dtype) {
  return facts_of(dtype).num_bytes;
}
std::string_view name_of(DType dtype) {
  return facts_of(dtype).name;
}

DType dtype_from_name(std::string_view name) {
  const auto it = std::ranges::find(kDTypes, name, &DTypeFacts::name);
  PECAN_VALIDATE(it != kDTypes.end(),
                 CorruptionError,
                 "\"{}\" is no element type (f32, f64, bf16, i64, i32, u8)",
                 shortened(name));
  return it->dtype;
}

Shape::Shape(std::initializer_list<std::int64_t> extents)
    : Shape(std::span<const std::int64_t>(extents.begin(), extents.size())) {}

Shape::Shape(std::span<const std::int64_t> extents) : num_dims_(int(extents.size())) {
  PECAN_VALIDATE(extents.size() <= std::size_t(kMaxDims),
                 ShapeError,
                 "a tensor of {} dims is one of more than {}",
                 extents.size(),
                 kMaxDims);
  for (const std::int64_t extent : extents) {
    PECAN_VALIDATE(extent >= 0, ShapeError, "an extent of {} is negative", extent);
  }
  std::ranges::copy(extents, extents_.begin());
}

std::int64_t Shape::num_elements() const {
  std::int64_t product = 1;
  for (const std::int64_t extent : extents()) {
    PECAN_VALIDATE(extent == 0 || product <= std::numeric_limits<std::int64_t>::max() / extent,
                   ShapeError,
                   "a tensor of shape {} has more elements than 64 bits can count",
                   to_string());
    product *= extent;
  }
  return product;
}

std::string Shape::to_string() const {
  return fmt::format("[{}]", fmt::join(extents(), ", "));
}

Block Block::whole(const Shape& shape) {
  Block block{shape, shape};
  for (int dim = 0; dim < shape.num_dims(); ++dim) block.offset[dim] = 0;
  return block;
}

bool Block::fits(const Shape& shape) const {
  if (offset.num_dims() != shape.num_dims() || extent.num_dims() != shape.num_dims()) return false;
  for (int dim = 0; dim < shape.num_dims(); ++dim) {
    if (offset[dim] < 0 || extent[dim] < 0 || offset[dim] > shape[dim] - extent[dim]) return false;
  }
  return true;
}

TensorView TensorView::reshaped(const Shape& other) const {
  validate_reshape(shape, other);
  return {data, dtype, other};
}

TensorView TensorView::rows(std::int64_t first, std::int64_t count) const {
  const auto [part, skipped] = row_range(shape, first, count);
  return {data == nullptr ? nullptr : data + std::size_t(skipped) * size_of(dtype), dtype, part};
}

ConstTensorView ConstTensorView::reshaped(const Shape& other) const {
  validate_reshape(shape, other);
  return {data, dtype, other};
}

ConstTensorView ConstTensorView::rows(std::int64_t first, std::int64_t count) const {
  const auto [part, skipped] = row_range(shape, first, count);
  return {data == nullptr ? nullptr : data + std::size_t(skipped) * size_of(dtype), dtype, part};
}

}  // namespace pecan
