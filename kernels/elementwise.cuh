#pragma once
/// Elementwise kernels: one thread computes kLanes neighbouring elements, by loads and stores of 16
/// bytes where every tensor is aligned to them, and one by one at the end; fill writes one a thread.
///
/// Block: 256 threads, no shared memory. Bytes: each input and output once. Intensity: a few flops
/// an element, 0.1 to 2 flops a byte: memory bounds all of them.

#include "kernels/common.cuh"

namespace pecan::kernels {

constexpr int kMapThreads = 256;

template <typename X, typename Y>
using Wider = std::common_type_t<MathOf<X>, MathOf<Y>>;

/// Loops over lanes have a fixed number of rounds, past the end of the tensor too: then the lanes
/// stay in registers.
template <typename T, typename M>
__device__ void load_lanes(const T* from, int count, bool whole, M (&to)[kLanes]) {
  if (whole) {
    const auto pack = *reinterpret_cast<const Pack<T, kLanes>*>(from);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) to[i] = M(wide(pack.values[i]));
  } else {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) to[i] = i < count ? M(wide(from[i])) : M(0);
  }
}

template <typename T, typename M>
__device__ void store_lanes(const M (&from)[kLanes], int count, bool whole, T* to) {
  if (whole) {
    Pack<T, kLanes> pack;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) put(pack.values[i], MathOf<T>(from[i]));
    *reinterpret_cast<Pack<T, kLanes>*>(to) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      if (i < count) put(to[i], MathOf<T>(from[i]));
    }
  }
}

/// y[i] = f(x[i]). y may be x.
/// In the wider of the two types.
template <typename F, typename X, typename Y, typename M = Wider<X, Y>>
__global__ void __launch_bounds__(kMapThreads)
    map_1_kernel(F f, Index count, bool aligned, const X* x, Y* y) {
  const Index begin = (Index(blockIdx.x) * kMapThreads + threadIdx.x) * kLanes;
  if (begin >= count) return;
  const int mine = int(min(Index(kLanes), count - begin));
  const bool whole = aligned && mine == kLanes;
  M a[kLanes], result[kLanes];
  load_lanes(x + begin, mine, whole, a);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) result[i] = f(a[i]);
  store_lanes(result, mine, whole, y + begin);
}

/// y[i] = f(a[i], b[i]). y may be a or b.
template <typename F, typename A, typename B, typename Y, typename M = MathOf<Y>>
__global__ void __launch_bounds__(kMapThreads)
    map_2_kernel(F f, Index count, bool aligned, const A* a_in, const B* b_in, Y* y) {
  const Index begin = (Index(blockIdx.x) * kMapThreads + threadIdx.x) * kLanes;
  if (begin >= count) return;
  const int mine = int(min(Index(kLanes), count - begin));
  const bool whole = aligned && mine == kLanes;
  M a[kLanes], b[kLanes], result[kLanes];
  load_lanes(a_in + begin, mine, whole, a);
  load_lanes(b_in + begin, mine, whole, b);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) result[i] = f(a[i], b[i]);
  store_lanes(result, mine, whole, y + begin);
}

template <typename Bits>
__global__ void __launch_bounds__(kMapThreads) fill_kernel(Index count, Bits bits, Bits* y) {
  const Index i = Index(blockIdx.x) * kMapThreads + threadIdx.x;
  if (i < count) y[i] = bits;
}

/// Whether loads of 16 bytes are allowed from all of these.
template <typename... Pointers>
[[nodiscard]] bool are_aligned(const Pointers*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

template <typename F, typename X, typename Y>
void map_1(const Context& ctx, F f, Index count, const X* x, Y* y) {
  launch(map_1_kernel<F, X, Y>,
         blocks_of(count, kMapThreads * kLanes),
         kMapThreads,
         0,
         stream_of(ctx),
         f,
         count,
         are_aligned(x, y),
         x,
         y);
}

template <typename F, typename A, typename B, typename Y>
void map_2(const Context& ctx, F f, Index count, const A* a, const B* b, Y* y) {
  launch(map_2_kernel<F, A, B, Y>,
         blocks_of(count, kMapThreads * kLanes),
         kMapThreads,
         0,
         stream_of(ctx),
         f,
         count,
         are_aligned(a, b, y),
         a,
         b,
         y);
}

}  // namespace pecan::kernels
