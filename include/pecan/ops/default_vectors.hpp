#pragma once
/// Default vectors: what stands for the output of an expert that a token was not sent to, and what
/// they are made of. Scores are the softmax over all E experts. Source for all: Panda et al.,
/// "Dense Backpropagation Improves Training for Sparse Mixture-of-Experts" (arXiv 2504.12463),
/// section 3. Differs from the paper: a choice that was dropped over capacity (id -1) counts as not
/// made.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Computes weights_TE = scale * probs_TE where expert e is not among the token's ids_TK (i32, -1
/// for none), else 0: the factors of the default vectors. f32 or f64.
void default_weights_forward(Context& ctx,
                             double scale,
                             ConstTensorView probs_TE,
                             ConstTensorView ids_TK,
                             TensorView weights_TE);

/// Computes dlogits_TE += the gradient of the scores' logits through forward's weights_TE, whose
/// gradient is dweights_TE; what stands in dweights_TE for a token's own experts is not looked at.
void default_weights_backward(Context& ctx,
                              double scale,
                              ConstTensorView probs_TE,
                              ConstTensorView ids_TK,
                              ConstTensorView dweights_TE,
                              TensorView dlogits_TE);

/// Sums the outputs of each expert and their weights: row e of sums_EC, C = H + 1, (+)= (sum of w_s
/// y_s, sum of w_s) over the slots s with expert e in ascending order of rows. rows_SH (f32, f64 or
/// bf16) holds outputs in the order of the first S of order_P, which are slots of ids_TK and
/// weights_TK (permute_plan). Weights and sums in the master type; sums of a call are made in
/// double and rounded once.
void expert_output_sums(Context& ctx,
                        ConstTensorView rows_SH,
                        ConstTensorView order_P,
                        ConstTensorView ids_TK,
                        ConstTensorView weights_TK,
                        TensorView sums_EC,
                        Accumulate accumulate);

/// Moves vectors_EH towards the means that sums_EC make: v = beta v + (1 - beta) mean, f32 or f64,
/// 0 <= beta < 1. A vector whose weights sum to 0 stays as it is.
void default_vectors_update(Context& ctx,
                            double beta,
                            ConstTensorView sums_EC,
                            TensorView vectors_EH);

}  // namespace pecan::ops
