#include <pecan/ops/bias.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;

void add_bias(Context& ctx, ConstTensorView b_O, TensorView y_TO) {
  const Checks check("add_bias");
  const Timed timed(ctx, check, [&] { return moves(b_O, y_TO, y_TO); });
  check.storable("y", y_TO.dtype);
  check.num_dims("y", y_TO.shape, 2);
  check.is_true(b_O.dtype == y_TO.dtype || b_O.dtype == master_of(y_TO.dtype),
                "b has neither y's type nor the master type of it");
  check.is("b", b_O, b_O.dtype, {y_TO.shape[1]});
  check.disjoint("y", y_TO, "b", b_O);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::add_bias(ctx, b_O, y_TO);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::add_bias)(ctx, b_O, y_TO);
  }
  check.refuse(ctx.device);
}

void bias_backward(Context& ctx, ConstTensorView dy_TO, TensorView db_O) {
  const Checks check("bias_backward");
  const Timed timed(ctx, check, [&] { return moves(dy_TO, db_O, db_O); });
  check.storable("dy", dy_TO.dtype);
  check.num_dims("dy", dy_TO.shape, 2);
  check.is("db", db_O, master_of(dy_TO.dtype), {dy_TO.shape[1]});
  check.disjoint("db", db_O, "dy", dy_TO);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::bias_backward(ctx, dy_TO, db_O);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::bias_backward)(ctx, dy_TO, db_O);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
