#pragma once
/// Tile sizes of the CPU's attention and the scratch memory that they take.

#include <pecan/ops/types.hpp>

namespace pecan::ops::detail {

/// Key tiles are a multiple of query tiles, so that no row of a visited tile lies wholly above the
/// diagonal.
inline constexpr std::int64_t kQueryTile = 64;
inline constexpr std::int64_t kKeyTile = 128;

/// One tile of scores a thread.
[[nodiscard]] inline TensorView allocate_forward_tiles(Context& ctx, DType dtype) {
  return ctx.workspace.allocate(dtype, {ctx.threads, 1, kQueryTile * kKeyTile});
}
/// A tile of probabilities and a tile of their gradients a thread.
[[nodiscard]] inline TensorView allocate_backward_tiles(Context& ctx, DType dtype) {
  return ctx.workspace.allocate(dtype, {ctx.threads, 2, kQueryTile * kKeyTile});
}

}  // namespace pecan::ops::detail
