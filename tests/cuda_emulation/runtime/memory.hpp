#pragma once
/// Memory of the device, and memory of the host that the device can reach.

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace pecan::emulation {

enum class Space : std::uint8_t { kDevice, kPinned, kRegistered };

struct Allocation {
  std::uintptr_t address = 0;
  std::size_t num_bytes = 0;
  Space space = Space::kDevice;
  void* block = nullptr;  ///< what to give back to the host's allocator
};

/// The allocation that holds this address, or nullptr.
const Allocation* find_allocation(const void* address);
[[nodiscard]] bool is_on_device(const void* address);

/// New memory, every byte 0xFF: a NaN in every format. Zero bytes give a null pointer.
cudaError_t allocate(void** address, std::size_t num_bytes, Space space);
/// Gives back what allocate gave. A null pointer is nothing to do.
cudaError_t release(void* address, Space space);
cudaError_t register_memory(void* address, std::size_t num_bytes);
cudaError_t unregister_memory(void* address);
/// Whether an operation may touch the bytes; if they overrun an allocation, a finding says so.
bool lies_within(const void* address, std::size_t num_bytes, const char* what);
std::size_t free_device_bytes();

}  // namespace pecan::emulation
