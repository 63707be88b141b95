/// The loops of ExactKernels, compiled once per instruction set by vector_exact_<isa>.cpp without
/// fusing products with sums, and with square roots and divisions as IEEE 754 has them: replicas on
/// unlike machines must update their parameters to the same bits. The rule of vector_kernels.inl on
/// inline functions holds here too.

#include "ops/vector_bf16.inl"

namespace pecan::ops::detail {
namespace {

inline float root_of(float x) {
  return __builtin_sqrtf(x);
}
inline double root_of(double x) {
  return __builtin_sqrt(x);
}

template <typename T>
inline T updated(const AdamWFactors<T>& f, T g, T p, T& m, T& v) {
  const T scaled = f.grad_scale * g;
  m = f.beta1 * m + f.rest1 * scaled;
  v = f.beta2 * v + f.rest2 * (scaled * scaled);
  return f.keep * p - f.step * (m / (root_of(v) + f.eps));
}

void adamw_f32(const AdamWFactors<float>& factors,
               const float* g,
               float* p,
               float* m,
               float* v,
               Bf16Bits* bf16,
               std::int64_t n) {
  const AdamWFactors<float> f = factors;
  if (bf16 == nullptr) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) p[i] = updated(f, g[i], p[i], m[i], v[i]);
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      const float next = updated(f, g[i], p[i], m[i], v[i]);
      p[i] = next;
      put(bf16[i], next);
    }
  }
}

void adamw_f64(const AdamWFactors<double>& factors,
               const double* g,
               double* p,
               double* m,
               double* v,
               std::int64_t n) {
  const AdamWFactors<double> f = factors;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) p[i] = updated(f, g[i], p[i], m[i], v[i]);
}

}  // namespace

extern const ExactKernels PECAN_ISA_KERNELS;
const ExactKernels PECAN_ISA_KERNELS{adamw_f32, adamw_f64};

}  // namespace pecan::ops::detail
