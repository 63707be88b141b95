#include <pecan/ops/matmul.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/products.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::bytes_added_to;
using detail::bytes_in;
using detail::bytes_of;
using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;
namespace {

/// The input [T, I] and output [T, O] of a product with a weight [O, I], all of one type but a
/// weight's gradient, which has the master type.
void check_product(const Checks& check,
                   const ConstTensorView& x_TI,
                   const ParamStorage& w_OI,
                   DType weight_type,
                   const ConstTensorView& y_TO) {
  check.storable("the input side", x_TI.dtype);
  check.is_true(w_OI.dtype() == weight_type, "the weight has another type than the tensors");
  check.num_dims("the weight", w_OI.shape(), 2);
  check.num_dims("the input side", x_TI.shape, 2);
  const std::int64_t tokens = x_TI.shape[0];
  check.is("the input side", x_TI, x_TI.dtype, {tokens, w_OI.shape()[1]});
  check.is("the output side", y_TO, x_TI.dtype, {tokens, w_OI.shape()[0]});
}

/// Of y_TO = x_TI w_OI^T and of both its gradients.
Work product(const ConstTensorView& x_TI, const ParamStorage& w_OI, const ConstTensorView& y_TO) {
  Work work = moves(x_TI, w_OI, y_TO);
  work.flops = 2 * x_TI.shape[0] * w_OI.shape().num_elements();
  work.dtype = x_TI.dtype;
  return work;
}

}  // namespace

void plan_matmul(Context& ctx, DType dtype) {
  Checks("plan_matmul").storable("the input side", dtype);
  const device::ArenaScope scope(ctx.workspace);
  static_cast<void>(detail::allocate_product_scratch(ctx, dtype));
}

void matmul_forward(Context& ctx, ConstTensorView x_TI, const ParamStorage& w_OI, TensorView y_TO) {
  const Checks check("matmul_forward");
  const Timed timed(ctx, check, [&] { return product(x_TI, w_OI, y_TO); });
  check_product(check, x_TI, w_OI, x_TI.dtype, y_TO);
  check.disjoint("y", y_TO, "x", x_TI);
  check.disjoint("y", y_TO, "w", bytes_of(w_OI));
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      cpu::matmul_forward(ctx, x_TI, w_OI, y_TO);
      return ctx.advance();
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::matmul_forward)(ctx, x_TI, w_OI, y_TO);
  }
  check.refuse(ctx.device);
}

void matmul_backward_input(Context& ctx,
                           ConstTensorView dy_TO,
                           const ParamStorage& w_OI,
                           TensorView dx_TI,
                           Accumulate accumulate) {
  const Checks check("matmul_backward_input");
  const Timed timed(ctx, check, [&] {
    Work work = product(dx_TI, w_OI, dy_TO);
    work.bytes += bytes_added_to(dx_TI, accumulate);
    return work;
  });
  check_product(check, dx_TI, w_OI, dx_TI.dtype, dy_TO);
  check.disjoint("dx", dx_TI, "dy", dy_TO);
  check.disjoint("dx", dx_TI, "w", bytes_of(w_OI));
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      cpu::matmul_backward_input(ctx, dy_TO, w_OI, dx_TI, accumulate);
      return ctx.advance();
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::matmul_backward_input)(
          ctx, dy_TO, w_OI, dx_TI, accumulate);
  }
  check.refuse(ctx.device);
}

void matmul_backward_weight(Context& ctx,
                            ConstTensorView dy_TO,
                            ConstTensorView x_TI,
                            const ParamStorage& dw_OI) {
  const Checks check("matmul_backward_weight");
  const Timed timed(ctx, check, [&] {
    Work work = product(x_TI, dw_OI, dy_TO);
    work.bytes += bytes_in(dw_OI);
    return work;
  });
  check_product(check, x_TI, dw_OI, master_of(x_TI.dtype), dy_TO);
  check.disjoint("dw", bytes_of(dw_OI), "dy", dy_TO);
  check.disjoint("dw", bytes_of(dw_OI), "x", x_TI);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      cpu::matmul_backward_weight(ctx, dy_TO, x_TI, dw_OI);
      return ctx.advance();
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::matmul_backward_weight)(
          ctx, dy_TO, x_TI, dw_OI);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
