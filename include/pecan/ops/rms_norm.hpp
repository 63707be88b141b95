#pragma once
/// Root-mean-square normalisation of rows; also per head, with rows of D elements.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Computes y = x * rstd * w with rstd = 1 / sqrt(mean(x^2) + eps) of each row.
/// x and y (f32, f64 or bf16; w, rstd and dw in their master type) have one shape, whose elements
/// are taken as rows of H = w_H's size; rstd_T, saved for the backward, has one element a row.
/// Statistics are summed in double and rounded once.
void rms_norm_forward(Context& ctx,
                      ConstTensorView x_TH,
                      ConstTensorView w_H,
                      double eps,
                      TensorView y_TH,
                      TensorView rstd_T);

/// Computes dx_TH (+)= the input's gradient and dw_H += the weight's, from forward's x and rstd.
/// dx may be dy itself with Accumulate::kOverwrite.
void rms_norm_backward(Context& ctx,
                       ConstTensorView dy_TH,
                       ConstTensorView x_TH,
                       ConstTensorView w_H,
                       ConstTensorView rstd_T,
                       TensorView dx_TH,
                       Accumulate accumulate,
                       TensorView dw_H);

}  // namespace pecan::ops
