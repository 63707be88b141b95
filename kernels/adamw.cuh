#pragma once
/// AdamW: one pass over gradient, parameter and moments, and the rounded copy.
///
/// A thread kLanes neighbouring elements. Block: 256 threads, no shared memory. Bytes an element:
/// 28, 30 with the copy. Flops: 14, a root and a division among them. Intensity: 0.5 flops a byte:
/// memory bounds it. Products and sums are not fused, so that parameters are updated to the very
/// bits that the CPU makes.

#include "kernels/elementwise.cuh"

namespace pecan::kernels {

/// The CPU's, ops/vector_kernels.hpp.
template <typename T>
struct AdamWFactors {
  T grad_scale, keep, beta1, beta2, rest1, rest2, step, eps;
};

// Each operation is rounded by itself.
__device__ inline float product(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ inline double product(double a, double b) {
  return __dmul_rn(a, b);
}
__device__ inline float total(float a, float b) {
  return __fadd_rn(a, b);
}
__device__ inline double total(double a, double b) {
  return __dadd_rn(a, b);
}

template <typename T>
__device__ T adamw_updated(const AdamWFactors<T>& f, T g, T p, T& m, T& v) {
  const T scaled = product(f.grad_scale, g);
  m = total(product(f.beta1, m), product(f.rest1, scaled));
  v = total(product(f.beta2, v), product(f.rest2, product(scaled, scaled)));
  const T step = product(f.step, m / total(root_of(v), f.eps));
  return total(product(f.keep, p), -step);
}

/// `rounded_p` may be null.
template <typename T>
__global__ void __launch_bounds__(kMapThreads) adamw_kernel(AdamWFactors<T> factors,
                                                            Index count,
                                                            bool aligned,
                                                            const T* g_in,
                                                            T* p_io,
                                                            T* m_io,
                                                            T* v_io,
                                                            Bf16* rounded_p) {
  const Index begin = (Index(blockIdx.x) * kMapThreads + threadIdx.x) * kLanes;
  if (begin >= count) return;
  const int mine = int(min(Index(kLanes), count - begin));
  const bool whole = aligned && mine == kLanes;
  T g[kLanes], p[kLanes], m[kLanes], v[kLanes];
  load_lanes(g_in + begin, mine, whole, g);
  load_lanes(static_cast<const T*>(p_io) + begin, mine, whole, p);
  load_lanes(static_cast<const T*>(m_io) + begin, mine, whole, m);
  load_lanes(static_cast<const T*>(v_io) + begin, mine, whole, v);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) p[i] = adamw_updated(factors, g[i], p[i], m[i], v[i]);
  store_lanes(p, mine, whole, p_io + begin);
  store_lanes(m, mine, whole, m_io + begin);
  store_lanes(v, mine, whole, v_io + begin);
  if (rounded_p != nullptr) store_lanes(p, mine, whole, rounded_p + begin);
}

}  // namespace pecan::kernels
