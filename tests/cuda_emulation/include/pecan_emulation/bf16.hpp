#pragma once
/// Functions on bfloat16 that NVIDIA's header declares for nvcc alone.

#include <bit>
#include <cmath>

#include <cuda_bf16.h>

/// One rounding: the product of two bfloat16 is exact in a double, and the rounding of the sum to
/// 53 bits is repaired by rounding to odd before the second one.
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  const double product =
      static_cast<double>(__bfloat162float(a)) * static_cast<double>(__bfloat162float(b));
  const double addend = __bfloat162float(c);
  double sum = product + addend;
  const double part = sum - product;
  const double lost = (product - (sum - part)) + (addend - part);
  if (lost != 0 && std::isfinite(sum) && (std::bit_cast<std::uint64_t>(sum) & 1) == 0) {
    sum = std::nextafter(sum, lost > 0 ? HUGE_VAL : -HUGE_VAL);
  }
  return __double2bfloat16(sum);
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline __nv_bfloat16 hexp(__nv_bfloat16 x) {
  return __float2bfloat16(std::exp(__bfloat162float(x)));
}
