#pragma once
/// Elementwise arithmetic on tensors of equal shape.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Sets every element to `value`; any dtype.
void fill(Context& ctx, double value, TensorView y);
/// Copies x to y, of one dtype (any).
void copy(Context& ctx, ConstTensorView x, TensorView y);
/// Converts x to y's dtype, among f32, f64 and bf16, rounding to nearest (f64 to bf16 by way of
/// f32).
void cast(Context& ctx, ConstTensorView x, TensorView y);
/// y = a + b, in the master type and rounded once; y may be a or b.
void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y);
/// y += alpha * x, computed in the master type with alpha rounded to it; x has y's dtype or its
/// master type.
void axpy(Context& ctx, double alpha, ConstTensorView x, TensorView y);
/// y *= alpha, computed in the master type with alpha rounded to it.
void scale(Context& ctx, double alpha, TensorView y);

}  // namespace pecan::ops
