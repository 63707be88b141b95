/// How the loops of the vector_*.inl read and write stored elements.

#pragma once

#include <cstdint>

#include "ops/vector_storage.hpp"

namespace pecan::ops::detail {
namespace {

template <typename T>
using Wide = typename WideOf<T>::Type;

inline float wide(float x) {
  return x;
}
inline double wide(double x) {
  return x;
}
inline float wide(Bf16Bits x) {
  return __builtin_bit_cast(float, std::uint32_t(x) << 16U);
}

inline void put(float& to, float x) {
  to = x;
}
inline void put(double& to, double x) {
  to = x;
}
/// Rounds as BFloat16 does.
inline void put(Bf16Bits& to, float x) {
  const auto bits = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t rounded = bits + 0x7FFFU + ((bits >> 16U) & 1U);
  // Without the sign a comparison of signed numbers does, which every instruction set has.
  const bool is_nan = std::int32_t(bits & 0x7FFFFFFFU) > 0x7F800000;
  to = Bf16Bits((is_nan ? bits | 0x00400000U : rounded) >> 16U);
}

}  // namespace
}  // namespace pecan::ops::detail
