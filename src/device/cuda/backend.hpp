#pragma once
/// The CUDA runtime as a Backend.

#include <cuda_runtime_api.h>

#include <pecan/device/backend.hpp>

namespace pecan::device::cuda {

/// What the library of kernels brings.
struct Kernels {
  const void* operators = nullptr;  ///< what Backend::operators() gives
  /// Of Backend::reduce_in_order, on the current device.
  void (*reduce_in_order)(cudaStream_t stream,
                          DType dtype,
                          Reduction reduction,
                          const MemberPieces& pieces,
                          std::byte* output,
                          std::int64_t num_elements) = nullptr;
};

/// The process's one backend, over the CUDA runtime that this code is linked to. What `kernels`
/// refers to outlives the process's last call.
[[nodiscard]] Backend& make_backend(const Kernels& kernels);

}  // namespace pecan::device::cuda
