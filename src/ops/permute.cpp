#include <limits>
#include <utility>

#include <pecan/ops/permute.hpp>

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

/// `lowest` is -1 where a slot may be dropped.
void check_indices(const Context& ctx,
                   const ConstTensorView& indices,
                   std::int32_t lowest,
                   std::int64_t end) {
  for (const std::int32_t index : detail::on_host<std::int32_t>(ctx, indices)) {
    PECAN_VALIDATE(index >= lowest && index < end,
                   ShapeError,
                   "permute: index {} lies outside the {} rows or token-slots",
                   index,
                   end);
  }
}

/// Rows in expert order, the position of each slot, and the tokens' side.
void check_slots(const Checks& check,
                 const Context& ctx,
                 const ConstTensorView& rows_PH,
                 const ConstTensorView& positions_TK,
                 const ConstTensorView& tokens_TH) {
  check.storable("the rows", rows_PH.dtype);
  check.num_dims("the rows", rows_PH.shape, 2);
  check.num_dims("positions", positions_TK.shape, 2);
  check.is("positions", positions_TK, DType::kI32, positions_TK.shape);
  check.is_true(rows_PH.shape[0] <= positions_TK.num_elements(), "there are more rows than slots");
  check.is("the tokens", tokens_TH, rows_PH.dtype, {positions_TK.shape[0], rows_PH.shape[1]});
  check_indices(ctx, positions_TK, -1, rows_PH.shape[0]);
}

}  // namespace

void permute_plan(Context& ctx,
                  ConstTensorView topk_ids_TK,
                  TensorView counts_E,
                  TensorView order_P,
                  TensorView positions_TK) {
  const Checks check("permute_plan");
  const Timed timed(
      ctx, check, [&] { return moves(topk_ids_TK, counts_E, order_P, positions_TK); });
  check.num_dims("topk_ids", topk_ids_TK.shape, 2);
  check.num_dims("counts", counts_E.shape, 1);
  check.is("topk_ids", topk_ids_TK, DType::kI32, topk_ids_TK.shape);
  check.is("counts", counts_E, DType::kI64, counts_E.shape);
  check.is("order", order_P, DType::kI32, {topk_ids_TK.num_elements()});
  check.is("positions", positions_TK, DType::kI32, topk_ids_TK.shape);
  check.is_true(topk_ids_TK.num_elements() <= std::numeric_limits<std::int32_t>::max(),
                "more token-slots than 32 bits count");
  check.disjoint("counts", counts_E, "topk_ids", topk_ids_TK);
  check.disjoint("order", order_P, "topk_ids", topk_ids_TK);
  check.disjoint("positions", positions_TK, "topk_ids", topk_ids_TK);
  check.disjoint("order", order_P, "positions", positions_TK);
  check.disjoint("order", order_P, "counts", counts_E);
  check.disjoint("positions", positions_TK, "counts", counts_E);
  for (const std::int32_t id : detail::on_host<std::int32_t>(ctx, topk_ids_TK)) {
    PECAN_VALIDATE(id >= -1 && id < counts_E.shape[0],
                   ShapeError,
                   "permute_plan: expert {} is chosen of {}",
                   id,
                   counts_E.shape[0]);
  }
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::permute_plan(ctx, topk_ids_TK, counts_E, order_P, positions_TK);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::permute_plan)(
          ctx, topk_ids_TK, counts_E, order_P, positions_TK);
  }
  check.refuse(ctx.device);
}

void permute_forward(Context& ctx,
                     ConstTensorView x_TH,
                     ConstTensorView order_P,
                     TensorView rows_PH) {
  const Checks check("permute_forward");
  const Timed timed(ctx, check, [&] { return moves(order_P, rows_PH, rows_PH); });
  check.storable("x", x_TH.dtype);
  check.num_dims("x", x_TH.shape, 2);
  check.num_dims("order", order_P.shape, 1);
  const std::int64_t slots = order_P.shape[0];
  check.is("order", order_P, DType::kI32, {slots});
  check.num_dims("rows", rows_PH.shape, 2);
  check.is("rows", rows_PH, x_TH.dtype, {rows_PH.shape[0], x_TH.shape[1]});
  check.is_true(rows_PH.shape[0] <= slots, "there are more rows than slots");
  check.is_true(x_TH.shape[0] == 0 ? slots == 0 : slots % x_TH.shape[0] == 0,
                "order does not hold the same number of slots for each token of x");
  check_indices(ctx, order_P, 0, slots);
  check.disjoint("rows", rows_PH, "x", x_TH);
  check.disjoint("rows", rows_PH, "order", order_P);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::permute_forward(ctx, x_TH, order_P, rows_PH);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::permute_forward)(ctx, x_TH, order_P, rows_PH);
  }
  check.refuse(ctx.device);
}

