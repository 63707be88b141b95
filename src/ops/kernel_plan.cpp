#include <pecan/ops/kernel_plan.hpp>

namespace pecan::ops {
namespace {

void plan_reduction(Context& ctx) {
  const device::ArenaScope scope(ctx.workspace);
  (void)ctx.workspace.allocate(DType::kF64, {1});
  (void)ctx.workspace.allocate(DType::kF64, {kMaxReduceParts});
}

}  // namespace

void plan_kernels(Context& ctx, const KernelExtents& extents, DType dtype) {
  PECAN_EXPECTS(ctx.workspace.measuring());
  device::Arena& workspace = ctx.workspace;
  const DType master = master_of(dtype);
  plan_reduction(ctx);
  {
    const device::ArenaScope scope(workspace);  // a norm's backward: weight and bias
    for (int i = 0; i < 2; ++i) (void)workspace.allocate(master, {kMaxNormParts * extents.width});
  }
  {
    const device::ArenaScope scope(workspace);  // attention's backward
    (void)workspace.allocate(master, {extents.tokens * extents.heads});
  }
  if (extents.experts == 0) return;
  {
    const device::ArenaScope scope(workspace);  // the router's losses
    (void)workspace.allocate(DType::kF64, {2 * extents.tokens});
    plan_reduction(ctx);
  }
  {
    const device::ArenaScope scope(workspace);  // dropping over capacity
    (void)workspace.allocate(DType::kF64, {extents.experts});
    plan_reduction(ctx);
  }
  {
    const device::ArenaScope scope(workspace);  // the order of slots
    const std::int64_t slots = extents.tokens * extents.choices;
    const std::int64_t blocks = (slots + kSlotsOfBlock - 1) / kSlotsOfBlock;
    (void)workspace.allocate(DType::kI32, {(extents.experts + 1) * blocks});
  }
}

}  // namespace pecan::ops
