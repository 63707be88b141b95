#pragma once
/// Parts of blocks from one block's bytes to another's.

#include <cstddef>
#include <span>

#include <pecan/core/tensor.hpp>

namespace pecan::checkpoint {

/// Copies the elements of `common`, which lies in both blocks, from `source` (all of `from`,
/// row-major) to their places in `destination` (all of `to`).
void copy_common(const Block& common,
                 const Block& from,
                 std::span<const std::byte> source,
                 const Block& to,
                 std::span<std::byte> destination,
                 std::size_t element_bytes);

}  // namespace pecan::checkpoint
