#pragma once
/// The CPU's attention over tiles: its loops, built for three instruction sets and chosen at run
/// time, and what drives them.

#include <cstdint>

#include <pecan/ops/attention.hpp>
#include <pecan/ops/types.hpp>

#include "ops/vector_kernels.hpp"

namespace pecan::ops::detail {

/// Of how many tensors rows are fetched ahead.
inline constexpr int kAhead = 6;

/// Rows of a tensor that are read or written soon.
struct Ahead {
  const char* data = nullptr;
  std::int64_t stride = 0;  ///< bytes from one row to the next
  std::int64_t bytes = 0;   ///< of a row
  std::int64_t rows = 0;
};

/// A query tile of one head, and what its queries see.
struct QueryTile {
  std::int64_t query;   ///< position of the first in its sequence, a multiple of kQueryTile
  std::int64_t rows;    ///< queries, 1 .. kQueryTile
  std::int64_t dim;     ///< head dim
  std::int64_t padded;  ///< elements from one packed row to the next, see padded_dim
  const std::int32_t* document_start;  ///< of each of the queries; nullptr: 0
  Ahead ahead[kAhead] = {};            ///< to be fetched into the cache meanwhile
};

/// Loops over packed tiles. Rows of queries, keys and values are packed [tile rows, padded], the
/// padding 0; transposed keys and values one key tile after the other, [padded, kKeyTile].
/// Scores are [kQueryTile, kKeyTile]. T is what tensors hold, M what is computed in.
template <typename T, typename M>
struct AttentionKernels {
  /// to[i] = scale * x[i * stride ..] for `rows` rows, and zeros up to `tile_rows`.
  void (*pack)(const T* x,
               std::int64_t stride,
               std::int64_t rows,
               std::int64_t tile_rows,
               std::int64_t dim,
               std::int64_t padded,
               M scale,
               M* to);
  /// A packed key tile, [kKeyTile, padded] to [padded, kKeyTile].
  void (*transpose)(const M* x, std::int64_t padded, M* to);
  /// to[i * stride ..] = scale * x[i], rounded once.
  void (*unpack)(const M* x,
                 std::int64_t rows,
                 std::int64_t dim,
                 std::int64_t padded,
                 M scale,
                 T* to,
                 std::int64_t stride);
  /// sums[i] = x[i] . y[i], in double.
  void (*row_dots)(
      const T* x, const T* y, std::int64_t stride, std::int64_t rows, std::int64_t dim, M* sums);
  /// out = softmax(q k^T) v and lse of its rows; q is scaled already.
  void (*forward)(const QueryTile& tile,
                  const M* q,
                  const M* k_transposed,
                  const M* v,
                  M* scores,
                  M* out,
                  M* lse);
  /// dq / scale, and adds to dk and dv of the keys that the tile sees; q is scaled already, and
  /// `delta` holds dout . out.
  void (*backward)(const QueryTile& tile,
                   const M* q,
                   const M* dout,
                   const M* lse,
                   const M* delta,
                   const M* k,
                   const M* k_transposed,
                   const M* v_transposed,
                   M* probs,
                   M* dscores,
                   M* dq,
                   M* dk,
                   M* dv);
};

struct IsaAttention {
  AttentionKernels<float, float> f32;
  AttentionKernels<double, double> f64;
  AttentionKernels<Bf16Bits, float> bf16;
};

[[nodiscard]] const IsaAttention& isa_attention(Isa isa);
/// Those of the widest instruction set that this CPU runs.
[[nodiscard]] const IsaAttention& isa_attention();

}  // namespace pecan::ops::detail

namespace pecan::ops::cpu {

/// attention_forward and attention_backward with these loops; tensors are checked already.
void attention_forward(Context& ctx,
                       const detail::IsaAttention& kernels,
                       const AttentionShape& shape,
                       ConstTensorView document_start_T,
                       ConstTensorView q_TND,
                       ConstTensorView k_TGD,
                       ConstTensorView v_TGD,
                       TensorView out_TND,
                       TensorView lse_BNS);
void attention_backward(Context& ctx,
                        const detail::IsaAttention& kernels,
                        const AttentionShape& shape,
                        ConstTensorView document_start_T,
                        ConstTensorView dout_TND,
                        ConstTensorView q_TND,
                        ConstTensorView k_TGD,
                        ConstTensorView v_TGD,
                        ConstTensorView out_TND,
                        ConstTensorView lse_BNS,
                        TensorView dq_TND,
                        TensorView dk_TGD,
                        TensorView dv_TGD);

}  // namespace pecan::ops::cpu
