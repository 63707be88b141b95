#pragma once
/// Tile sizes of the CPU's attention, how its work is cut, and the scratch memory that it takes.

#include <algorithm>

#include <pecan/ops/attention.hpp>
#include <pecan/ops/types.hpp>

namespace pecan::ops::detail {

/// Key tiles are a multiple of query tiles, so that no row of a visited tile lies wholly above the
/// diagonal.
inline constexpr std::int64_t kQueryTile = 64;
inline constexpr std::int64_t kKeyTile = 64;
/// Loops over rows go in steps of so many elements, whole vectors of every instruction set; their
/// constant length makes straight code.
inline constexpr std::int64_t kStep = 16;

[[nodiscard]] inline std::int64_t query_tiles(const AttentionShape& shape) {
  return (shape.sequence + kQueryTile - 1) / kQueryTile;
}

/// Elements from one packed row to the next, which loops over rows rely on.
[[nodiscard]] inline std::int64_t padded_dim(const AttentionShape& shape) {
  return (shape.head_dim + kStep - 1) / kStep * kStep;
}

/// Elements of the keys or values of a sequence, packed in whole key tiles.
[[nodiscard]] inline std::int64_t packed_keys(const AttentionShape& shape) {
  return (shape.sequence + kKeyTile - 1) / kKeyTile * kKeyTile * padded_dim(shape);
}

/// Into how many slices the backward pass cuts the queries of a group, each with sums of its own:
/// where there are few groups, threads would idle. It must not depend on their number, or sums
/// would.
[[nodiscard]] inline std::int64_t slices_of(const AttentionShape& shape) {
  constexpr std::int64_t kEnough = 8;
  const std::int64_t groups = std::max<std::int64_t>(1, shape.batch * shape.kv_groups);
  return std::clamp<std::int64_t>(
      (kEnough + groups - 1) / groups,
      1,
      std::max<std::int64_t>(1, shape.heads / shape.kv_groups * query_tiles(shape)));
}

/// Elements that a thread takes: tiles of q and out, scores, and the group's keys (transposed) and
/// values.
[[nodiscard]] inline std::int64_t forward_elements(const AttentionShape& shape) {
  return 2 * kQueryTile * padded_dim(shape) + kQueryTile * kKeyTile + 2 * packed_keys(shape);
}
/// The same of the backward pass: tiles of q, dout and dq, delta, probabilities and their
/// gradients, and the group's keys (as they are and transposed) and values (transposed).
[[nodiscard]] inline std::int64_t backward_elements(const AttentionShape& shape) {
  return 3 * kQueryTile * padded_dim(shape) + kQueryTile + 2 * kQueryTile * kKeyTile +
         3 * packed_keys(shape);
}

[[nodiscard]] inline TensorView allocate_forward_tiles(Context& ctx,
                                                       const AttentionShape& shape,
                                                       DType dtype) {
  return ctx.workspace.allocate(master_of(dtype), {ctx.threads, forward_elements(shape)});
}
/// Tiles of each thread, then dk and dv of each thread or, where groups are cut, of each slice.
[[nodiscard]] inline TensorView allocate_backward_tiles(Context& ctx,
                                                        const AttentionShape& shape,
                                                        DType dtype) {
  const std::int64_t slices = slices_of(shape);
  const std::int64_t sums = slices == 1 ? ctx.threads : shape.batch * shape.kv_groups * slices;
  return ctx.workspace.allocate(
      master_of(dtype), {ctx.threads * backward_elements(shape) + sums * 2 * packed_keys(shape)});
}

}  // namespace pecan::ops::detail
