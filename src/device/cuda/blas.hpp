#pragma once
/// The one way to call cuBLAS.

#include <string_view>

#include <cublas_v2.h>

namespace pecan::device::cuda {

/// Throws DeviceError with the call and cuBLAS's words for the code.
[[noreturn]] void fail(cublasStatus_t code, std::string_view call);

/// Passes over CUBLAS_STATUS_SUCCESS, and throws DeviceError for any other code.
inline void check(cublasStatus_t code, std::string_view call) {
  if (code != CUBLAS_STATUS_SUCCESS) fail(code, call);
}

}  // namespace pecan::device::cuda
