#include <pecan/ops/swiglu.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;

void swiglu_forward(Context& ctx, ConstTensorView gate_TF, ConstTensorView up_TF, TensorView h_TF) {
  const Checks check("swiglu_forward");
  const Timed timed(ctx, check, [&] { return moves(gate_TF, up_TF, h_TF); });
  check.storable("gate", gate_TF.dtype);
  check.is("up", up_TF, gate_TF.dtype, gate_TF.shape);
  check.is("h", h_TF, gate_TF.dtype, gate_TF.shape);
  check.same_or_disjoint("h", h_TF, "gate", gate_TF);
  check.same_or_disjoint("h", h_TF, "up", up_TF);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::swiglu_forward(ctx, gate_TF, up_TF, h_TF);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::swiglu_forward)(ctx, gate_TF, up_TF, h_TF);
  }
  check.refuse(ctx.device);
}

void swiglu_backward(Context& ctx,
                     ConstTensorView dh_TF,
                     ConstTensorView gate_TF,
                     ConstTensorView up_TF,
                     TensorView dgate_TF,
                     TensorView dup_TF) {
  const Checks check("swiglu_backward");
  const Timed timed(ctx, check, [&] { return moves(dh_TF, gate_TF, up_TF, dgate_TF, dup_TF); });
  check.storable("gate", gate_TF.dtype);
  check.is("up", up_TF, gate_TF.dtype, gate_TF.shape);
  check.is("dh", dh_TF, gate_TF.dtype, gate_TF.shape);
  check.disjoint("dgate", dgate_TF, "dup", dup_TF);
  for (const TensorView& out : {dgate_TF, dup_TF}) {
    check.is("a gradient", out, gate_TF.dtype, gate_TF.shape);
    check.same_or_disjoint("a gradient", out, "dh", dh_TF);
    check.same_or_disjoint("a gradient", out, "gate", gate_TF);
    check.same_or_disjoint("a gradient", out, "up", up_TF);
  }
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::swiglu_backward(ctx, dh_TF, gate_TF, up_TF, dgate_TF, dup_TF);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::swiglu_backward)(
          ctx, dh_TF, gate_TF, up_TF, dgate_TF, dup_TF);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
