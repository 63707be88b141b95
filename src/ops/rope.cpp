#include <pecan/ops/rope.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"

namespace pecan::ops {

using detail::Checks;
using device::DeviceKind;
namespace {

void check_rotation(const Checks& check,
                    const ConstTensorView& table_SD,
                    const ConstTensorView& x_TND) {
  check.floating("the table", table_SD.dtype);
  check.num_dims("the table", table_SD.shape, 2);
  check.num_dims("the heads", x_TND.shape, 3);
  const Shape& shape = x_TND.shape;
  check.is("the heads", x_TND, table_SD.dtype, {shape[0], shape[1], table_SD.shape[1]});
  check.is_true(shape[2] % 2 == 0, "the head dim is odd; halves are turned against each other");
  check.is_true(shape[0] == 0 || (table_SD.shape[0] > 0 && shape[0] % table_SD.shape[0] == 0),
                "tokens are not a whole number of sequences of the table's length; pass "
                "table.rows(0, length)");
  check.disjoint("the heads", x_TND, "the table", table_SD);
}

}  // namespace

void rope_table(Context& ctx, double rotary_base, TensorView table_SD) {
  const Checks check("rope_table");
  check.floating("the table", table_SD.dtype);
  check.num_dims("the table", table_SD.shape, 2);
  check.is_true(table_SD.shape[1] % 2 == 0,
                "the head dim is odd; halves are turned against each other");
  check.is_true(rotary_base > 0, "rotary_base is not positive");
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::rope_table(ctx, rotary_base, table_SD);
    case DeviceKind::kCuda:
      break;
  }
  check.refuse(ctx.device);
}

void rope_forward(Context& ctx, ConstTensorView table_SD, TensorView x_TND) {
  const Checks check("rope_forward");
  check_rotation(check, table_SD, x_TND);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::rope_forward(ctx, table_SD, x_TND);
    case DeviceKind::kCuda:
      break;
  }
  check.refuse(ctx.device);
}

void rope_backward(Context& ctx, ConstTensorView table_SD, TensorView dx_TND) {
  const Checks check("rope_backward");
  check_rotation(check, table_SD, dx_TND);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::rope_backward(ctx, table_SD, dx_TND);
    case DeviceKind::kCuda:
      break;
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
