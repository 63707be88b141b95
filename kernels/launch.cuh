#pragma once
/// The one way to start a kernel.

#include <cstddef>
#include <utility>

#include <cuda_runtime.h>

/// Dynamic shared memory of the block that runs, aligned as tensor cores and copies want it.
/// Declared once, with one type: kernels cast it.
extern __shared__ __align__(128) unsigned char dynamic_smem[];

namespace pecan::cuda {
namespace detail {

/// Throws DeviceError if the launch failed; with PECAN_SYNC_LAUNCHES=1 in the environment it waits
/// for the kernel first, so that a fault is blamed on the launch that made it.
void check_launch(cudaError_t launched, const cudaLaunchConfig_t& config);

}  // namespace detail

/// Enqueues `kernel` on `stream` and returns. Arguments are converted to the kernel's parameters.
/// `shared_bytes`: dynamic shared memory of a block, up to what the device has. Throws DeviceError
/// if the device refuses the launch, with its shape; a grid or block without threads is refused.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...),
            dim3 grid,
            dim3 block,
            std::size_t shared_bytes,
            cudaStream_t stream,
            Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  // Beyond 48 KiB, with what it declares itself, a kernel has to ask; of that no kernel has more
  // than one, see tests/kernels/resources.py.
  constexpr std::size_t kBytesWithoutAsking = 47 * 1024;
  cudaError_t result = cudaSuccess;
  if (shared_bytes > kBytesWithoutAsking) {
    result = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  if (result == cudaSuccess) {
    result = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  }
  detail::check_launch(result, config);
}

}  // namespace pecan::cuda
