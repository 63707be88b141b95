#include "device/cuda/blas.hpp"

#include <atomic>

#include <pecan/core/error.hpp>
#include <pecan/core/log.hpp>

#include "device/cuda/stream.hpp"

namespace pecan::device::cuda {

void fail(cublasStatus_t code, std::string_view call) {
  throw DeviceError(
      fmt::format("{} failed: {} (code {})", call, cublasGetStatusString(code), int(code)));
}

namespace {

std::atomic<std::int64_t> num_handles = 0;

}  // namespace

std::int64_t BlasHandle::num_made() {
  return num_handles.load(std::memory_order_relaxed);
}

BlasHandle::BlasHandle(cudaStream_t stream) {
  check(cublasCreate(&handle_), "cublasCreate");
  num_handles.fetch_add(1, std::memory_order_relaxed);
  BlasHandle made = std::move(*this);  // destroyed if what follows fails
  check(cublasSetStream(made.handle_, stream), "cublasSetStream");
  check(cublasSetMathMode(made.handle_, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION),
        "cublasSetMathMode");
  *this = std::move(made);
}

BlasHandle::~BlasHandle() {
  if (handle_ == nullptr) return;
  const cublasStatus_t code = cublasDestroy(handle_);
  if (code != CUBLAS_STATUS_SUCCESS)
    PECAN_LOG(kWarn, "[device] cublasDestroy failed: {}", cublasGetStatusString(code));
}

BlasHandle& BlasHandle::operator=(BlasHandle&& other) noexcept {
  BlasHandle taken(std::move(other));
  std::swap(handle_, taken.handle_);
  return *this;
}

}  // namespace pecan::device::cuda
