#pragma once
/// What the kernels share: element types, loads of 16 bytes, sums of warps and blocks in a fixed
/// order, and for the launchers the choice of the type and scratch memory.

#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <pecan/core/tensor.hpp>

#include <pecan/device/context.hpp>
#include <pecan/device/param_storage.hpp>

#include "device/cuda/check.hpp"
#include "device/cuda/stream.hpp"
#include "kernels/launch.cuh"

namespace pecan::kernels {

using device::cuda::check;

using Index = std::int64_t;
using Bf16 = __nv_bfloat16;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFU;

// ---- Elements: stored as T, computed with as MathOf<T> ------------------------------------------

template <typename T>
using MathOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline float wide(float x) {
  return x;
}
__device__ inline double wide(double x) {
  return x;
}
__device__ inline float wide(Bf16 x) {
  return __bfloat162float(x);
}
__device__ inline void put(float& to, float value) {
  to = value;
}
__device__ inline void put(double& to, double value) {
  to = value;
}
__device__ inline void put(Bf16& to, float value) {
  to = __float2bfloat16_rn(value);
}

__device__ inline float exp_of(float x) {
  return expf(x);
}
__device__ inline double exp_of(double x) {
  return exp(x);
}
__device__ inline float log_of(float x) {
  return logf(x);
}
__device__ inline double log_of(double x) {
  return log(x);
}
__device__ inline float root_of(float x) {
  return sqrtf(x);
}
__device__ inline double root_of(double x) {
  return sqrt(x);
}
/// Passes over NaN.
__device__ inline float larger_of(float a, float b) {
  return fmaxf(a, b);
}
__device__ inline double larger_of(double a, double b) {
  return fmax(a, b);
}

/// Stops the device where an index would lead outside of a tensor.
__device__ inline void require(bool condition) {
  if (!condition) __trap();
}

/// kLanes consecutive elements, loaded and stored 16 bytes at a time.
template <typename T, int kLanes>
struct alignas(16) Pack {
  T values[kLanes];
};
/// Elements a thread of an elementwise kernel: 16 bytes of bf16.
constexpr int kLanes = 8;

// ---- Sums and maxima: the same tree whatever the data

struct Plus {
  template <typename V>
  __device__ V operator()(V a, V b) const {
    return a + b;
  }
};
/// Passes over NaN.
struct Larger {
  template <typename V>
  __device__ V operator()(V a, V b) const {
    return larger_of(a, b);
  }
};

/// The whole warp calls it; every lane gets the result.
template <typename V, typename Combine = Plus>
__device__ V warp_reduce(V value, Combine combine = {}) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

/// All kThreads threads of the block call it; every one gets the result. For 32 threads a "block"
/// is a warp, so that a block may hold several.
template <int kThreads, typename V, typename Combine = Plus>
__device__ V group_reduce(V value, Combine combine = {}) {
  value = warp_reduce(value, combine);
  if constexpr (kThreads > kWarp) {
    __shared__ V of_warp[kThreads / kWarp];
    __syncthreads();  // of_warp may still be read, from the call before
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = of_warp[0];
    for (int warp = 1; warp < kThreads / kWarp; ++warp) value = combine(value, of_warp[warp]);
  }
  return value;
}

// ---- Launchers

[[nodiscard]] inline cudaStream_t stream_of(const Context& ctx) {
  return static_cast<const device::cuda::StreamState*>(ctx.stream.handle())->stream;
}

template <typename T>
[[nodiscard]] const T* data_of(const ConstTensorView& x) {
  return reinterpret_cast<const T*>(x.data);
}
template <typename T>
[[nodiscard]] T* data_of(const TensorView& x) {
  return reinterpret_cast<T*>(x.data);
}

/// cuda::launch, but an empty grid, which an empty tensor makes, launches nothing.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cuda::launch(kernel, grid, std::forward<Arguments>(arguments)...);
}

[[nodiscard]] inline unsigned blocks_of(Index count, Index each) {
  const Index blocks = (count + each - 1) / each;
  PECAN_VALIDATE(blocks <= std::numeric_limits<std::int32_t>::max(),
                 ShapeError,
                 "{} blocks of {} elements are more than a launch can have",
                 blocks,
                 each);
  return unsigned(blocks);
}

/// Calls body(T{}) for T = float or double, whichever `dtype` (checked before) is.
template <typename Body>
void with_float_type(DType dtype, Body&& body) {
  if (dtype == DType::kF64) {
    body(double{});
  } else {
    body(float{});
  }
}

/// Calls body(T{}) for T = float, double or Bf16, whichever `dtype` (checked before) is.
template <typename Body>
void with_storage_type(DType dtype, Body&& body) {
  if (dtype == DType::kBF16) {
    body(Bf16{});
  } else {
    with_float_type(dtype, std::forward<Body>(body));
  }
}

/// Scratch of one call, from the context's workspace; the stream's order keeps calls apart.
class Scratch {
 public:
  explicit Scratch(Context& ctx) : arena_(ctx.workspace), scope_(ctx.workspace) {}
  template <typename T>
  [[nodiscard]] T* take(Index count) {
    return reinterpret_cast<T*>(arena_.allocate(DType::kU8, Shape{count * Index(sizeof(T))}).data);
  }

 private:
  device::Arena& arena_;
  device::ArenaScope scope_;
};

}  // namespace pecan::kernels
