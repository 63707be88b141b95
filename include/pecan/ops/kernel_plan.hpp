#pragma once
/// What kernels of a device take of the workspace.

#include <cstdint>

#include <pecan/device/context.hpp>

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Parts that a norm's sums over rows are made of, at most; likewise a tensor's sum to one number.
inline constexpr std::int64_t kMaxNormParts = 256;
inline constexpr std::int64_t kMaxReduceParts = 1024;
/// Token-slots that a block sorts by expert.
inline constexpr std::int64_t kSlotsOfBlock = 256;

/// The largest that a model has.
struct KernelExtents {
  std::int64_t tokens = 0;
  std::int64_t width = 0;  ///< of what is normalised or has a bias
  std::int64_t heads = 0;
  std::int64_t experts = 0;  ///< 0: nothing is routed
  std::int64_t choices = 0;  ///< of a token
};

/// Allocates from the measuring workspace of `ctx` what any one kernel takes at most of a model of
/// `dtype` with these extents. Products take nothing of it: cuBLAS has its own. Pure.
void plan_kernels(Context& ctx, const KernelExtents& extents, DType dtype);

}  // namespace pecan::ops
