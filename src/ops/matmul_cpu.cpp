#include "ops/backends.hpp"

/// A product with one weight is a group of its own.
namespace pecan::ops::cpu {

void matmul_forward(Context& ctx, ConstTensorView x_TI, const ParamStorage& w_OI, TensorView y_TO) {
  grouped_matmul_forward(ctx, {&x_TI.shape.extents()[0], 1}, x_TI, {&w_OI, 1}, y_TO);
}

void matmul_backward_input(Context& ctx,
                           ConstTensorView dy_TO,
                           const ParamStorage& w_OI,
                           TensorView dx_TI,
                           Accumulate accumulate) {
  grouped_matmul_backward_input(
      ctx, {&dy_TO.shape.extents()[0], 1}, dy_TO, {&w_OI, 1}, dx_TI, accumulate);
}

void matmul_backward_weight(Context& ctx,
                            ConstTensorView dy_TO,
                            ConstTensorView x_TI,
                            const ParamStorage& dw_OI) {
  grouped_matmul_backward_weight(ctx, {&x_TI.shape.extents()[0], 1}, dy_TO, x_TI, {&dw_OI, 1});
}

}  // namespace pecan::ops::cpu
