#include <cmath>
#include <limits>

#include <pecan/ops/capacity.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;

std::int64_t expert_capacity(std::int64_t tokens,
                             std::int64_t topk,
                             std::int64_t num_experts,
                             double factor) {
  const Checks check("expert_capacity");
  check.is_true(tokens >= 0 && topk >= 1 && num_experts >= 1, "there are no experts to share");
  check.is_true(factor > 0 && std::isfinite(factor), "the factor is not positive");
  return std::int64_t(std::ceil(double(tokens * topk) / double(num_experts) * factor));
}

std::int64_t drop_over_capacity(Context& ctx,
                                DropPolicy policy,
                                std::int64_t capacity,
                                ConstTensorView topk_ids_TK,
                                ConstTensorView weights_TK,
                                TensorView counts_E,
                                TensorView kept_ids_TK) {
  const Checks check("drop_over_capacity");
  const Timed timed(
      ctx, check, [&] { return moves(topk_ids_TK, weights_TK, counts_E, kept_ids_TK); });
  check.is_true(capacity >= 0, "the capacity is negative");
  check.num_dims("topk_ids", topk_ids_TK.shape, 2);
  check.num_dims("counts", counts_E.shape, 1);
  check.floating("weights", weights_TK.dtype);
  check.is("topk_ids", topk_ids_TK, DType::kI32, topk_ids_TK.shape);
  check.is("weights", weights_TK, weights_TK.dtype, topk_ids_TK.shape);
  check.is("counts", counts_E, DType::kI64, counts_E.shape);
  check.is("kept_ids", kept_ids_TK, DType::kI32, topk_ids_TK.shape);
  check.is_true(topk_ids_TK.num_elements() <= std::numeric_limits<std::int32_t>::max(),
                "more token-slots than 32 bits count");
  check.disjoint("kept_ids", kept_ids_TK, "topk_ids", topk_ids_TK);
  check.disjoint("kept_ids", kept_ids_TK, "weights", weights_TK);
  check.disjoint("counts", counts_E, "topk_ids", topk_ids_TK);
  check.disjoint("counts", counts_E, "weights", weights_TK);
  check.disjoint("counts", counts_E, "kept_ids", kept_ids_TK);
  for (const std::int32_t id : detail::on_host<std::int32_t>(ctx, topk_ids_TK)) {
    PECAN_VALIDATE(id >= 0 && id < counts_E.shape[0],
                   ShapeError,
                   "drop_over_capacity: expert {} is chosen of {}",
                   id,
                   counts_E.shape[0]);
  }
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::drop_over_capacity(
          ctx, policy, capacity, topk_ids_TK, weights_TK, counts_E, kept_ids_TK);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::drop_over_capacity)(
          ctx, policy, capacity, topk_ids_TK, weights_TK, counts_E, kept_ids_TK);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
