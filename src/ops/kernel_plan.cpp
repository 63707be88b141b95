#include <pecan/core/error.hpp>

#include <pecan/ops/kernel_plan.hpp>

namespace pecan::ops {
namespace {

void plan_reduction(Context& ctx) {
  const device::ArenaScope scope(ctx.workspace);
  (void)ctx.workspace.allocate(DType::kF64, {1});
  (void)ctx.workspace.allocate(DType::kF64, {kMaxReduceParts});
}

/// 0: none fits.
std::int64_t widest_head(DType dtype, std::size_t shared_bytes) {
  std::int64_t dim = kWidestHead;
  while (dim >= 32 && attention_shared_bytes(dim, dtype) > shared_bytes) dim /= 2;
  return dim >= 32 ? dim : 0;
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

std::string describe_missing_attention(std::int64_t head_dim,
                                       DType dtype,
                                       std::size_t shared_bytes) {
  if (head_dim > kWidestHead) {
    return fmt::format("attention with a head_dim of {} has no CUDA kernels, which take up to {}",
                       head_dim,
                       kWidestHead);
  }
  const std::size_t num_bytes = attention_shared_bytes(head_dim, dtype);
  if (num_bytes <= shared_bytes) return "";
  return fmt::format(
      "gradients of attention with a head_dim of {} in {} take {} bytes of shared memory a block, "
      "and the device has {}, enough for a head_dim of {} (in bf16 of {})",
      head_dim,
      name_of(dtype),
      num_bytes,
      shared_bytes,
      widest_head(dtype, shared_bytes),
      widest_head(DType::kBF16, shared_bytes));
}

}  // namespace pecan::ops
