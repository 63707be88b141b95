#include <pecan/ops/router.hpp>

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
namespace {

void check_choice(const Checks& check,
                  const ConstTensorView& logits_TE,
                  const ConstTensorView& topk_ids_TK) {
  check.floating("logits", logits_TE.dtype);
  check.num_dims("logits", logits_TE.shape, 2);
  check.num_dims("topk_ids", topk_ids_TK.shape, 2);
  check.is("topk_ids", topk_ids_TK, DType::kI32, {logits_TE.shape[0], topk_ids_TK.shape[1]});
  check.is_true(topk_ids_TK.shape[1] >= 1 && topk_ids_TK.shape[1] <= logits_TE.shape[1],
                "a token must choose at least one expert and at most all");
}

void check_options(const Checks& check,
                   const RouterOptions& options,
                   std::int64_t num_experts,
                   std::int64_t choices) {
  check.is_true(options.scaling_factor > 0, "scaling_factor is not positive");
  check.is_true(options.first_in_turn >= 0, "first_in_turn is negative");
  if (options.num_groups == 0) {
    check.is_true(options.group_topk == 0, "group_topk is set, but num_groups is 0");
    return;
  }
  check.is_true(options.num_groups > 0 && num_experts % options.num_groups == 0,
                "num_groups does not divide the number of experts");
  check.is_true(options.group_topk >= 1 && options.group_topk <= options.num_groups,
                "group_topk is not between 1 and num_groups");
  check.is_true(choices % options.group_topk == 0, "group_topk does not divide the choices");
  check.is_true(choices / options.group_topk <= num_experts / options.num_groups,
                "the chosen groups hold fewer experts than a token must choose");
}

void check_ids(const Context& ctx, const ConstTensorView& topk_ids_TK, std::int64_t num_experts) {
  for (const std::int32_t id : detail::on_host<std::int32_t>(ctx, topk_ids_TK)) {
    PECAN_VALIDATE(id >= 0 && id < num_experts,
                   ShapeError,
                   "router: expert {} is chosen of {}",
                   id,
                   num_experts);
  }
}

/// Every token's group has a row of counts [G, E].
void check_groups(const Checks& check,
                  const ConstTensorView& logits_TE,
                  const ConstTensorView& counts_GE,
                  const BalanceGroups& groups) {
  check.num_dims("counts", counts_GE.shape, 2);
  const std::int64_t num_groups = counts_GE.shape[0];
  check.is("counts", counts_GE, DType::kI64, {num_groups, logits_TE.shape[1]});
  const std::int64_t tokens = logits_TE.shape[0];
  if (tokens == 0) return;
  check.is_true(groups.first_token >= 0 && groups.tokens_per_group >= 1,
                "first_token is negative or tokens_per_group not positive");
  check.is_true(groups.group_of(tokens - 1) < num_groups,
                "the last token belongs to a group that counts have no row for");
}

}  // namespace

void router_forward(Context& ctx,
                    const RouterOptions& options,
                    ConstTensorView logits_TE,
                    ConstTensorView bias_E,
                    TensorView topk_ids_TK,
                    TensorView weights_TK,
                    TensorView probs_TE) {
  const Checks check("router_forward");
  const Timed timed(
      ctx, check, [&] { return moves(logits_TE, bias_E, topk_ids_TK, weights_TK, probs_TE); });
  check_choice(check, logits_TE, topk_ids_TK);
  check_options(check, options, logits_TE.shape[1], topk_ids_TK.shape[1]);
  if (bias_E.data != nullptr) {
    check.is_true(options.scores == RouterScores::kSigmoid,
                  "a bias is for sigmoid scores; give none to a softmax router");
    check.is("bias", bias_E, logits_TE.dtype, {logits_TE.shape[1]});
    check.disjoint("bias", bias_E, "topk_ids", topk_ids_TK);
    check.disjoint("bias", bias_E, "weights", weights_TK);
    check.disjoint("bias", bias_E, "probs", probs_TE);
  }
  check.is("weights", weights_TK, logits_TE.dtype, topk_ids_TK.shape);
  check.is("probs", probs_TE, logits_TE.dtype, logits_TE.shape);
  check.disjoint("probs", probs_TE, "logits", logits_TE);
  check.disjoint("probs", probs_TE, "weights", weights_TK);
  check.disjoint("probs", probs_TE, "topk_ids", topk_ids_TK);
  check.disjoint("weights", weights_TK, "logits", logits_TE);
  check.disjoint("weights", weights_TK, "topk_ids", topk_ids_TK);
  check.disjoint("topk_ids", topk_ids_TK, "logits", logits_TE);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::router_forward(
          ctx, options, logits_TE, bias_E, topk_ids_TK, weights_TK, probs_TE);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::router_forward)(
          ctx, options, logits_TE, bias_E, topk_ids_TK, weights_TK, probs_TE);
  }
  check.refuse(ctx.device);
}

