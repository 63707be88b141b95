#pragma once
/// Token embedding: rows of a table, and the gradient back into them.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Copies rows of one type, f32, f64 or bf16: y_TH[t] = w_VH[tokens_T[t] - shard.first], and zeros
/// for tokens of other shards, so that the sum over the shards is the whole table's. Tokens are
/// i32; one outside [0, shard.total) throws ShapeError. shard.count <= V; a table of no vocabulary
/// is VocabShard::whole(V).
void embedding_forward(Context& ctx,
                       ConstTensorView tokens_T,
                       const ParamStorage& w_VH,
                       VocabShard shard,
                       TensorView y_TH);

/// Adds dy_TH[t] to dw_VH[tokens_T[t] - shard.first] in ascending order of t, but for tokens of
/// other shards; dw has the master type of dy.
void embedding_backward(Context& ctx,
                        ConstTensorView dy_TH,
                        ConstTensorView tokens_T,
                        VocabShard shard,
                        const ParamStorage& dw_VH);

}  // namespace pecan::ops
