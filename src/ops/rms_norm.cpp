#include <pecan/ops/rms_norm.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::bytes_added_to;
using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;
namespace {

void check_rows(const Checks& check,
                const ConstTensorView& x_TH,
                const ConstTensorView& w_H,
                const ConstTensorView& rstd_T) {
  check.storable("x", x_TH.dtype);
  check.num_dims("w", w_H.shape, 1);
  check.is("w", w_H, master_of(x_TH.dtype), w_H.shape);
  const std::int64_t width = w_H.shape[0];
  check.is_true(width > 0 && x_TH.num_elements() % width == 0,
                "x does not divide into rows of w's size");
  check.is_true(rstd_T.dtype == w_H.dtype && rstd_T.num_elements() == x_TH.num_elements() / width,
                "rstd must have w's dtype and one element a row");
}

}  // namespace

void rms_norm_forward(Context& ctx,
                      ConstTensorView x_TH,
                      ConstTensorView w_H,
                      double eps,
                      TensorView y_TH,
                      TensorView rstd_T) {
  const Checks check("rms_norm_forward");
  const Timed timed(ctx, check, [&] { return moves(x_TH, w_H, y_TH, rstd_T); });
  check_rows(check, x_TH, w_H, rstd_T);
  check.is("y", y_TH, x_TH.dtype, x_TH.shape);
  check.is_true(eps >= 0, "eps is negative or NaN");
  check.disjoint("y", y_TH, "x", x_TH);
  check.disjoint("y", y_TH, "w", w_H);
  check.disjoint("y", y_TH, "rstd", rstd_T);
  check.disjoint("rstd", rstd_T, "x", x_TH);
  check.disjoint("rstd", rstd_T, "w", w_H);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::rms_norm_forward(ctx, x_TH, w_H, eps, y_TH, rstd_T);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::rms_norm_forward)(
          ctx, x_TH, w_H, eps, y_TH, rstd_T);
  }
  check.refuse(ctx.device);
}

void rms_norm_backward(Context& ctx,
                       ConstTensorView dy_TH,
                       ConstTensorView x_TH,
                       ConstTensorView w_H,
                       ConstTensorView rstd_T,
                       TensorView dx_TH,
                       Accumulate accumulate,
                       TensorView dw_H) {
  const Checks check("rms_norm_backward");
  const Timed timed(ctx, check, [&] {
    Work work = moves(dy_TH, x_TH, w_H, rstd_T, dx_TH, dw_H, dw_H);
    work.bytes += bytes_added_to(dx_TH, accumulate);
    return work;
  });
  check_rows(check, x_TH, w_H, rstd_T);
  check.is("dy", dy_TH, x_TH.dtype, x_TH.shape);
  check.is("dx", dx_TH, x_TH.dtype, x_TH.shape);
  check.is("dw", dw_H, w_H.dtype, w_H.shape);
  if (accumulate == Accumulate::kAdd) {
    check.disjoint("dx", dx_TH, "dy", dy_TH);
  } else {
    check.same_or_disjoint("dx", dx_TH, "dy", dy_TH);
  }
  check.disjoint("dx", dx_TH, "x", x_TH);
  check.disjoint("dx", dx_TH, "w", w_H);
  check.disjoint("dx", dx_TH, "rstd", rstd_T);
  check.disjoint("dw", dw_H, "dx", dx_TH);
  check.disjoint("dw", dw_H, "dy", dy_TH);
  check.disjoint("dw", dw_H, "x", x_TH);
  check.disjoint("dw", dw_H, "w", w_H);
  check.disjoint("dw", dw_H, "rstd", rstd_T);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::rms_norm_backward(ctx, dy_TH, x_TH, w_H, rstd_T, dx_TH, accumulate, dw_H);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::rms_norm_backward)(
          ctx, dy_TH, x_TH, w_H, rstd_T, dx_TH, accumulate, dw_H);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
