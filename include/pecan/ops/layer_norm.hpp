#pragma once
/// Layer normalisation of rows, with weight and bias; also per head, with rows of D elements.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Computes y = (x - mean) * rstd * w + b with rstd = 1 / sqrt(mean((x - mean)^2) + eps) of each
/// row. x and y have one shape and dtype (f32, f64 or bf16), whose elements are taken as rows of H
/// = w_H's size; all else is in the master type. mean_T and rstd_T, saved for the backward, have
/// one element a row. Statistics are summed in double, deviations in a second pass, and rounded
/// once. Source: Ba et al., "Layer Normalization" (arXiv 1607.06450), eq. 4. Differs from the
/// paper: eps inside the root.
void layer_norm_forward(Context& ctx,
                        ConstTensorView x_TH,
                        ConstTensorView w_H,
                        ConstTensorView b_H,
                        double eps,
                        TensorView y_TH,
                        TensorView mean_T,
                        TensorView rstd_T);

/// Computes dx_TH (+)= the input's gradient, dw_H += the weight's and db_H += the bias's (both in
/// the master type, summed in double over ascending rows), from forward's x, mean and rstd. dx may
/// be dy itself with Accumulate::kOverwrite.
void layer_norm_backward(Context& ctx,
                         ConstTensorView dy_TH,
                         ConstTensorView x_TH,
                         ConstTensorView w_H,
                         ConstTensorView mean_T,
                         ConstTensorView rstd_T,
                         TensorView dx_TH,
                         Accumulate accumulate,
                         TensorView dw_H,
                         TensorView db_H);

}  // namespace pecan::ops
