#pragma once
/// The bias of a linear layer: one number a column.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Adds b_O to each row of y_TO (f32, f64 or bf16), in place, rounded once. b has y's dtype or its
/// master type.
void add_bias(Context& ctx, ConstTensorView b_O, TensorView y_TO);

/// Adds the bias's gradient to what db_O (in the master type) holds: the column sums of dy_TO, in
/// double and ascending order of rows. No rows leave it as it is.
void bias_backward(Context& ctx, ConstTensorView dy_TO, TensorView db_O);

}  // namespace pecan::ops
