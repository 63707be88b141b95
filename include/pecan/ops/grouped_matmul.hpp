#pragma once
/// Products of groups of rows, each with a weight of its own, such as the experts of a layer:
/// matmul.hpp for each group in one call. On a CPU its time depends on the rows in all, not on how
/// they are spread over the groups; on CUDA it is one product of cuBLAS a group. Legend: E groups,
/// R rows.
///
/// counts_E gives the rows of each group, which follow one another in the row tensors, without
/// padding; groups without rows are fine. Weights share dtype and shape [O, I] and may be stored in
/// any order. The scratch is that of plan_matmul. Each group's result is the one that matmul.hpp
/// gives for its rows, bit by bit.

#include <span>

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Computes y_RO = x_RI w^T with each row's own weight. Cost: 2 R I O flops.
void grouped_matmul_forward(Context& ctx,
                            std::span<const std::int64_t> counts_E,
                            ConstTensorView x_RI,
                            std::span<const ParamStorage> w_EOI,
                            TensorView y_RO);

/// Computes the input's gradient, dx_RI (+)= dy_RO w.
void grouped_matmul_backward_input(Context& ctx,
                                   std::span<const std::int64_t> counts_E,
                                   ConstTensorView dy_RO,
                                   std::span<const ParamStorage> w_EOI,
                                   TensorView dx_RI,
                                   Accumulate accumulate);

/// Adds each weight's gradient to what dw holds, dw_OI += dy^T x over the group's rows, with dw in
/// the master type. A dw without memory (ParamStorage{}) is left out.
void grouped_matmul_backward_weight(Context& ctx,
                                    std::span<const std::int64_t> counts_E,
                                    ConstTensorView dy_RO,
                                    ConstTensorView x_RI,
                                    std::span<const ParamStorage> dw_EOI);

}  // namespace pecan::ops
