#pragma once
/// gelu(x) = x sigmoid(c x (1 + a x^2)), which is the tanh form, and its gradient.
///
/// Bytes an element of s: forward 2 s, backward 3 s. Flops: 8 and 14, an exponential and a division
/// among them. Intensity in bf16: 2 and 2.3 flops a byte: memory bounds both.

#include "kernels/elementwise.cuh"

namespace pecan::kernels {

constexpr float kGeluC = 1.5957691216057307F;  // 2 sqrt(2/pi)
constexpr float kGeluA = 0.044715F;

/// Beyond +-20 the sigmoid is 0 or 1 to rounding; farther out x^2 would overflow. A NaN stays one.
__device__ inline float near(float x) {
  x = x > 20.F ? 20.F : x;
  return x < -20.F ? -20.F : x;
}

struct Gelu {
  __device__ float operator()(float x) const {
    const float v = near(x);
    return (x > 0 ? x : v) / (1 + expf(-kGeluC * v * (1 + kGeluA * v * v)));
  }
};

struct GeluBackward {
  __device__ float operator()(float dh, float x) const {
    const float v = near(x);
    const float square = kGeluA * v * v;
    const float e = expf(-kGeluC * v * (1 + square));
    const float s = 1 / (1 + e);
    // e s = 1 - s, without the difference of nearly equal numbers.
    return dh * (s + v * s * (e * s) * (kGeluC * (1 + 3 * square)));
  }
};

}  // namespace pecan::kernels
