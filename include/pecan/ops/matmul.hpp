#pragma once
/// The one entry of matrix products with a parameter: y = x W^T and its two gradients.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Takes from ctx.workspace what products of `dtype` take, and gives it back: on a measuring arena,
/// their high water.
void plan_matmul(Context& ctx, DType dtype);

/// Computes y_TO = x_TI w_OI^T, all f32, f64 or bf16. The weight may be stored in any order. I = 0
/// gives zeros. Accumulates in the master type and rounds once. Scratch for bf16: a fixed block of
/// ctx.workspace. Cost: 2 T I O flops.
void matmul_forward(Context& ctx, ConstTensorView x_TI, const ParamStorage& w_OI, TensorView y_TO);

/// Computes the input's gradient, dx_TI (+)= dy_TO w_OI.
void matmul_backward_input(Context& ctx,
                           ConstTensorView dy_TO,
                           const ParamStorage& w_OI,
                           TensorView dx_TI,
                           Accumulate accumulate);

/// Adds the weight's gradient to what dw holds, dw_OI += dy_TO^T x_TI, with dw in the master type;
/// no tokens leave it as it is.
void matmul_backward_weight(Context& ctx,
                            ConstTensorView dy_TO,
                            ConstTensorView x_TI,
                            const ParamStorage& dw_OI);

}  // namespace pecan::ops
