#include <pecan/ops/adamw.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;

void adamw_update(Context& ctx,
                  const AdamWOptions& options,
                  ConstTensorView g,
                  TensorView p,
                  TensorView m,
                  TensorView v,
                  TensorView rounded_p) {
  const Checks check("adamw_update");
  const Timed timed(ctx, check, [&] { return moves(g, p, p, m, m, v, v, rounded_p); });
  check.floating("p", p.dtype);
  for (const ConstTensorView& x : {g, ConstTensorView(m), ConstTensorView(v)}) {
    check.is_true(x.dtype == p.dtype && x.num_elements() == p.num_elements(),
                  "g, p, m and v differ in dtype or size");
  }
  check.is_true(options.update_count >= 1, "update_count starts at 1");
  check.disjoint("p", p, "g", g);
  check.disjoint("p", p, "m", m);
  check.disjoint("p", p, "v", v);
  check.disjoint("m", m, "g", g);
  check.disjoint("m", m, "v", v);
  check.disjoint("v", v, "g", g);
  if (rounded_p.data != nullptr) {
    check.is_true(p.dtype == DType::kF32 && rounded_p.dtype == DType::kBF16,
                  "rounded_p is bf16, of p in f32");
    check.is_true(rounded_p.num_elements() == p.num_elements(), "p and rounded_p differ in size");
    for (const ConstTensorView& x : {g, ConstTensorView(p), ConstTensorView(m), ConstTensorView(v)})
      check.disjoint("rounded_p", rounded_p, "g, p, m or v", x);
  }
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::adamw_update(ctx, options, g, p, m, v, rounded_p);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::adamw_update)(
          ctx, options, g, p, m, v, rounded_p);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
