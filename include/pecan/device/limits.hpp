#pragma once
/// What this machine can do at most, measured.

#include <pecan/core/tensor.hpp>

namespace pecan::device {

/// Limits of `threads` threads at once. What they are measured with is simpler than any operator:
/// registers alone, and memory alone.
struct MachineLimits {
  double f32_flops = 0;     ///< a second
  double f64_flops = 0;     ///< a second, half of f32's
  double bf16_flops = 0;    ///< a second; the fastest way to multiply bf16, f32's at least
  double memory_bytes = 0;  ///< a second, read and written together
  /// Of the operands' type.
  [[nodiscard]] double flops(DType dtype) const;
};

/// Measures for some tens of milliseconds with threads of its own, in 72 MB of memory that it gives
/// back. Of the CPU; what else runs there takes its part.
[[nodiscard]] MachineLimits measure_limits(int threads);

}  // namespace pecan::device
