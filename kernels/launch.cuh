#pragma once
/// The one way to launch a kernel.

#include <cstddef>
#include <utility>

#include <cuda_runtime.h>

#include <pecan/core/error.hpp>

namespace pecan::kernels {

/// Throws DeviceError if `code` is a failure of `call`.
inline void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  throw DeviceError(fmt::format("{} failed: {} ({}, code {})",
                                call,
                                cudaGetErrorString(code),
                                cudaGetErrorName(code),
                                int(code)));
}

/// Enqueues kernel(args...) on `stream` over grid x block threads, with `shared_bytes` of dynamic
/// shared memory a block, which may exceed the 48 KiB that a launch has unasked. An empty grid
/// launches nothing. Throws DeviceError for what the device refuses.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...),
            dim3 grid,
            dim3 block,
            std::size_t shared_bytes,
            cudaStream_t stream,
            Args&&... args) {
  constexpr std::size_t kUnasked = 48 * 1024;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > kUnasked) {
    check(cudaFuncSetAttribute(
              kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)),
          "cudaFuncSetAttribute");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), "cudaLaunchKernelEx");
}

}  // namespace pecan::kernels
