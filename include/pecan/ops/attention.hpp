#pragma once
/// Causal grouped-query attention in tiles: no S x S matrix is ever in memory.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Extents of one call; T = batch * sequence tokens, sequences one after the other.
struct AttentionShape {
  std::int64_t batch = 0;      ///< B
  std::int64_t sequence = 0;   ///< S
  std::int64_t heads = 0;      ///< N, a multiple of kv_groups
  std::int64_t kv_groups = 0;  ///< G; heads [g N/G, (g+1) N/G) share key and value g
  std::int64_t head_dim = 0;   ///< D
};

/// Takes from ctx.workspace what forward and backward take, and gives it back: on a measuring
/// arena, their high water.
void plan_attention(Context& ctx, const AttentionShape& shape, DType dtype);

/// Computes out_TND = softmax(q k^T / sqrt(D), causal) v and saves lse_BNS, the logarithm of each
/// row's sum of exponentials. q_TND, k_TGD, v_TGD in f32, f64 or bf16; scores, softmax and lse in
/// their master type. document_start_T (i32): the first position of its sequence that a token
/// attends to; `{}`: 0 for all. Scratch from ctx.workspace: tiles and one group's keys and values
/// of each thread. Results do not depend on ctx.threads. ShapeError where extents disagree or a
/// document starts after its token.
/// Source: Dao et al., "FlashAttention-2" (arXiv 2307.08691), algorithm 1.
/// Differs from the paper: tiles in which no key is visible are skipped.
void attention_forward(Context& ctx,
                       const AttentionShape& shape,
                       ConstTensorView document_start_T,
                       ConstTensorView q_TND,
                       ConstTensorView k_TGD,
                       ConstTensorView v_TGD,
                       TensorView out_TND,
                       TensorView lse_BNS);

/// Computes dq_TND, dk_TGD and dv_TGD (overwritten) from dout and what forward read and wrote;
/// bf16 gradients are summed in f32 and rounded once. Scratch from ctx.workspace: tiles and one
/// group's keys and values with their gradients of each thread; where batch and groups are few, the
/// queries of a group are cut into up to eight slices with gradients of their own, so that threads
/// have work. Results do not depend on ctx.threads.
/// Source: FlashAttention-2, algorithm 2. Differs from the paper: a head's tiles are done in order,
/// and slices added in order, so that sums are exact repeats.
void attention_backward(Context& ctx,
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

}  // namespace pecan::ops
