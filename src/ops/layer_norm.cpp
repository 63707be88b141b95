#include <array>
#include <utility>

#include <pecan/ops/layer_norm.hpp>

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

using Named = std::pair<std::string_view, ConstTensorView>;

void check_rows(const Checks& check,
                const ConstTensorView& x_TH,
                const ConstTensorView& w_H,
                const ConstTensorView& mean_T,
                const ConstTensorView& rstd_T) {
  check.storable("x", x_TH.dtype);
  const DType master = master_of(x_TH.dtype);
  check.num_dims("w", w_H.shape, 1);
  check.is("w", w_H, master, w_H.shape);
  const std::int64_t width = w_H.shape[0];
  check.is_true(width > 0 && x_TH.num_elements() % width == 0,
                "x does not divide into rows of w's size");
  for (const ConstTensorView& statistic : {mean_T, rstd_T}) {
    check.is_true(
        statistic.dtype == master && statistic.num_elements() == x_TH.num_elements() / width,
        "mean and rstd must have x's master type and one element a row");
  }
}

/// No output overlaps an input or another output.
template <std::size_t kOutputs, std::size_t kInputs>
void check_apart(const Checks& check,
                 const std::array<Named, kOutputs>& outputs,
                 const std::array<Named, kInputs>& inputs) {
  for (std::size_t i = 0; i < kOutputs; ++i) {
    const auto& [name, output] = outputs[i];
    for (const auto& [other, input] : inputs) check.disjoint(name, output, other, input);
    for (std::size_t j = i + 1; j < kOutputs; ++j)
      check.disjoint(name, output, outputs[j].first, outputs[j].second);
  }
}

}  // namespace

void layer_norm_forward(Context& ctx,
                        ConstTensorView x_TH,
                        ConstTensorView w_H,
                        ConstTensorView b_H,
                        double eps,
                        TensorView y_TH,
                        TensorView mean_T,
                        TensorView rstd_T) {
  const Checks check("layer_norm_forward");
  const Timed timed(ctx, check, [&] { return moves(x_TH, w_H, b_H, y_TH, mean_T, rstd_T); });
  check_rows(check, x_TH, w_H, mean_T, rstd_T);
  check.is("b", b_H, w_H.dtype, w_H.shape);
  check.is("y", y_TH, x_TH.dtype, x_TH.shape);
  check.is_true(eps >= 0, "eps is negative or NaN");
  check_apart(check,
              std::array{Named{"y", y_TH}, Named{"mean", mean_T}, Named{"rstd", rstd_T}},
              std::array{Named{"x", x_TH}, Named{"w", w_H}, Named{"b", b_H}});
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::layer_norm_forward(ctx, x_TH, w_H, b_H, eps, y_TH, mean_T, rstd_T);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::layer_norm_forward)(
          ctx, x_TH, w_H, b_H, eps, y_TH, mean_T, rstd_T);
  }
  check.refuse(ctx.device);
}

void layer_norm_backward(Context& ctx,
                         ConstTensorView dy_TH,
                         ConstTensorView x_TH,
                         ConstTensorView w_H,
                         ConstTensorView mean_T,
                         ConstTensorView rstd_T,
                         TensorView dx_TH,
                         Accumulate accumulate,
                         TensorView dw_H,
                         TensorView db_H) {
  const Checks check("layer_norm_backward");
  const Timed timed(ctx, check, [&] {
    Work work = moves(dy_TH, x_TH, w_H, mean_T, rstd_T, dx_TH, dw_H, dw_H, db_H, db_H);
    work.bytes += bytes_added_to(dx_TH, accumulate);
    return work;
  });
  check_rows(check, x_TH, w_H, mean_T, rstd_T);
  check.is("dy", dy_TH, x_TH.dtype, x_TH.shape);
  check.is("dx", dx_TH, x_TH.dtype, x_TH.shape);
  check.is("dw", dw_H, w_H.dtype, w_H.shape);
  check.is("db", db_H, w_H.dtype, w_H.shape);
  if (accumulate == Accumulate::kAdd) {
    check.disjoint("dx", dx_TH, "dy", dy_TH);
  } else {
    check.same_or_disjoint("dx", dx_TH, "dy", dy_TH);
  }
  check_apart(
      check,
      std::array{Named{"dx", dx_TH}, Named{"dw", dw_H}, Named{"db", db_H}},
      std::array{Named{"x", x_TH}, Named{"w", w_H}, Named{"mean", mean_T}, Named{"rstd", rstd_T}});
  check.disjoint("dw", dw_H, "dy", dy_TH);
  check.disjoint("db", db_H, "dy", dy_TH);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::layer_norm_backward(
          ctx, dy_TH, x_TH, w_H, mean_T, rstd_T, dx_TH, accumulate, dw_H, db_H);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::layer_norm_backward)(
          ctx, dy_TH, x_TH, w_H, mean_T, rstd_T, dx_TH, accumulate, dw_H, db_H);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
