#pragma once
/// Helpers of the CPU implementations: choice of the element type and loops over independent
/// outputs.

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <pecan/ops/types.hpp>

namespace pecan::ops::cpu {

/// Calls body(T{}) for T = float or double, whichever `dtype` (checked before) is.
template <typename Body>
void with_float_type(DType dtype, Body&& body) {
  if (dtype == DType::kF64) {
    body(double{});
  } else {
    body(float{});
  }
}

/// The type in which a T is computed with: f32 for bf16, else T itself.
template <typename T>
using MathOf = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

/// Calls body(T{}) for T = float, double or BFloat16, whichever `dtype` (checked before) is.
template <typename Body>
void with_storage_type(DType dtype, Body&& body) {
  if (dtype == DType::kBF16) {
    body(BFloat16{});
  } else {
    with_float_type(dtype, std::forward<Body>(body));
  }
}

/// Below this many element operations starting threads costs more than it brings.
inline constexpr std::int64_t kMinParallelWork = 1 << 15;

/// Runs body(i) for i in [0, count), on ctx.threads threads if the `work` of all pays. Bodies write
/// disjoint outputs and do not throw.
template <typename Body>
void parallel_for(const Context& ctx, std::int64_t count, std::int64_t work, Body&& body) {
  if (ctx.threads == 1 || count < 2 || work < kMinParallelWork) {
    for (std::int64_t i = 0; i < count; ++i) body(i);
    return;
  }
#pragma omp parallel for num_threads(ctx.threads) schedule(static)
  for (std::int64_t i = 0; i < count; ++i) body(i);
}

/// Runs body(begin, end) over [0, count) cut into pieces of one cache-friendly size.
template <typename Body>
void parallel_ranges(const Context& ctx, std::int64_t count, Body&& body) {
  constexpr std::int64_t kPiece = 1 << 14;
  parallel_for(ctx, (count + kPiece - 1) / kPiece, count, [&](std::int64_t piece) {
    body(piece * kPiece, std::min(count, (piece + 1) * kPiece));
  });
}

/// Elements that are converted from and to bf16 at once.
inline constexpr std::int64_t kWidePiece = 512;

/// Calls body(begin, count) for pieces of [begin, end).
template <typename Body>
void for_each_piece(std::int64_t begin, std::int64_t end, Body&& body) {
  for (std::int64_t at = begin; at < end; at += kWidePiece) body(at, std::min(kWidePiece, end - at));
}

template <typename To, typename From>
void convert(const From* from, std::int64_t count, To* to) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) to[i] = To(from[i]);
}

}  // namespace pecan::ops::cpu
