#pragma once
/// Reductions of a tensor to one number, in double and in an order that does not depend on
/// ctx.threads.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Sum of all elements; 0 of none.
[[nodiscard]] double sum(Context& ctx, ConstTensorView x);
/// Sum of squares of all elements; 0 of none.
[[nodiscard]] double sum_of_squares(Context& ctx, ConstTensorView x);
/// The same to sum_1 (f64): on a device the host does not wait.
void sum_of_squares(Context& ctx, ConstTensorView x, TensorView sum_1);
/// Number of elements that are NaN or infinite; also of bf16.
[[nodiscard]] std::int64_t count_non_finite(Context& ctx, ConstTensorView x);
/// Largest magnitude; 0 of none. NaNs are passed over (count_non_finite finds them).
[[nodiscard]] double max_abs(Context& ctx, ConstTensorView x);

}  // namespace pecan::ops
