#pragma once
/// Token embedding: rows of a table, and the gradient back into them.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Copies rows of one type, f32, f64 or bf16: y_TH[t] = w_VH[tokens_T[t]]. Tokens are i32; one
/// outside [0, V) throws ShapeError.
void embedding_forward(Context& ctx,
                       ConstTensorView tokens_T,
                       const ParamStorage& w_VH,
                       TensorView y_TH);

/// Adds dy_TH[t] to dw_VH[tokens_T[t]] in ascending order of t; dw has the master type of dy.
void embedding_backward(Context& ctx,
                        ConstTensorView dy_TH,
                        ConstTensorView tokens_T,
                        const ParamStorage& dw_VH);

}  // namespace pecan::ops
