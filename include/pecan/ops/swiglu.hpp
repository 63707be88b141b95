#pragma once
/// Gated activation h = silu(gate) * up, silu(x) = x / (1 + exp(-x)).

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Computes h = silu(gate) * up, elementwise, all of one shape. h may be gate or up.
void swiglu_forward(Context& ctx, ConstTensorView gate_TF, ConstTensorView up_TF, TensorView h_TF);

/// Computes dgate and dup from dh. Each output may be one of the inputs (the usual: dgate over
/// gate, dup over up).
void swiglu_backward(Context& ctx,
                     ConstTensorView dh_TF,
                     ConstTensorView gate_TF,
                     ConstTensorView up_TF,
                     TensorView dgate_TF,
                     TensorView dup_TF);

}  // namespace pecan::ops
