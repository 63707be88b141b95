#pragma once
/// Shared memory of a block: the thread-local variables of the module (program or library) that
/// holds the kernel, on the thread that runs it.

#include <cstddef>

#include <pecan_emulation/control.hpp>

namespace pecan::emulation {

/// Told by each module of device code as it is loaded: where its dynamic shared memory lies on the
/// calling thread.
PECAN_EMULATION_API void register_dynamic_memory(unsigned char* (*address)());

void begin_kernel_memory(const void* kernel, std::size_t dynamic_bytes);
/// Shared memory has no content when a block starts.
void begin_block_memory(std::size_t dynamic_bytes);
/// Finds what was written past the end of dynamic memory.
void end_block_memory(std::size_t dynamic_bytes);

}  // namespace pecan::emulation
