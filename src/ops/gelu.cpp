#include <pecan/ops/gelu.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;

void gelu_forward(Context& ctx, ConstTensorView x_TF, TensorView h_TF) {
  const Checks check("gelu_forward");
  const Timed timed(ctx, check, [&] { return moves(x_TF, h_TF); });
  check.storable("x", x_TF.dtype);
  check.is("h", h_TF, x_TF.dtype, x_TF.shape);
  check.same_or_disjoint("h", h_TF, "x", x_TF);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::gelu_forward(ctx, x_TF, h_TF);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::gelu_forward)(ctx, x_TF, h_TF);
  }
  check.refuse(ctx.device);
}

void gelu_backward(Context& ctx, ConstTensorView dh_TF, ConstTensorView x_TF, TensorView dx_TF) {
  const Checks check("gelu_backward");
  const Timed timed(ctx, check, [&] { return moves(dh_TF, x_TF, dx_TF); });
  check.storable("x", x_TF.dtype);
  check.is("dh", dh_TF, x_TF.dtype, x_TF.shape);
  check.is("dx", dx_TF, x_TF.dtype, x_TF.shape);
  check.same_or_disjoint("dx", dx_TF, "dh", dh_TF);
  check.same_or_disjoint("dx", dx_TF, "x", x_TF);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::gelu_backward(ctx, dh_TF, x_TF, dx_TF);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::gelu_backward)(ctx, dh_TF, x_TF, dx_TF);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
