#pragma once
/// Tile sizes of the CPU's attention and the scratch memory that they take.

#include <pecan/ops/attention.hpp>
#include <pecan/ops/types.hpp>

namespace pecan::ops::detail {

/// Key tiles are a multiple of query tiles, so that no row of a visited tile lies wholly above the
/// diagonal.
inline constexpr std::int64_t kQueryTile = 64;
inline constexpr std::int64_t kKeyTile = 128;

/// What a thread takes, in elements: scores, and where q, k, v and out are converted from and to
/// bf16, their tiles.
[[nodiscard]] inline TensorView allocate_forward_tiles(Context& ctx,
                                                       const AttentionShape& shape,
                                                       DType dtype) {
  const std::int64_t converted =
      dtype == master_of(dtype) ? 0 : 2 * (kQueryTile + kKeyTile) * shape.head_dim;
  return ctx.workspace.allocate(master_of(dtype), {ctx.threads, kQueryTile * kKeyTile + converted});
}
/// Probabilities and their gradients; for bf16 also the tiles of q, out, dout and dq, and k, v, dk
/// and dv of a whole sequence.
[[nodiscard]] inline TensorView allocate_backward_tiles(Context& ctx,
                                                        const AttentionShape& shape,
                                                        DType dtype) {
  const std::int64_t converted =
      dtype == master_of(dtype) ? 0 : 4 * (kQueryTile + shape.sequence) * shape.head_dim;
  return ctx.workspace.allocate(master_of(dtype),
                                {ctx.threads, 2 * kQueryTile * kKeyTile + converted});
}

}  // namespace pecan::ops::detail
