#pragma once
/// Runs grids: block after block on the calling thread, the threads of a block as fibers. A fiber
/// that ends a thread takes up the next one, so that a kernel without barriers is a plain loop.

#include <cstdint>
#include <string>

#include <cuda_runtime_api.h>

namespace pecan::emulation {

/// Where device code is, for the checker.
struct Position {
  std::uint32_t operation = 0;
  std::uint32_t block = 0;
  std::uint32_t block_epoch = 0;  ///< barriers of the block so far
  std::uint16_t thread = 0;
  std::uint16_t warp_epoch = 0;  ///< barriers of the whole warp so far
};

struct Range {
  std::uintptr_t low = 0;
  std::uintptr_t high = 0;
  [[nodiscard]] bool contains(std::uintptr_t address) const { return address - low < high - low; }
};

/// State of the one kernel that runs, written by the scheduler alone.
struct Running {
  Position position;
  Range stack;       ///< of the thread that runs
  Range parameters;  ///< of the kernel
  /// The emulation works on behalf of device code; what it touches is not the kernel's doing.
  bool is_paused = false;
};
extern Running running;
/// Whether this thread of the operating system runs device code.
extern thread_local bool is_in_kernel;

/// Whether an address lies on the stack of any thread of the block.
bool is_on_a_stack(std::uintptr_t address);
/// Ends the kernel; the error stays, as it does on a device.
[[noreturn]] void abort_kernel(cudaError_t error);
/// The kernel that runs, or ran last.
const void* running_kernel();
/// "kernel NAME, block B, thread T", of the kernel that runs.
std::string describe_position();

constexpr int kSharedBytesWithoutAsking = 48 * 1024;
/// What a kernel declares itself cannot be told apart from other kernels': each is taken to have so
/// much, which counts against the same limits.
constexpr int kStaticSharedBytes = 1024;

struct KernelAttributes {
  int max_dynamic_bytes = kSharedBytesWithoutAsking - kStaticSharedBytes;
};
KernelAttributes& kernel_attributes(const void* kernel);

}  // namespace pecan::emulation
