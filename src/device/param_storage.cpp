#include <algorithm>
#include <array>
#include <cstring>

#include <pecan/core/error.hpp>

#include <pecan/device/copy.hpp>
#include <pecan/device/param_storage.hpp>

namespace pecan::device {
namespace {

using Index = std::int64_t;

/// Calls run(first stored element, first element of the packed block, elements) for each run of
/// `block` that is contiguous in a row-major tensor of `shape`.
template <typename Run>
void for_each_run(const Shape& shape, const Block& block, Run run) {
  // Aligned to kMaxDims by leading dims of extent 1.
  std::array<Index, kMaxDims> extent{}, offset{}, stride{};
  extent.fill(1);
  const int lead = kMaxDims - shape.num_dims();
  Index elements = 1;
  for (int dim = kMaxDims - 1; dim >= 0; --dim) {
    const auto i = std::size_t(dim);
    stride[i] = elements;
    if (dim < lead) continue;
    extent[i] = block.extent[dim - lead];
    offset[i] = block.offset[dim - lead];
    elements *= shape[dim - lead];
  }
  Index packed = 0;
  for (Index a = 0; a < extent[0]; ++a) {
    for (Index b = 0; b < extent[1]; ++b) {
      for (Index c = 0; c < extent[2]; ++c) {
        run((a + offset[0]) * stride[0] + (b + offset[1]) * stride[1] +
                (c + offset[2]) * stride[2] + offset[3],
            packed,
            extent[3]);
        packed += extent[3];
      }
    }
  }
}

/// Calls element(stored element, element of the packed block) for all of `block`, panel by panel.
template <typename Element>
void for_each_panel_element(const Shape& shape,
                            const Block& block,
                            Index panel_rows,
                            Element element) {
  const Index num_rows = shape[0], num_columns = shape[1];
  const Index row_begin = block.offset[0], row_end = row_begin + block.extent[0];
  for (Index row = row_begin; row < row_end;) {
    const Index first = row / panel_rows * panel_rows;  // of the panel
    const Index height = std::min(panel_rows, num_rows - first);
    const Index end = std::min(first + height, row_end);
    for (Index c = 0; c < block.extent[1]; ++c) {
      const Index stored = first * num_columns + (block.offset[1] + c) * height - first;
      for (Index r = row; r < end; ++r) {
        element(stored + r, (r - row_begin) * block.extent[1] + c);
      }
    }
    row = end;
  }
}

/// Copies elements of a fixed size, so that each copy is one move instruction.
template <std::size_t kSize, typename Stored, typename Packed, typename Copy>
void copy_panels(const Shape& shape,
                 const Block& block,
                 Index panel_rows,
                 Stored* stored,
                 Packed* packed,
                 Copy copy) {
  for_each_panel_element(shape, block, panel_rows, [&](Index s, Index p) {
    copy(stored + std::size_t(s) * kSize,
         packed + std::size_t(p) * kSize,
         std::integral_constant<std::size_t, kSize>{});
  });
}

/// Calls copy(stored, packed, bytes) for all pieces of `block`.
template <typename Stored, typename Packed, typename Copy>
void copy_block(
    const ParamStorage& storage, const Block& block, Stored* stored, Packed* packed, Copy copy) {
  const Shape& shape = storage.shape();
  const std::size_t size = size_of(storage.dtype());
  if (storage.order() == StorageOrder::kRowMajor) {
    for_each_run(shape, block, [&](Index s, Index p, Index elements) {
      copy(stored + std::size_t(s) * size,
           packed + std::size_t(p) * size,
           std::size_t(elements) * size);
    });
    return;
  }
  const Index panel_rows = storage.panel_rows();
  switch (size) {
    case 1:
      return copy_panels<1>(shape, block, panel_rows, stored, packed, copy);
    case 2:
      return copy_panels<2>(shape, block, panel_rows, stored, packed, copy);
    case 4:
      return copy_panels<4>(shape, block, panel_rows, stored, packed, copy);
    case 8:
      return copy_panels<8>(shape, block, panel_rows, stored, packed, copy);
    default:
      throw InternalError(fmt::format("elements of {} bytes are not known", size));
  }
}

void validate_block(const ParamStorage& storage, const Block& block, std::size_t num_bytes) {
  const Shape& shape = storage.shape();
  PECAN_VALIDATE(block.fits(shape),
                 ShapeError,
                 "block {} + {} lies outside of a parameter of shape {}",
                 block.offset.to_string(),
                 block.extent.to_string(),
                 shape.to_string());
  const std::size_t expected = std::size_t(block.extent.num_elements()) * size_of(storage.dtype());
  PECAN_VALIDATE(num_bytes == expected,
                 ShapeError,
                 "a block of {} {} elements takes {} bytes, but the span has {}",
                 block.extent.to_string(),
                 name_of(storage.dtype()),
                 expected,
                 num_bytes);
  PECAN_EXPECTS(expected == 0 || storage.memory() != nullptr);
}

/// Calls run(first stored byte, first byte of the packed block, bytes) for each run of `block` that
/// is contiguous on both sides, in ascending order, as few as there can be.
template <typename Run>
void for_each_device_run(const ParamStorage& storage, const Block& block, Run run) {
  PECAN_VALIDATE(storage.order() == StorageOrder::kRowMajor,
                 NotConfigured,
                 "a parameter stored in panels of {} rows is not copied from or to a device; store "
                 "it row-major there",
                 storage.panel_rows());
  const auto size = Index(size_of(storage.dtype()));
  Index stored = 0, packed = 0, elements = 0;
  const auto end_run = [&] {
    if (elements > 0) run(stored * size, packed * size, elements * size);
  };
  for_each_run(storage.shape(), block, [&](Index s, Index p, Index count) {
    if (s == stored + elements && p == packed + elements) {
      elements += count;
      return;
    }
    end_run();
    stored = s;
    packed = p;
    elements = count;
  });
  end_run();
}

}  // namespace

ParamStorage::ParamStorage(
    std::byte* memory, DType dtype, const Shape& shape, StorageOrder order, std::int64_t panel_rows)
    : memory_(memory), dtype_(dtype), shape_(shape), order_(order), panel_rows_(panel_rows) {
  if (order == StorageOrder::kRowMajor) return;
  PECAN_VALIDATE(
      shape.num_dims() == 2,
      ShapeError,
      "a parameter of shape {} cannot be stored in row panels, which need two dims; store "
      "it row-major",
      shape.to_string());
  PECAN_VALIDATE(panel_rows >= 1,
                 ShapeError,
                 "panel_rows={} is not positive: a panel holds at least one row",
                 panel_rows);
}

std::size_t ParamStorage::num_bytes() const {
  return flat().num_bytes();
}

std::int64_t ParamStorage::stored_index(std::int64_t logical) const {
  PECAN_EXPECTS(logical >= 0 && logical < shape_.num_elements());
  if (order_ == StorageOrder::kRowMajor) return logical;
  const Index row = logical / shape_[1], column = logical % shape_[1];
  const Index first = row / panel_rows_ * panel_rows_;
  const Index height = std::min(panel_rows_, shape_[0] - first);
  return first * shape_[1] + column * height + (row - first);
}

TensorView ParamStorage::flat() const {
  return {memory_, dtype_, Shape{shape_.num_elements()}};
}

TensorView ParamStorage::row_major() const {
  PECAN_VALIDATE(order_ == StorageOrder::kRowMajor,
                 ShapeError,
                 "a parameter of shape {} stored in panels of {} rows has no row-major view; use "
                 "copy_out, or flat for elementwise work",
                 shape_.to_string(),
                 panel_rows_);
  return {memory_, dtype_, shape_};
}

void ParamStorage::copy_out(const Block& block, std::span<std::byte> destination) const {
  validate_block(*this, block, destination.size());
  if (destination.empty()) return;
  copy_block(*this,
             block,
             static_cast<const std::byte*>(memory_),
             destination.data(),
             [](const std::byte* stored, std::byte* packed, std::size_t num_bytes) {
               std::memcpy(packed, stored, num_bytes);
             });
}

void ParamStorage::copy_in(const Block& block, std::span<const std::byte> source) const {
  validate_block(*this, block, source.size());
  if (source.empty()) return;
  copy_block(*this,
             block,
             memory_,
             source.data(),
             [](std::byte* stored, const std::byte* packed, std::size_t num_bytes) {
               std::memcpy(stored, packed, num_bytes);
             });
}

void download(Stream& stream,
              const ParamStorage& storage,
              const Block& block,
              std::span<std::byte> destination) {
  if (stream.device().kind == DeviceKind::kCpu) return storage.copy_out(block, destination);
  validate_block(storage, block, destination.size());
  for_each_device_run(storage, block, [&](Index stored, Index packed, Index num_bytes) {
    const Shape bytes{num_bytes};
    download(stream,
             ConstTensorView{storage.memory() + stored, DType::kU8, bytes},
             TensorView{destination.data() + packed, DType::kU8, bytes});
  });
}

void upload(Stream& stream,
            std::span<const std::byte> source,
            const ParamStorage& storage,
            const Block& block) {
  if (stream.device().kind == DeviceKind::kCpu) return storage.copy_in(block, source);
  validate_block(storage, block, source.size());
  for_each_device_run(storage, block, [&](Index stored, Index packed, Index num_bytes) {
    const Shape bytes{num_bytes};
    upload(stream,
           ConstTensorView{source.data() + packed, DType::kU8, bytes},
           TensorView{storage.memory() + stored, DType::kU8, bytes});
  });
}

}  // namespace pecan::device
