#pragma once
/// Cross entropy of next-token prediction over a vocabulary whose tail may be padding, whole or cut
/// into shards. Of shards, each makes its maxima; their maximum over all shards goes into every
/// shard's sums; and the sums over all shards give loss and gradient. Whatever the cut, these
/// differ from the whole vocabulary's by the order of sums in double alone.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Computes loss_T[t] = mask_T[t] * -log softmax(logits_TV[t])[labels_T[t]], in nats, loss_T in
/// f64, computed in the master type of logits (f32, f64 or bf16). logits_TV has V >= vocab_size
/// columns; those from vocab_size on count as -inf and are not read. labels_T is i32; one outside
/// [0, vocab_size) throws ShapeError unless its mask is 0. mask_T has the dtype of logits; `{}`
/// stands for ones. A token whose mask is 0 has loss 0 whatever its logits are.
void cross_entropy_forward(Context& ctx,
                           ConstTensorView logits_TV,
                           std::int64_t vocab_size,
                           ConstTensorView labels_T,
                           ConstTensorView mask_T,
                           TensorView loss_T);

/// The same loss (not scaled), and replaces logits by their gradient, (softmax - onehot(label)) *
/// scale * mask. Gradients of padded columns and of tokens whose mask is 0 are exactly 0.
void cross_entropy_forward_backward(Context& ctx,
                                    TensorView logits_TV,
                                    std::int64_t vocab_size,
                                    ConstTensorView labels_T,
                                    ConstTensorView mask_T,
                                    double scale,
                                    TensorView loss_T);

/// Writes max_T (f64), the largest of the first shard.count logits of each token, -inf if there are
/// none. May pass over NaNs: they show in the sums. Further columns are not read.
void cross_entropy_max(Context& ctx, ConstTensorView logits_TV, VocabShard shard, TensorView max_T);

/// Writes sums_2T (f64) from max_T of all shards: in row 0 the shard's sum of exp(logit - max), in
/// row 1 the label's logit - max if the shard holds the label, else 0. Labels outside
/// [0, shard.total) and masks as in cross_entropy_forward; tokens whose mask is 0 get zeros.
void cross_entropy_sums(Context& ctx,
                        ConstTensorView logits_TV,
                        VocabShard shard,
                        ConstTensorView labels_T,
                        ConstTensorView mask_T,
                        ConstTensorView max_T,
                        TensorView sums_2T);

/// Computes loss_T[t] = mask_T[t] * (log sums[0][t] - sums[1][t]) from sums_2T of all shards, 0
/// where the mask is 0. mask_T is f32, f64 or bf16; `{}` stands for ones.
void cross_entropy_from_sums(Context& ctx,
                             ConstTensorView sums_2T,
                             ConstTensorView mask_T,
                             TensorView loss_T);

/// Replaces the shard's logits by their gradient, (softmax - onehot(label)) * scale * mask, from
/// max_T and sums_2T of all shards. Gradients of padded columns and of tokens whose mask is 0 are
/// exactly 0.
void cross_entropy_backward(Context& ctx,
                            TensorView logits_TV,
                            VocabShard shard,
                            ConstTensorView labels_T,
                            ConstTensorView mask_T,
                            ConstTensorView max_T,
                            ConstTensorView sums_2T,
                            double scale);

}  // namespace pecan::ops
