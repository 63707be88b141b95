#pragma once
/// AdamW: one pass over gradient, parameter and moments, and the rounded copy.
///
/// A thread kLanes neighbouring elements. Block: 256 threads, no shared memory. Bytes an element: 28,
/// 30 with the copy. Flops: 14, a root and a division among them. Intensity: 0.5 flops a byte: memory
/// bounds it. Products and sums are not fused, so that parameters are updated to the very bits that
/// the CPU makes.

#include "kernels/elementwise.cuh"

namespace pecan::kernels {

/// The CPU's, ops/vector_kernels.hpp.
struct AdamWFactors {
  float grad_scale, keep, beta1, beta2, rest1, rest2, step, eps;
};

__device__ inline float adamw_updated(const AdamWFactors& f, float g, float p, float& m, float& v) {
  const float scaled = __fmul_rn(f.grad_scale, g);
  m = __fadd_rn(__fmul_rn(f.beta1, m), __fmul_rn(f.rest1, scaled));
  v = __fadd_rn(__fmul_rn(f.beta2, v), __fmul_rn(f.rest2, __fmul_rn(scaled, scaled)));
  const float step = __fmul_rn(f.step, __fdiv_rn(m, __fadd_rn(__fsqrt_rn(v), f.eps)));
  return __fsub_rn(__fmul_rn(f.keep, p), step);
}

/// `rounded_p` may be null.
__global__ void __launch_bounds__(kMapThreads) adamw_kernel(AdamWFactors factors,
                                                                   Index count,
                                                                   bool aligned,
                                                                   const float* g_in,
                                                                   float* p_io,
                                                                   float* m_io,
                                                                   float* v_io,
                                                                   Bf16* rounded_p) {
  const Index begin = (Index(blockIdx.x) * kMapThreads + threadIdx.x) * kLanes;
  if (begin >= count) return;
  const int mine = int(min(Index(kLanes), count - begin));
  const bool whole = aligned && mine == kLanes;
  float g[kLanes], p[kLanes], m[kLanes], v[kLanes];
  load_lanes(g_in + begin, mine, whole, g);
  load_lanes(static_cast<const float*>(p_io) + begin, mine, whole, p);
  load_lanes(static_cast<const float*>(m_io) + begin, mine, whole, m);
  load_lanes(static_cast<const float*>(v_io) + begin, mine, whole, v);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) p[i] = adamw_updated(factors, g[i], p[i], m[i], v[i]);
  store_lanes(p, mine, whole, p_io + begin);
  store_lanes(m, mine, whole, m_io + begin);
  store_lanes(v, mine, whole, v_io + begin);
  if (rounded_p != nullptr) store_lanes(p, mine, whole, rounded_p + begin);
}

}  // namespace pecan::kernels
