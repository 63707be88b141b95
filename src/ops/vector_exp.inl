/// The exponential of the vector kernels; for files that are compiled once per instruction set.
#pragma once

#include <cmath>
#include <cstdint>

namespace pecan::ops::detail {
namespace {

inline double exp_of(double x) {
  return ::exp(x);
}

/// exp(x) = 2^n exp(r), |r| <= ln(2)/2, by a polynomial of degree 6 (minimax fit, relative error
/// 3e-9 before rounding). Arguments above 88 count as 88. Branch-free, so that loops over it become
/// vector code.
inline float exp_of(float x) {
  constexpr float kLog2E = 1.44269504F;
  // ln(2) in two parts; the high one has trailing zeros, so that n * high is exact.
  constexpr float kLn2High = 0.693359375F;
  constexpr float kLn2Low = -2.12194440e-4F;
  // Added and taken away again, it rounds to an integer, whose bits then stand in the low mantissa.
  constexpr float kRounder = 12582912.0F;
  x = x > 88.0F ? 88.0F : x;
  const float shifted = x * kLog2E + kRounder;
  const float n = shifted - kRounder;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float q = 0x1.6a2434p-10F;
  q = q * r + 0x1.1239e2p-7F;
  q = q * r + 0x1.5558f2p-5F;
  q = q * r + 0x1.555492p-3F;
  q = q * r + 0x1.fffffcp-2F;
  const float mantissa = q * r * r + r + 1.0F;
  const std::uint32_t exponent = __builtin_bit_cast(std::uint32_t, shifted) -
                                 __builtin_bit_cast(std::uint32_t, kRounder) + 127U;
  const float power = __builtin_bit_cast(float, exponent << 23U);
  return x < -87.0F ? 0.0F : mantissa * power;
}

}  // namespace
}  // namespace pecan::ops::detail
