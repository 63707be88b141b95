#pragma once
/// Helpers of the CPU implementations: choice of the element type and loops over independent
/// outputs.

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <pecan/ops/types.hpp>

#include "ops/vector_kernels.hpp"

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

/// A storage type as the vector kernels see it: bf16 is its bits.
template <typename T>
using StoredOf = std::conditional_t<std::is_same_v<T, BFloat16>, detail::Bf16Bits, T>;

/// The elements of x, a tensor of T.
template <typename T>
const StoredOf<T>* stored(const ConstTensorView& x) {
  return reinterpret_cast<const StoredOf<T>*>(x.as<T>().data());
}
template <typename T>
StoredOf<T>* stored(const TensorView& x) {
  return reinterpret_cast<StoredOf<T>*>(x.as<T>().data());
}

/// The vector kernels for tensors of T in this CPU's widest instruction set.
template <typename T>
const detail::StorageKernels<StoredOf<T>>& kernels_of() {
  return detail::storage_kernels<StoredOf<T>>(detail::widest_isa());
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

/// Calls body(begin, count) for strips of the columns of rows x width elements, whose sums over all
/// rows each body keeps.
template <typename Body>
void for_each_column_strip(const Context& ctx, std::int64_t width, std::int64_t rows, Body&& body) {
  constexpr std::int64_t kStrip = detail::kSumColumns;
  parallel_for(ctx, (width + kStrip - 1) / kStrip, rows * width, [&](std::int64_t strip) {
    body(strip * kStrip, std::min(kStrip, width - strip * kStrip));
  });
}

}  // namespace pecan::ops::cpu
