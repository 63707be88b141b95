#pragma once
/// gelu(x) = x sigmoid(c x (1 + a x^2)), which is the tanh form, and its gradient.
///
/// Bytes an element of s: forward 2 s, backward 3 s. Flops: 8 and 14, an exponential and a division
/// among them. Intensity in bf16: 2 and 2.3 flops a byte: memory bounds both.

#include "kernels/elementwise.cuh"

namespace pecan::kernels {

constexpr double kGeluC = 1.5957691216057307118;  // 2 sqrt(2/pi)
constexpr double kGeluA = 0.044715;

/// Beyond +-20 the sigmoid is 0 or 1 to rounding; farther out x^2 would overflow. A NaN stays one.
template <typename M>
__device__ M near(M x) {
  x = x > M(20) ? M(20) : x;
  return x < M(-20) ? M(-20) : x;
}

struct Gelu {
  template <typename M>
  __device__ M operator()(M x) const {
    const M v = near(x);
    return (x > 0 ? x : v) / (1 + exp_of(-M(kGeluC) * v * (1 + M(kGeluA) * v * v)));
  }
};

struct GeluBackward {
  template <typename M>
  __device__ M operator()(M dh, M x) const {
    const M v = near(x);
    const M square = M(kGeluA) * v * v;
    const M e = exp_of(-M(kGeluC) * v * (1 + square));
    const M s = 1 / (1 + e);
    // e s = 1 - s, without the difference of nearly equal numbers.
    return dh * (s + v * s * (e * s) * (M(kGeluC) * (1 + 3 * square)));
  }
};

}  // namespace pecan::kernels
