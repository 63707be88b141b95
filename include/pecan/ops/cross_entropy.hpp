#pragma once
/// Cross entropy of next-token prediction over a vocabulary whose tail may be padding.

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

}  // namespace pecan::ops
