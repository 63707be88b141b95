#pragma once
/// AdamW: one fused pass over parameter, moments and gradient.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

struct AdamWOptions {
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double grad_scale = 1;  ///< multiplies the gradient first (clipping factor)
  std::int64_t update_count =
      1;  ///< number of this update of these elements, from 1; for the bias correction
};

/// Updates p, m and v in place by the gradient g; all in the same (storage) order, of one size and
/// dtype:
///   g' = grad_scale g;  p -= lr weight_decay p;  m = beta1 m + (1 - beta1) g';  v = beta2 v + (1 -
///   beta2) g'^2; p -= lr / (1 - beta1^n) * m / (sqrt(v / (1 - beta2^n)) + eps),  n = update_count.
/// rounded_p (bf16, of p's size; {}: none; for p in f32) receives the new p, rounded, in the same
/// pass. Each element is bit-exact for any thread count, split of the span, and x86-64 machine.
/// Cost: 28 bytes moved an f32 element, 30 with rounded_p. Source: Loshchilov and Hutter,
/// "Decoupled weight decay regularization" (arXiv 1711.05101), algorithm 2. Differs from the paper:
/// decay is multiplied by lr (as PyTorch does) and comes before the step.
void adamw_update(Context& ctx,
                  const AdamWOptions& options,
                  ConstTensorView g,
                  TensorView p,
                  TensorView m,
                  TensorView v,
                  TensorView rounded_p = {});

}  // namespace pecan::ops