void permute_backward(Context& ctx,
                      ConstTensorView drows_PH,
                      ConstTensorView positions_TK,
                      TensorView dx_TH,
                      Accumulate accumulate) {
  const Checks check("permute_backward");
  const Timed timed(ctx, check, [&] {
    Work work = moves(drows_PH, positions_TK, dx_TH);
    work.bytes += bytes_added_to(dx_TH, accumulate);
    return work;
  });
  check_slots(check, ctx, drows_PH, positions_TK, dx_TH);
  check.disjoint("dx", dx_TH, "drows", drows_PH);
  check.disjoint("dx", dx_TH, "positions", positions_TK);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::permute_backward(ctx, drows_PH, positions_TK, dx_TH, accumulate);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::permute_backward)(
          ctx, drows_PH, positions_TK, dx_TH, accumulate);
  }
  check.refuse(ctx.device);
}

void unpermute_forward(Context& ctx,
                       ConstTensorView rows_PH,
                       ConstTensorView positions_TK,
                       ConstTensorView weights_TK,
                       TensorView y_TH,
                       Accumulate accumulate) {
  const Checks check("unpermute_forward");
  const Timed timed(ctx, check, [&] {
    Work work = moves(rows_PH, positions_TK, weights_TK, y_TH);
    work.bytes += bytes_added_to(y_TH, accumulate);
    return work;
  });
  check_slots(check, ctx, rows_PH, positions_TK, y_TH);
  check.is("weights", weights_TK, master_of(rows_PH.dtype), positions_TK.shape);
  check.disjoint("y", y_TH, "rows", rows_PH);
  check.disjoint("y", y_TH, "positions", positions_TK);
  check.disjoint("y", y_TH, "weights", weights_TK);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::unpermute_forward(ctx, rows_PH, positions_TK, weights_TK, y_TH, accumulate);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::unpermute_forward)(
          ctx, rows_PH, positions_TK, weights_TK, y_TH, accumulate);
  }
  check.refuse(ctx.device);
}

void unpermute_backward(Context& ctx,
                        ConstTensorView dy_TH,
                        ConstTensorView rows_PH,
                        ConstTensorView positions_TK,
                        ConstTensorView weights_TK,
                        TensorView drows_PH,
                        TensorView dweights_TK) {
  const Checks check("unpermute_backward");
  const Timed timed(ctx, check, [&] {
    return moves(dy_TH, rows_PH, positions_TK, weights_TK, drows_PH, dweights_TK);
  });
  check_slots(check, ctx, rows_PH, positions_TK, dy_TH);
  check.is("weights", weights_TK, master_of(rows_PH.dtype), positions_TK.shape);
  check.is("drows", drows_PH, rows_PH.dtype, rows_PH.shape);
  check.is("dweights", dweights_TK, master_of(rows_PH.dtype), positions_TK.shape);
  check.same_or_disjoint("drows", drows_PH, "rows", rows_PH);
  for (const auto& [name, input] :
       {std::pair{"dy", dy_TH}, {"positions", positions_TK}, {"weights", weights_TK}}) {
    check.disjoint("drows", drows_PH, name, input);
    check.disjoint("dweights", dweights_TK, name, input);
  }
  check.disjoint("dweights", dweights_TK, "rows", rows_PH);
  check.disjoint("dweights", dweights_TK, "drows", drows_PH);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::unpermute_backward(
          ctx, dy_TH, rows_PH, positions_TK, weights_TK, drows_PH, dweights_TK);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::unpermute_backward)(
          ctx, dy_TH, rows_PH, positions_TK, weights_TK, drows_PH, dweights_TK);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
