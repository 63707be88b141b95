#pragma once
/// Elementwise arithmetic on tensors of equal shape.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Sets every element to `value`; any dtype but bf16.
void fill(Context& ctx, double value, TensorView y);
/// Copies x to y, of one dtype (any).
void copy(Context& ctx, ConstTensorView x, TensorView y);
/// Converts x to y's dtype, f32 and f64 each way, rounding to nearest.
void cast(Context& ctx, ConstTensorView x, TensorView y);
/// y = a + b; y may be a or b.
void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y);
/// y += alpha * x, alpha rounded to the dtype first.
void axpy(Context& ctx, double alpha, ConstTensorView x, TensorView y);
/// y *= alpha, alpha rounded to the dtype first.
void scale(Context& ctx, double alpha, TensorView y);

}  // namespace pecan::ops
