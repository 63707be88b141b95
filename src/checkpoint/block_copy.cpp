#include "checkpoint/block_copy.hpp"

#include <cstring>

namespace pecan::checkpoint {
namespace {

/// Position of a global coordinate in a block's row-major elements.
std::int64_t position_in(const Block& block, const Shape& coordinate) {
  std::int64_t position = 0;
  for (int dim = 0; dim < coordinate.num_dims(); ++dim) {
    position = position * block.extent[dim] + coordinate[dim] - block.offset[dim];
  }
  return position;
}

}  // namespace

void copy_common(const Block& common,
                 const Block& from,
                 std::span<const std::byte> source,
                 const Block& to,
                 std::span<std::byte> destination,
                 std::size_t element_bytes) {
  const int dims = common.offset.num_dims();
  // A run of the last dim at a time.
  const std::int64_t run = dims == 0 ? 1 : common.extent[dims - 1];
  const std::int64_t num_runs = common.extent.num_elements() / run;
  for (std::int64_t i = 0; i < num_runs; ++i) {
    Shape at = common.offset;
    std::int64_t rest = i;
    for (int dim = dims - 2; dim >= 0; --dim) {
      at[dim] += rest % common.extent[dim];
      rest /= common.extent[dim];
    }
    std::memcpy(destination.data() + std::size_t(position_in(to, at)) * element_bytes,
                source.data() + std::size_t(position_in(from, at)) * element_bytes,
                std::size_t(run) * element_bytes);
  }
}

}  // namespace pecan::checkpoint
