#pragma once
/// What kernels over rows share: rows of a few elements belong to a warp, wider ones to a block,
/// and sums over rows are made in two steps, by blocks of neighbouring rows and then over the
/// blocks.

#include <pecan/ops/kernel_plan.hpp>

#include "kernels/common.cuh"

namespace pecan::kernels {

/// Threads of a block; a row has kWarp or all of them.
constexpr int kRowBlock = 128;
constexpr Index kWidestOfWarp = 512;
/// Fixed, so that sums do not depend on the device; the plan of the workspace has it too.
constexpr Index kMaxParts = ops::kMaxNormParts;

template <int kRowThreads>
struct RowOfThread {
  static constexpr int kRows = kRowBlock / kRowThreads;  ///< rows of a block at a time
  __device__ static int slot() { return int(threadIdx.x) / kRowThreads; }
  __device__ static int lane() { return int(threadIdx.x) % kRowThreads; }
};

/// Calls body(integral_constant) with the number of threads for rows of `width`.
template <typename Body>
void with_row_threads(Index width, Body&& body) {
  if (width <= kWidestOfWarp) {
    body(std::integral_constant<int, kWarp>{});
  } else {
    body(std::integral_constant<int, kRowBlock>{});
  }
}

/// to[c] += the sum over parts, ascending, of parts[p][c].
void add_parts(const Context& ctx, const float* parts, Index num_parts, Index width, float* to);
void add_parts(const Context& ctx, const double* parts, Index num_parts, Index width, double* to);

/// How rows are cut into parts of neighbours.
struct Parts {
  Index rows_each;
  Index count;
  explicit Parts(Index rows)
      : rows_each((rows + kMaxParts - 1) / kMaxParts),
        count(rows == 0 ? 0 : (rows + rows_each - 1) / rows_each) {}
};

}  // namespace pecan::kernels
