#pragma once
/// What kernels of a device take of the workspace and of shared memory.

#include <cstdint>
#include <string>

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

/// Attention has kernels for heads as wide as this at most.
inline constexpr std::int64_t kWidestHead = 256;

/// Shared memory that a block takes for the gradients of attention, which take more than the
/// forward pass, with heads of `head_dim` up to kWidestHead in `dtype`. See kernels/attention.cuh.
[[nodiscard]] constexpr std::size_t attention_shared_bytes(std::int64_t head_dim, DType dtype) {
  const std::size_t width = head_dim <= 32 ? 32 : head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
  const bool f64 = dtype == DType::kF64, f32 = dtype == DType::kF32;
  const std::size_t element = f64 ? 8 : f32 ? 4 : 2, sum = f64 ? 8 : 4;
  const std::size_t rows = f64 ? 16 : f32 ? 32 : 64;
  return (2 * rows + 64) * (width * element + 16) + rows * (34 * sum + 32 * element + 36);
}

/// Why a device of whose shared memory a block has `shared_bytes` at most has no kernels for
/// attention with heads of `head_dim` in `dtype`, and what it has; empty: it has them. Pure.
[[nodiscard]] std::string describe_missing_attention(std::int64_t head_dim,
                                                     DType dtype,
                                                     std::size_t shared_bytes);

}  // namespace pecan::ops
