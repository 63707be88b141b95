#pragma once
/// Counts how the lanes of a warp share transfers of memory. The n-th access of each lane by one
/// instruction counts as one request of the warp.

#include <cstddef>

namespace pecan::emulation {

void record_statistics(
    std::size_t offset, bool is_shared, std::size_t num_bytes, bool is_write, const void* code);
/// The block has ended: its requests are complete.
void flush_statistics();

}  // namespace pecan::emulation
