#pragma once
/// What stands behind the handle of a Stream.

#include <cstdint>
#include <utility>

#include <cuda_runtime_api.h>

struct cublasContext;

namespace pecan::device::cuda {

/// Move-only; empty after a move. Serves one stream, with a workspace of its own, so that products
/// repeat bit by bit whatever other streams do.
class BlasHandle {
 public:
  BlasHandle() = default;
  /// Of the current device. Products sum in f32 (of f64: in f64) and round once.
  explicit BlasHandle(cudaStream_t stream);
  ~BlasHandle();
  BlasHandle(BlasHandle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  BlasHandle& operator=(BlasHandle&& other) noexcept;
  BlasHandle(const BlasHandle&) = delete;
  BlasHandle& operator=(const BlasHandle&) = delete;
  [[nodiscard]] cublasContext* get() const { return handle_; }
  /// By this process so far.
  [[nodiscard]] static std::int64_t num_made();

 private:
  cublasContext* handle_ = nullptr;
};

/// What Stream::handle() points to.
struct StreamState {
  cudaStream_t stream = nullptr;
  BlasHandle blas;  ///< empty until products() is called: copies need none
  /// Called with the stream's device chosen.
  cublasContext* products() {
    if (blas.get() == nullptr) blas = BlasHandle(stream);
    return blas.get();
  }
};

}  // namespace pecan::device::cuda
