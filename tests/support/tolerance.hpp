#pragma once
/// How far a result may lie from its double-precision reference, by dtype and reduction length.

#include <cmath>
#include <cstdint>

#include <pecan/core/tensor.hpp>

namespace pecan::test {

/// Both must hold: `nmse` bounds sum(error^2) / sum(reference^2); `max_error` bounds each |error|
/// relative to the larger of its reference's magnitude and the root mean square of all references.
struct Tolerance {
  double nmse = 0;
  double max_error = 0;
};

/// For results that sum `reduction_length` terms in `dtype` (1: elementwise). Rounding errors of
/// sums in any order grow like the root of the length; the factors leave room for a few roundings a
/// term. bf16 results are sums in f32, rounded once or twice: there the length does not matter.
[[nodiscard]] inline Tolerance tolerance(DType dtype, std::int64_t reduction_length = 1) {
  if (dtype == DType::kBF16) return {0x1p-17, 0x1p-7};
  const double half_ulp = dtype == DType::kF64 ? 0x1p-53 : 0x1p-24;
  const double typical = half_ulp * (4 + std::sqrt(double(reduction_length)));
  return {typical * typical, 8 * typical};
}

}  // namespace pecan::test
