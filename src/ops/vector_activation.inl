/// Activations of StorageKernels; part of vector_kernels.inl, whose sigmoid_of and exp_of it uses.

#include "ops/vector_bf16.inl"

namespace pecan::ops::detail {
namespace {

template <typename T, typename M = Wide<T>>
void swiglu(const T* gate, const T* up, T* h, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const M g = wide(gate[i]);
    put(h[i], g * sigmoid_of(g) * wide(up[i]));
  }
}

template <typename T, typename M = Wide<T>>
void swiglu_backward(const T* dh, const T* gate, const T* up, T* dgate, T* dup, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const M g = wide(gate[i]);
    const M sigmoid = sigmoid_of(g);
    const M silu = g * sigmoid;
    const M d = wide(dh[i]);
    const M d_gate = d * wide(up[i]) * (sigmoid + silu * (M(1) - sigmoid));
    put(dup[i], d * silu);
    put(dgate[i], d_gate);
  }
}

/// (1 + tanh(u)) / 2 = sigmoid(2 u), where 2 u = c x (1 + a x^2) is the argument of gelu.
constexpr double kGeluC = 1.5957691216057307118;  // 2 sqrt(2/pi)
constexpr double kGeluA = 0.044715;

/// Beyond +-20 the sigmoid is 0 or 1 to rounding in both types; farther out the exponential of f64
/// and the square of x would overflow.
template <typename T>
inline T near(T x) {
  x = x > T(20) ? T(20) : x;
  return x < T(-20) ? T(-20) : x;
}

template <typename T, typename M = Wide<T>>
void gelu(const T* x, T* h, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const M value = wide(x[i]);
    const M v = near(value);
    put(h[i], (value > M(0) ? value : v) * sigmoid_of(M(kGeluC) * v * (M(1) + M(kGeluA) * v * v)));
  }
}

template <typename T, typename M = Wide<T>>
void gelu_backward(const T* dh, const T* x, T* dx, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const M v = near(wide(x[i]));
    const M square = M(kGeluA) * v * v;
    const M e = exp_of(-M(kGeluC) * v * (M(1) + square));
    const M s = M(1) / (M(1) + e);
    // e s = 1 - s, without the difference of nearly equal numbers.
    put(dx[i], wide(dh[i]) * (s + v * s * (e * s) * (M(kGeluC) * (M(1) + M(3) * square))));
  }
}

}  // namespace
}  // namespace pecan::ops::detail
