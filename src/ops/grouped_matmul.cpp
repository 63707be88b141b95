#include <pecan/ops/grouped_matmul.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::bytes_added_to;
using detail::bytes_in;
using detail::Checks;
using detail::products_of_groups;
using detail::Timed;
using device::DeviceKind;
namespace {

using Counts = std::span<const std::int64_t>;
using Weights = std::span<const ParamStorage>;

/// The input [R, I] and output [R, O] of products with weights [O, I], all of one type but the
/// gradients of weights, which have the master type and may lack memory.
void check_products(const Checks& check,
                    Counts counts_E,
                    const ConstTensorView& x_RI,
                    Weights w_EOI,
                    DType weight_type,
                    const ConstTensorView& y_RO) {
  check.storable("the input side", x_RI.dtype);
  check.num_dims("the input side", x_RI.shape, 2);
  check.num_dims("the output side", y_RO.shape, 2);
  check.is_true(counts_E.size() == w_EOI.size(), "as many counts as weights are needed");
  std::int64_t rows = 0;
  for (const std::int64_t count : counts_E) {
    check.is_true(count >= 0, "a count is negative");
    rows += count;
  }
  check.is("the input side", x_RI, x_RI.dtype, {rows, x_RI.shape[1]});
  check.is("the output side", y_RO, x_RI.dtype, {rows, y_RO.shape[1]});
  for (const ParamStorage& w_OI : w_EOI) {
    if (w_OI.shape().num_dims() == 0) continue;
    check.is_true(w_OI.dtype() == weight_type, "a weight has another type than the tensors");
    check.num_dims("a weight", w_OI.shape(), 2);
    check.is_true(w_OI.shape()[0] == y_RO.shape[1] && w_OI.shape()[1] == x_RI.shape[1],
                  "a weight does not have the shape [outputs, inputs]");
  }
}

}  // namespace

void grouped_matmul_forward(
    Context& ctx, Counts counts_E, ConstTensorView x_RI, Weights w_EOI, TensorView y_RO) {
  const Checks check("grouped_matmul_forward");
  const Timed timed(ctx, check, [&] { return products_of_groups(counts_E, x_RI, w_EOI, y_RO); });
  check_products(check, counts_E, x_RI, w_EOI, x_RI.dtype, y_RO);
  check.complete(w_EOI);
  check.disjoint("y", y_RO, "x", x_RI);
  check.disjoint("y", y_RO, w_EOI);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      cpu::grouped_matmul_forward(ctx, counts_E, x_RI, w_EOI, y_RO);
      return ctx.advance();
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::grouped_matmul_forward)(
          ctx, counts_E, x_RI, w_EOI, y_RO);
  }
  check.refuse(ctx.device);
}

void grouped_matmul_backward_input(Context& ctx,
                                   Counts counts_E,
                                   ConstTensorView dy_RO,
                                   Weights w_EOI,
                                   TensorView dx_RI,
                                   Accumulate accumulate) {
  const Checks check("grouped_matmul_backward_input");
  const Timed timed(ctx, check, [&] {
    Work work = products_of_groups(counts_E, dx_RI, w_EOI, dy_RO);
    work.bytes += bytes_added_to(dx_RI, accumulate);
    return work;
  });
  check_products(check, counts_E, dx_RI, w_EOI, dx_RI.dtype, dy_RO);
  check.complete(w_EOI);
  check.disjoint("dx", dx_RI, "dy", dy_RO);
  check.disjoint("dx", dx_RI, w_EOI);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      cpu::grouped_matmul_backward_input(ctx, counts_E, dy_RO, w_EOI, dx_RI, accumulate);
      return ctx.advance();
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::grouped_matmul_backward_input)(
          ctx, counts_E, dy_RO, w_EOI, dx_RI, accumulate);
  }
  check.refuse(ctx.device);
}

void grouped_matmul_backward_weight(
    Context& ctx, Counts counts_E, ConstTensorView dy_RO, ConstTensorView x_RI, Weights dw_EOI) {
  const Checks check("grouped_matmul_backward_weight");
  const Timed timed(ctx, check, [&] {
    Work work = products_of_groups(counts_E, x_RI, dw_EOI, dy_RO);
    for (const ParamStorage& dw_OI : dw_EOI) work.bytes += bytes_in(dw_OI);
    return work;
  });
  check_products(check, counts_E, x_RI, dw_EOI, master_of(x_RI.dtype), dy_RO);
  check.disjoint("dy", dy_RO, dw_EOI);
  check.disjoint("x", x_RI, dw_EOI);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      cpu::grouped_matmul_backward_weight(ctx, counts_E, dy_RO, x_RI, dw_EOI);
      return ctx.advance();
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::grouped_matmul_backward_weight)(
          ctx, counts_E, dy_RO, x_RI, dw_EOI);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
