#include <pecan/ops/elementwise.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;

void fill(Context& ctx, double value, TensorView y) {
  const Checks check("fill");
  const Timed timed(ctx, check, [&] { return moves(y); });
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::fill(ctx, value, y);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::fill)(ctx, value, y);
  }
  check.refuse(ctx.device);
}

void copy(Context& ctx, ConstTensorView x, TensorView y) {
  const Checks check("copy");
  const Timed timed(ctx, check, [&] { return moves(x, y); });
  check.is("y", y, x.dtype, x.shape);
  check.same_or_disjoint("y", y, "x", x);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::copy(ctx, x, y);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::copy)(ctx, x, y);
  }
  check.refuse(ctx.device);
}

void cast(Context& ctx, ConstTensorView x, TensorView y) {
  const Checks check("cast");
  const Timed timed(ctx, check, [&] { return moves(x, y); });
  check.storable("x", x.dtype);
  check.storable("y", y.dtype);
  check.is("y", y, y.dtype, x.shape);
  if (x.dtype == y.dtype) {
    check.same_or_disjoint("y", y, "x", x);
  } else {
    check.disjoint("y", y, "x", x);
  }
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::cast(ctx, x, y);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::cast)(ctx, x, y);
  }
  check.refuse(ctx.device);
}

void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y) {
  const Checks check("add");
  const Timed timed(ctx, check, [&] { return moves(a, b, y); });
  check.storable("a", a.dtype);
  check.is("b", b, a.dtype, a.shape);
  check.is("y", y, a.dtype, a.shape);
  check.same_or_disjoint("y", y, "a", a);
  check.same_or_disjoint("y", y, "b", b);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::add(ctx, a, b, y);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::add)(ctx, a, b, y);
  }
  check.refuse(ctx.device);
}

void axpy(Context& ctx, double alpha, ConstTensorView x, TensorView y) {
  const Checks check("axpy");
  const Timed timed(ctx, check, [&] { return moves(x, y, y); });
  check.storable("y", y.dtype);
  check.is("y", y, y.dtype, x.shape);
  check.is_true(x.dtype == y.dtype || x.dtype == master_of(y.dtype),
                "x has neither y's type nor the master type of it");
  if (x.dtype == y.dtype) {
    check.same_or_disjoint("y", y, "x", x);
  } else {
    check.disjoint("y", y, "x", x);
  }
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::axpy(ctx, alpha, x, y);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::axpy)(ctx, alpha, x, y);
  }
  check.refuse(ctx.device);
}

void scale(Context& ctx, double alpha, TensorView y) {
  const Checks check("scale");
  const Timed timed(ctx, check, [&] { return moves(y, y); });
  check.storable("y", y.dtype);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::scale(ctx, alpha, y);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::scale)(ctx, alpha, y);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