void router_counts(Context& ctx,
                   const RouterOptions& options,
                   ConstTensorView logits_TE,
                   ConstTensorView probs_TE,
                   ConstTensorView topk_ids_TK,
                   BalanceGroups groups,
                   TensorView counts_GE) {
  const Checks check("router_counts");
  const Timed timed(ctx, check, [&] { return moves(topk_ids_TK, counts_GE); });
  check_choice(check, logits_TE, topk_ids_TK);
  check_ids(ctx, topk_ids_TK, logits_TE.shape[1]);
  check_options(check, options, logits_TE.shape[1], topk_ids_TK.shape[1]);
  check.is("probs", probs_TE, logits_TE.dtype, logits_TE.shape);
  check_groups(check, logits_TE, counts_GE, groups);
  check.disjoint("counts", counts_GE, "logits", logits_TE);
  check.disjoint("counts", counts_GE, "probs", probs_TE);
  check.disjoint("counts", counts_GE, "topk_ids", topk_ids_TK);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::router_counts(ctx, options, logits_TE, topk_ids_TK, groups, counts_GE);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::router_counts)(
          ctx, options, logits_TE, topk_ids_TK, groups, counts_GE);
  }
  check.refuse(ctx.device);
}

RouterLosses router_losses(Context& ctx,
                           ConstTensorView logits_TE,
                           ConstTensorView probs_TE,
                           ConstTensorView counts_GE,
                           BalanceGroups groups,
                           BalanceScales scales) {
  detail::Numbers<2> numbers(ctx);
  router_losses(ctx, logits_TE, probs_TE, counts_GE, groups, scales, numbers.view());
  const auto& [aux, z] = numbers.read();
  return {.aux = aux, .z = z};
}

void router_losses(Context& ctx,
                   ConstTensorView logits_TE,
                   ConstTensorView probs_TE,
                   ConstTensorView counts_GE,
                   BalanceGroups groups,
                   BalanceScales scales,
                   TensorView losses_2) {
  const Checks check("router_losses");
  const Timed timed(ctx, check, [&] { return moves(logits_TE, probs_TE, counts_GE); });
  check.floating("logits", logits_TE.dtype);
  check.num_dims("logits", logits_TE.shape, 2);
  check.is("probs", probs_TE, logits_TE.dtype, logits_TE.shape);
  check_groups(check, logits_TE, counts_GE, groups);
  check.is("the losses", losses_2, DType::kF64, {2});
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::router_losses(ctx, logits_TE, probs_TE, counts_GE, groups, scales, losses_2);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::router_losses)(
          ctx, logits_TE, probs_TE, counts_GE, groups, scales, losses_2);
  }
  check.refuse(ctx.device);
}

void router_backward(Context& ctx,
                     const RouterOptions& options,
                     ConstTensorView logits_TE,
                     ConstTensorView probs_TE,
                     ConstTensorView topk_ids_TK,
                     ConstTensorView weights_TK,
                     ConstTensorView dweights_TK,
                     ConstTensorView counts_GE,
                     BalanceGroups groups,
                     double aux_coeff,
                     double z_coeff,
                     TensorView dlogits_TE) {
  const Checks check("router_backward");
  const Timed timed(ctx, check, [&] {
    return moves(logits_TE, probs_TE, topk_ids_TK, weights_TK, dweights_TK, counts_GE, dlogits_TE);
  });
  check_choice(check, logits_TE, topk_ids_TK);
  check_ids(ctx, topk_ids_TK, logits_TE.shape[1]);
  check_options(check, options, logits_TE.shape[1], topk_ids_TK.shape[1]);
  check.is("probs", probs_TE, logits_TE.dtype, logits_TE.shape);
  check.is("weights", weights_TK, logits_TE.dtype, topk_ids_TK.shape);
  check.is("dweights", dweights_TK, logits_TE.dtype, topk_ids_TK.shape);
  check_groups(check, logits_TE, counts_GE, groups);
  check.is("dlogits", dlogits_TE, logits_TE.dtype, logits_TE.shape);
  check.disjoint("dlogits", dlogits_TE, "logits", logits_TE);
  check.disjoint("dlogits", dlogits_TE, "probs", probs_TE);
  check.disjoint("dlogits", dlogits_TE, "topk_ids", topk_ids_TK);
  check.disjoint("dlogits", dlogits_TE, "weights", weights_TK);
  check.disjoint("dlogits", dlogits_TE, "dweights", dweights_TK);
  check.disjoint("dlogits", dlogits_TE, "counts", counts_GE);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::router_backward(ctx,
                                  options,
                                  logits_TE,
                                  probs_TE,
                                  topk_ids_TK,
                                  weights_TK,
                                  dweights_TK,
                                  counts_GE,
                                  groups,
                                  aux_coeff,
                                  z_coeff,
                                  dlogits_TE);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::router_backward)(ctx,
                                                                     options,
                                                                     logits_TE,
                                                                     probs_TE,
                                                                     topk_ids_TK,
                                                                     weights_TK,
                                                                     dweights_TK,
                                                                     counts_GE,
                                                                     groups,
                                                                     aux_coeff,
                                                                     z_coeff,
                                                                     dlogits_TE);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
