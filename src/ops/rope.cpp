#include <pecan/ops/rope.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;
namespace {

void check_rotation(const Checks& check,
                    const Context& ctx,
                    const ConstTensorView& table_SD,
                    const ConstTensorView& positions_T,
                    const ConstTensorView& x_TND) {
  check.floating("the table", table_SD.dtype);
  check.num_dims("the table", table_SD.shape, 2);
  check.num_dims("the heads", x_TND.shape, 3);
  const Shape& shape = x_TND.shape;
  check.storable("the heads", x_TND.dtype);
  check.is("the heads", x_TND, x_TND.dtype, {shape[0], shape[1], table_SD.shape[1]});
  check.is("the table", table_SD, master_of(x_TND.dtype), table_SD.shape);
  check.is_true(shape[2] % 2 == 0, "the head dim is odd; halves are turned against each other");
  if (positions_T.data == nullptr) {
    check.is_true(shape[0] == 0 || (table_SD.shape[0] > 0 && shape[0] % table_SD.shape[0] == 0),
                  "tokens are not a whole number of sequences of the table's length; pass "
                  "table.rows(0, length)");
  } else {
    check.is("positions", positions_T, DType::kI32, {shape[0]});
    for (const std::int32_t position : detail::on_host<std::int32_t>(ctx, positions_T)) {
      check.is_true(position >= 0 && position < table_SD.shape[0],
                    "a position lies outside of the table");
    }
    check.disjoint("the heads", x_TND, "positions", positions_T);
  }
  check.disjoint("the heads", x_TND, "the table", table_SD);
}

}  // namespace

void rope_table(Context& ctx, double rotary_base, TensorView table_SD) {
  const Checks check("rope_table");
  const Timed timed(ctx, check, [&] { return moves(table_SD); });
  check.floating("the table", table_SD.dtype);
  check.num_dims("the table", table_SD.shape, 2);
  check.is_true(table_SD.shape[1] % 2 == 0,
                "the head dim is odd; halves are turned against each other");
  check.is_true(rotary_base > 0, "rotary_base is not positive");
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::rope_table(ctx, rotary_base, table_SD);
    case DeviceKind::kCuda:
      return cuda::rope_table(ctx, rotary_base, table_SD);
  }
  check.refuse(ctx.device);
}

void rope_forward(Context& ctx,
                  ConstTensorView table_SD,
                  ConstTensorView positions_T,
                  TensorView x_TND) {
  const Checks check("rope_forward");
  const Timed timed(ctx, check, [&] { return moves(table_SD, positions_T, x_TND, x_TND); });
  check_rotation(check, ctx, table_SD, positions_T, x_TND);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::rope_forward(ctx, table_SD, positions_T, x_TND);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::rope_forward)(
          ctx, table_SD, positions_T, x_TND);
  }
  check.refuse(ctx.device);
}

void rope_backward(Context& ctx,
                   ConstTensorView table_SD,
                   ConstTensorView positions_T,
                   TensorView dx_TND) {
  const Checks check("rope_backward");
  const Timed timed(ctx, check, [&] { return moves(table_SD, positions_T, dx_TND, dx_TND); });
  check_rotation(check, ctx, table_SD, positions_T, dx_TND);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::rope_backward(ctx, table_SD, positions_T, dx_TND);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::rope_backward)(
          ctx, table_SD, positions_T, dx_TND);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
