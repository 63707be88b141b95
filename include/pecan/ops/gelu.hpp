#pragma once
/// Activation without a gate: gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Computes h = gelu(x), elementwise, both f32, f64 or bf16 of one shape. h may be x. Source:
/// Hendrycks and Gimpel, "Gaussian Error Linear Units" (arXiv 1606.08415), section 2, the tanh
/// form. Differs from the paper: none.
void gelu_forward(Context& ctx, ConstTensorView x_TF, TensorView h_TF);

/// Computes dx from dh and forward's x. dx may be dh or x.
void gelu_backward(Context& ctx, ConstTensorView dh_TF, ConstTensorView x_TF, TensorView dx_TF);

}  // namespace pecan::ops
