#pragma once
/// Copies of more than the caches hold.

#include <cstddef>
#include <span>

namespace pecan::comm {

/// From this on a copy's destination is not read soon enough to be found in a cache.
inline constexpr std::size_t kStreamedBytes = std::size_t{4} << 20;

/// Copies past the caches, where the processor can: the old content of `to` is not read, and
/// nothing else is driven out. Equally long, no overlap.
void stream_copy(std::span<const std::byte> from, std::span<std::byte> to);

}  // namespace pecan::comm
