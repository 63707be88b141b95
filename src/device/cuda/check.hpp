#pragma once
/// The one way to call the CUDA runtime.

#include <string_view>

#include <cuda_runtime_api.h>

namespace pecan::device::cuda {

/// Throws DeviceError with the call and the runtime's words for the code.
[[noreturn]] void fail(cudaError_t code, std::string_view call);

/// Passes over cudaSuccess, and throws DeviceError for any other code.
inline void check(cudaError_t code, std::string_view call) {
  if (code != cudaSuccess) fail(code, call);
}

}  // namespace pecan::device::cuda
