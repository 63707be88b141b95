#include <pecan/ops/reduce.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/numbers.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;

double sum(Context& ctx, ConstTensorView x) {
  const Checks check("sum");
  const Timed timed(ctx, check, [&] { return moves(x); });
  check.floating("x", x.dtype);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::sum(ctx, x);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::sum)(ctx, x);
  }
  check.refuse(ctx.device);
}

double sum_of_squares(Context& ctx, ConstTensorView x) {
  detail::Numbers<1> numbers(ctx);
  sum_of_squares(ctx, x, numbers.view());
  return numbers.read()[0];
}

void sum_of_squares(Context& ctx, ConstTensorView x, TensorView sum_1) {
  const Checks check("sum_of_squares");
  const Timed timed(ctx, check, [&] { return moves(x); });
  check.floating("x", x.dtype);
  check.is("the sum", sum_1, DType::kF64, {1});
  check.disjoint("the sum", sum_1, "x", x);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::sum_of_squares(ctx, x, sum_1);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::sum_of_squares)(ctx, x, sum_1);
  }
  check.refuse(ctx.device);
}

std::int64_t count_non_finite(Context& ctx, ConstTensorView x) {
  const Checks check("count_non_finite");
  const Timed timed(ctx, check, [&] { return moves(x); });
  check.storable("x", x.dtype);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::count_non_finite(ctx, x);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::count_non_finite)(ctx, x);
  }
  check.refuse(ctx.device);
}

double max_abs(Context& ctx, ConstTensorView x) {
  const Checks check("max_abs");
  const Timed timed(ctx, check, [&] { return moves(x); });
  check.floating("x", x.dtype);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::max_abs(ctx, x);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::max_abs)(ctx, x);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
