#include <algorithm>
#include <cmath>
#include <numeric>

#include <pecan/core/log.hpp>

#include <pecan/ops/capacity.hpp>
#include <pecan/ops/elementwise.hpp>
#include <pecan/ops/matmul.hpp>
#include <pecan/ops/permute.hpp>

#include <pecan/model/moe.hpp>

namespace pecan::model {
namespace {

using comm::Purpose;
using ops::Accumulate;

std::string norm_name(LayerId layer) {
  return layer_name(layer) + ".post_attention_layernorm";
}

ops::RouterScores scores_of(const ModelDims& dims) {
  if (dims.score_function == config::ScoreFunction::kSigmoid) return ops::RouterScores::kSigmoid;
  return dims.router_pre_softmax ? ops::RouterScores::kSoftmaxThenTopk
                                 : ops::RouterScores::kTopkThenSoftmax;
}

ops::DropPolicy drop_policy_of(const ModelDims& dims) {
  return dims.drop_policy == config::TokenDropPolicy::kProbs ? ops::DropPolicy::kProbs
                                                             : ops::DropPolicy::kPosition;
}

}  // namespace

void update_expert_bias(TensorView bias_E, std::span<const double> counts_E, double rate) {
  PECAN_VALIDATE(bias_E.num_elements() == std::int64_t(counts_E.size()),
                 ShapeError,
                 "update_expert_bias: {} counts for {} experts",
                 counts_E.size(),
                 bias_E.num_elements());
  const double mean = std::accumulate(counts_E.begin(), counts_E.end(), 0.0) /
                      double(std::max<std::size_t>(1, counts_E.size()));
  const auto update = [&](auto bias) {
    using T = typename decltype(bias)::value_type;
    for (std::size_t e = 0; e < bias.size(); ++e) {
      const double sign = double(counts_E[e] < mean) - double(counts_E[e] > mean);
      bias[e] = T(double(bias[e]) + rate * sign);
    }
  };
  if (bias_E.dtype == DType::kF64) {
    update(bias_E.as<double>());
  } else {
    update(bias_E.as<float>());
  }
}

DispatchKept DispatchKept::plan(const ModelDims& dims, std::int64_t rows, device::Arena& arena) {
  DispatchKept kept;
  kept.x_RH = arena.allocate(dims.dtype, {rows, dims.hidden});
  kept.experts = MlpActivations::plan(dims, rows, dims.expert_ffn, arena);
  return kept;
}

DispatchScratch DispatchScratch::plan(const ModelDims& dims,
                                      std::int64_t rows,
                                      device::Arena& arena) {
  DispatchScratch scratch;
  scratch.staging_RH = arena.allocate(dims.dtype, {rows, dims.hidden});
  scratch.y_RH = arena.allocate(dims.dtype, {rows, dims.hidden});
  return scratch;
}

std::int64_t most_dispatch_rows(const ModelDims& dims, int ep_size) {
  const std::int64_t all = dims.tokens() * dims.topk * ep_size;
  // E / ep experts take their capacity from each of ep ranks.
  return dims.capacity_factor > 0 ? std::min(all, dims.num_experts * dims.capacity()) : all;
}

std::int64_t planned_dispatch_rows(const ModelDims& dims, int ep_size) {
  const double even = double(dims.tokens() * dims.topk);
  return std::min(most_dispatch_rows(dims, ep_size),
                  std::int64_t(std::ceil(dims.dispatch_buffer_factor * even)));
}

FfnActivations FfnActivations::plan(const ModelDims& dims,
                                    LayerId layer,
                                    int ep_size,
                                    device::Arena& arena) {
  const std::int64_t tokens = dims.tokens();
  FfnActivations kept;
  kept.normed_TH = arena.allocate(dims.dtype, {tokens, dims.hidden});
  kept.norm = NormStatistics::plan(dims, tokens, arena);
  if (!dims.is_moe[std::size_t(layer.value)]) {
    kept.dense = MlpActivations::plan(dims, tokens, dims.ffn, arena);
    return kept;
  }
  if (dims.shared_ffn > 0) kept.dense = MlpActivations::plan(dims, tokens, dims.shared_ffn, arena);
  kept.logits_TE = arena.allocate(dims.master_dtype(), {tokens, dims.num_experts});
  kept.probs_TE = arena.allocate(dims.master_dtype(), {tokens, dims.num_experts});
  kept.ids_TK = arena.allocate(DType::kI32, {tokens, dims.topk});
  kept.weights_TK = arena.allocate(dims.master_dtype(), {tokens, dims.topk});
  kept.counts_E = arena.allocate(DType::kI64, {dims.num_experts});
  kept.balance_counts_E = arena.allocate(DType::kI64, {dims.num_experts});
  kept.kept_ids_TK = kept.ids_TK;
  kept.chosen_counts_E = kept.counts_E;
  if (dims.capacity_factor > 0) {
    kept.kept_ids_TK = arena.allocate(DType::kI32, {tokens, dims.topk});
    kept.chosen_counts_E = arena.allocate(DType::kI64, {dims.num_experts});
  }
  kept.order_P = arena.allocate(DType::kI32, {tokens * dims.topk});
  kept.positions_TK = arena.allocate(DType::kI32, {tokens, dims.topk});
  kept.returned_PH = arena.allocate(dims.dtype, {tokens * dims.topk, dims.hidden});
  kept.dispatch = Growable<DispatchKept>(dims, planned_dispatch_rows(dims, ep_size), arena);
  return kept;
}

FfnScratch FfnScratch::plan(const ModelDims& dims, int ep_size, device::Arena& arena) {
  const std::int64_t tokens = dims.tokens();
  FfnScratch scratch;
  scratch.d_normed_TH = arena.allocate(dims.dtype, {tokens, dims.hidden});
  if (dims.num_moe_layers() > 0) {
    scratch.d_logits_TE = arena.allocate(dims.master_dtype(), {tokens, dims.num_experts});
    scratch.d_weights_TK = arena.allocate(dims.master_dtype(), {tokens, dims.topk});
    if (dims.dtype != dims.master_dtype())
      scratch.router_TH = arena.allocate(dims.master_dtype(), {tokens, dims.hidden});
    scratch.sent_PH = arena.allocate(dims.dtype, {tokens * dims.topk, dims.hidden});
    scratch.dispatch = Growable<DispatchScratch>(dims, planned_dispatch_rows(dims, ep_size), arena);
  }
  return scratch;
}

DenseFfnLayer::DenseFfnLayer(const ModelDims& dims, parallel::ParamSet& params, LayerId layer)
    : norm_(dims, params, norm_name(layer)), mlp_(dims, params, layer_name(layer) + ".mlp") {}

void DenseFfnLayer::forward(Context& ctx,
                            ConstTensorView x_TH,
                            FfnActivations& kept,
                            TensorView y_TH) const {
  norm_.forward(ctx, x_TH, kept.norm, kept.normed_TH);
  mlp_.forward(ctx, kept.normed_TH, kept.dense, y_TH);
  ops::add(ctx, x_TH, y_TH, y_TH);
}

void DenseFfnLayer::backward(Context& ctx,
                             ConstTensorView x_TH,
                             FfnActivations& kept,
                             FfnScratch& scratch,
                             TensorView d_TH) const {
  mlp_.backward(ctx,
                d_TH,
                kept.normed_TH,
                kept.dense,
                scratch.d_normed_TH,
                Accumulate::kOverwrite,
                WeightGradient::kOn);
  norm_.backward(ctx, scratch.d_normed_TH, x_TH, kept.norm, d_TH, Accumulate::kAdd);
}

MoeLayer::MoeLayer(const ModelDims& dims,
                   parallel::ParamSet& params,
                   LayerId layer,
                   const parallel::MeshShape& mesh,
                   comm::Group& ep,
                   Rank rank)
    : dims_(dims),
      layer_(layer),
      norm_(dims, params, norm_name(layer)),
      router_(&params.at(layer_name(layer) + ".mlp.gate.weight")),
      experts_(dims, params, layer, mesh, rank),
      exchange_(ep, int(dims.num_experts), layer),
      // Ranks go on where others stop, and layers start at different experts, so that what is left
      // over does not always fall to the first ones.
      first_in_turn_(parallel::position_of(mesh, rank).dp * dims.tokens() * dims.topk +
                     layer.value) {
  if (dims.shared_ffn > 0) shared_.emplace(dims, params, layer_name(layer) + ".mlp.shared_expert");
  if (dims.expert_bias) {
    expert_bias_ =
        device::Buffer(device::cpu(), std::size_t(dims.num_experts) * size_of(dims.master_dtype()));
  }
}

ops::RouterOptions MoeLayer::router_options() const {
  return {.scores = scores_of(dims_),
          .scaling_factor = dims_.router_scaling,
          .num_groups = dims_.num_groups,
          .group_topk = dims_.group_topk,
          .choice = dims_.force_balance ? ops::RouterChoice::kInTurn : ops::RouterChoice::kBest,
          .first_in_turn = first_in_turn_};
}

TensorView MoeLayer::expert_bias() const {
  if (!dims_.expert_bias) return {};
  return {expert_bias_.data(), dims_.master_dtype(), Shape{dims_.num_experts}};
}

void MoeLayer::dispatch(Context& ctx, FfnActivations& kept, FfnScratch& scratch) {
  exchange_.plan(ctx, kept.counts_E.as<std::int64_t>());
  const std::int64_t rows = exchange_.num_received();
  const std::int64_t planned = kept.dispatch.capacity();
  const std::int64_t most = most_dispatch_rows(dims_, exchange_.num_ranks());
  DispatchKept& received = kept.dispatch.at_least(ctx, dims_, rows, most);
  DispatchScratch& shared = scratch.dispatch.at_least(ctx, dims_, rows, most);
  if (rows > planned) {
    PECAN_LOG(kWarn,
              "[model] layer {} received {} token slots, more than the {} that memory was planned "
              "for: its buffers grew "
              "to {} rows; raise moe.dispatch_buffer_factor (now {}) or strengthen "
              "moe.moe_aux_loss_coeff",
              layer_,
              rows,
              planned,
              kept.dispatch.capacity(),
              dims_.dispatch_buffer_factor);
  }
  exchange_.to_experts(ctx,
                       scratch.sent_PH.rows(0, num_sent_),
                       received.x_RH.rows(0, rows),
                       shared.staging_RH.rows(0, rows),
                       Purpose::kDispatch);
}

ConstTensorView MoeLayer::router_input(Context& ctx,
                                       const FfnActivations& kept,
                                       const FfnScratch& scratch) const {
  if (dims_.dtype == dims_.master_dtype()) return kept.normed_TH;
  ops::cast(ctx, kept.normed_TH, scratch.router_TH);
  return scratch.router_TH;
}

RoutingReport MoeLayer::forward(Context& ctx,
                                ConstTensorView x_TH,
                                FfnActivations& kept,
                                FfnScratch& scratch,
                                TensorView y_TH) {
  norm_.forward(ctx, x_TH, kept.norm, kept.normed_TH);
  ops::matmul_forward(ctx, router_input(ctx, kept, scratch), router_->weight, kept.logits_TE);
  const ops::RouterOptions options = router_options();
  ops::router_forward(
      ctx, options, kept.logits_TE, expert_bias(), kept.ids_TK, kept.weights_TK, kept.probs_TE);
  const ops::RouterLosses losses = ops::router_losses(
      ctx, options, kept.logits_TE, kept.probs_TE, kept.ids_TK, kept.balance_counts_E);
  std::int64_t dropped = 0;
  if (dims_.capacity_factor > 0) {
    dropped = ops::drop_over_capacity(ctx,
                                      drop_policy_of(dims_),
                                      dims_.capacity(),
                                      kept.ids_TK,
                                      kept.weights_TK,
                                      kept.chosen_counts_E,
                                      kept.kept_ids_TK);
  }
  num_sent_ = kept.ids_TK.num_elements() - dropped;
  ops::permute_plan(ctx, kept.kept_ids_TK, kept.counts_E, kept.order_P, kept.positions_TK);
  ops::permute_forward(ctx, kept.normed_TH, kept.order_P, scratch.sent_PH.rows(0, num_sent_));
  dispatch(ctx, kept, scratch);

  const std::int64_t rows = exchange_.num_received();
  DispatchKept& received = kept.dispatch.memory();
  DispatchScratch& shared = scratch.dispatch.memory();
  experts_.forward(
      ctx, exchange_.received_counts(), received.x_RH.rows(0, rows), received.experts, shared.y_RH);
  exchange_.from_experts(ctx,
                         shared.y_RH.rows(0, rows),
                         kept.returned_PH.rows(0, num_sent_),
                         shared.staging_RH.rows(0, rows),
                         Purpose::kCombine);

  if (shared_) {
    shared_->forward(ctx, kept.normed_TH, kept.dense, y_TH);
    ops::add(ctx, x_TH, y_TH, y_TH);
  } else {
    ops::copy(ctx, x_TH, y_TH);
  }
  ops::unpermute_forward(ctx,
                         kept.returned_PH.rows(0, num_sent_),
                         kept.positions_TK,
                         kept.weights_TK,
                         y_TH,
                         Accumulate::kAdd);
  return {losses.aux, losses.z, dropped};
}

void MoeLayer::backward(Context& ctx,
                        ConstTensorView x_TH,
                        FfnActivations& kept,
                        FfnScratch& scratch,
                        double loss_scale,
                        TensorView d_TH) {
  const std::int64_t rows = exchange_.num_received();
  DispatchKept& received = kept.dispatch.memory();
  DispatchScratch& shared = scratch.dispatch.memory();
  const TensorView staging_RH = shared.staging_RH.rows(0, rows);
  const TensorView d_rows_RH = shared.y_RH.rows(0, rows);
  const TensorView x_RH = received.x_RH.rows(0, rows);
  const TensorView d_sent_PH = scratch.sent_PH.rows(0, num_sent_);

  ops::unpermute_backward(ctx,
                          d_TH,
                          kept.returned_PH.rows(0, num_sent_),
                          kept.positions_TK,
                          kept.weights_TK,
                          d_sent_PH,
                          scratch.d_weights_TK);
  exchange_.to_experts(ctx, d_sent_PH, d_rows_RH, staging_RH, Purpose::kCombineBackward);
  // The input's gradient may not overwrite the input while weight gradients read it: it goes to the
  // staging rows.
  experts_.backward(
      ctx, exchange_.received_counts(), d_rows_RH, x_RH, received.experts, staging_RH);
  exchange_.from_experts(ctx, staging_RH, d_sent_PH, d_rows_RH, Purpose::kDispatchBackward);
  ops::permute_backward(
      ctx, d_sent_PH, kept.positions_TK, scratch.d_normed_TH, Accumulate::kOverwrite);

  ops::router_backward(ctx,
                       router_options(),
                       kept.logits_TE,
                       kept.probs_TE,
                       kept.ids_TK,
                       kept.weights_TK,
                       scratch.d_weights_TK,
                       kept.balance_counts_E,
                       dims_.aux_loss_coeff * loss_scale,
                       dims_.z_loss_coeff * loss_scale,
                       scratch.d_logits_TE);
  ops::matmul_backward_weight(
      ctx, scratch.d_logits_TE, router_input(ctx, kept, scratch), router_->grad);
  if (dims_.dtype == dims_.master_dtype()) {
    ops::matmul_backward_input(
        ctx, scratch.d_logits_TE, router_->weight, scratch.d_normed_TH, Accumulate::kAdd);
  } else {
    ops::matmul_backward_input(
        ctx, scratch.d_logits_TE, router_->weight, scratch.router_TH, Accumulate::kOverwrite);
    ops::axpy(ctx, 1, scratch.router_TH, scratch.d_normed_TH);
  }
  if (shared_) {
    shared_->backward(ctx,
                      d_TH,
                      kept.normed_TH,
                      kept.dense,
                      scratch.d_normed_TH,
                      Accumulate::kAdd,
                      WeightGradient::kOn);
  }
  norm_.backward(ctx, scratch.d_normed_TH, x_TH, kept.norm, d_TH, Accumulate::kAdd);
}

}  // namespace pecan::model
