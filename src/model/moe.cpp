#include <algorithm>
#include <cmath>

#include <pecan/core/log.hpp>

#include <pecan/ops/elementwise.hpp>
#include <pecan/ops/matmul.hpp>
#include <pecan/ops/permute.hpp>
#include <pecan/ops/rms_norm.hpp>
#include <pecan/ops/router.hpp>

#include <pecan/model/moe.hpp>

namespace pecan::model {
namespace {

using comm::Purpose;
using ops::Accumulate;

ops::RouterOptions router_options(const ModelDims& dims) {
  return {.scores = dims.router_pre_softmax ? ops::RouterScores::kSoftmaxThenTopk
                                            : ops::RouterScores::kTopkThenSoftmax,
          .scaling_factor = dims.router_scaling};
}

std::string norm_name(LayerId layer) {
  return layer_name(layer) + ".post_attention_layernorm.weight";
}

}  // namespace

DispatchKept DispatchKept::plan(const ModelDims& dims, std::int64_t rows, device::Arena& arena) {
  DispatchKept kept;
  kept.x_RH = arena.allocate(dims.dtype, {rows, dims.hidden});
  kept.experts = MlpActivations::plan(dims.dtype, rows, dims.expert_ffn, arena);
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

std::int64_t planned_dispatch_rows(const ModelDims& dims, int ep_size) {
  const std::int64_t even = dims.tokens() * dims.topk;
  return std::min(even * ep_size,
                  std::int64_t(std::ceil(dims.dispatch_buffer_factor * double(even))));
}

FfnActivations FfnActivations::plan(const ModelDims& dims,
                                    LayerId layer,
                                    int ep_size,
                                    device::Arena& arena) {
  const std::int64_t tokens = dims.tokens();
  FfnActivations kept;
  kept.normed_TH = arena.allocate(dims.dtype, {tokens, dims.hidden});
  kept.rstd_T = arena.allocate(dims.dtype, {tokens});
  if (!dims.is_moe[std::size_t(layer.value)]) {
    kept.dense = MlpActivations::plan(dims.dtype, tokens, dims.ffn, arena);
    return kept;
  }
  if (dims.shared_ffn > 0)
    kept.dense = MlpActivations::plan(dims.dtype, tokens, dims.shared_ffn, arena);
  kept.logits_TE = arena.allocate(dims.dtype, {tokens, dims.num_experts});
  kept.probs_TE = arena.allocate(dims.dtype, {tokens, dims.num_experts});
  kept.ids_TK = arena.allocate(DType::kI32, {tokens, dims.topk});
  kept.weights_TK = arena.allocate(dims.dtype, {tokens, dims.topk});
  kept.counts_E = arena.allocate(DType::kI64, {dims.num_experts});
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
    scratch.d_logits_TE = arena.allocate(dims.dtype, {tokens, dims.num_experts});
    scratch.d_weights_TK = arena.allocate(dims.dtype, {tokens, dims.topk});
    scratch.sent_PH = arena.allocate(dims.dtype, {tokens * dims.topk, dims.hidden});
    scratch.dispatch = Growable<DispatchScratch>(dims, planned_dispatch_rows(dims, ep_size), arena);
  }
  return scratch;
}

DenseFfnLayer::DenseFfnLayer(const ModelDims& dims, parallel::ParamSet& params, LayerId layer)
    : dims_(dims), norm_(&params.at(norm_name(layer))), mlp_(params, layer_name(layer) + ".mlp") {}

void DenseFfnLayer::forward(Context& ctx,
                            ConstTensorView x_TH,
                            FfnActivations& kept,
                            TensorView y_TH) const {
  ops::rms_norm_forward(
      ctx, x_TH, norm_->weight.row_major(), dims_.norm_epsilon, kept.normed_TH, kept.rstd_T);
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
  ops::rms_norm_backward(ctx,
                         scratch.d_normed_TH,
                         x_TH,
                         norm_->weight.row_major(),
                         kept.rstd_T,
                         d_TH,
                         Accumulate::kAdd,
                         norm_->grad.row_major());
}

MoeLayer::MoeLayer(const ModelDims& dims,
                   parallel::ParamSet& params,
                   LayerId layer,
                   const parallel::MeshShape& mesh,
                   comm::Group& ep,
                   Rank rank)
    : dims_(dims),
      layer_(layer),
      norm_(&params.at(norm_name(layer))),
      router_(&params.at(layer_name(layer) + ".mlp.gate.weight")),
      experts_(dims, params, layer, mesh, rank),
      exchange_(ep, int(dims.num_experts), layer) {
  if (dims.shared_ffn > 0) shared_.emplace(params, layer_name(layer) + ".mlp.shared_expert");
}

void MoeLayer::dispatch(Context& ctx, FfnActivations& kept, FfnScratch& scratch) {
  exchange_.plan(ctx, kept.counts_E.as<std::int64_t>());
  const std::int64_t rows = exchange_.num_received();
  const std::int64_t planned = kept.dispatch.capacity();
  const std::int64_t most = dims_.tokens() * dims_.topk * exchange_.num_ranks();
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
                       scratch.sent_PH,
                       received.x_RH.rows(0, rows),
                       shared.staging_RH.rows(0, rows),
                       Purpose::kDispatch);
}

RoutingReport MoeLayer::forward(Context& ctx,
                                ConstTensorView x_TH,
                                FfnActivations& kept,
                                FfnScratch& scratch,
                                TensorView y_TH) {
  ops::rms_norm_forward(
      ctx, x_TH, norm_->weight.row_major(), dims_.norm_epsilon, kept.normed_TH, kept.rstd_T);
  ops::matmul_forward(ctx, kept.normed_TH, router_->weight, kept.logits_TE);
  ops::router_forward(
      ctx, router_options(dims_), kept.logits_TE, {}, kept.ids_TK, kept.weights_TK, kept.probs_TE);
  const ops::RouterLosses losses = ops::router_losses(
      ctx, router_options(dims_), kept.logits_TE, kept.probs_TE, kept.ids_TK, kept.counts_E);
  ops::permute_plan(ctx, kept.ids_TK, kept.counts_E, kept.order_P, kept.positions_TK);
  ops::permute_forward(ctx, kept.normed_TH, kept.order_P, scratch.sent_PH);
  dispatch(ctx, kept, scratch);

  const std::int64_t rows = exchange_.num_received();
  DispatchKept& received = kept.dispatch.memory();
  DispatchScratch& shared = scratch.dispatch.memory();
  experts_.forward(
      ctx, exchange_.received_counts(), received.x_RH.rows(0, rows), received.experts, shared.y_RH);
  exchange_.from_experts(ctx,
                         shared.y_RH.rows(0, rows),
                         kept.returned_PH,
                         shared.staging_RH.rows(0, rows),
                         Purpose::kCombine);

  if (shared_) {
    shared_->forward(ctx, kept.normed_TH, kept.dense, y_TH);
    ops::add(ctx, x_TH, y_TH, y_TH);
  } else {
    ops::copy(ctx, x_TH, y_TH);
  }
  ops::unpermute_forward(
      ctx, kept.returned_PH, kept.positions_TK, kept.weights_TK, y_TH, Accumulate::kAdd);
  return {losses.aux, losses.z};
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

  ops::unpermute_backward(ctx,
                          d_TH,
                          kept.returned_PH,
                          kept.positions_TK,
                          kept.weights_TK,
                          scratch.sent_PH,
                          scratch.d_weights_TK);
  exchange_.to_experts(ctx, scratch.sent_PH, d_rows_RH, staging_RH, Purpose::kCombineBackward);
  // The input's gradient may not overwrite the input while weight gradients read it: it goes to the
  // staging rows.
  experts_.backward(
      ctx, exchange_.received_counts(), d_rows_RH, x_RH, received.experts, staging_RH);
  exchange_.from_experts(ctx, staging_RH, scratch.sent_PH, d_rows_RH, Purpose::kDispatchBackward);
  ops::permute_backward(
      ctx, scratch.sent_PH, kept.positions_TK, scratch.d_normed_TH, Accumulate::kOverwrite);

  ops::router_backward(ctx,
                       router_options(dims_),
                       kept.logits_TE,
                       kept.probs_TE,
                       kept.ids_TK,
                       kept.weights_TK,
                       scratch.d_weights_TK,
                       kept.counts_E,
                       dims_.aux_loss_coeff * loss_scale,
                       dims_.z_loss_coeff * loss_scale,
                       scratch.d_logits_TE);
  ops::matmul_backward_weight(ctx, scratch.d_logits_TE, kept.normed_TH, router_->grad);
  ops::matmul_backward_input(
      ctx, scratch.d_logits_TE, router_->weight, scratch.d_normed_TH, Accumulate::kAdd);
  if (shared_) {
    shared_->backward(ctx,
                      d_TH,
                      kept.normed_TH,
                      kept.dense,
                      scratch.d_normed_TH,
                      Accumulate::kAdd,
                      WeightGradient::kOn);
  }
  ops::rms_norm_backward(ctx,
                         scratch.d_normed_TH,
                         x_TH,
                         norm_->weight.row_major(),
                         kept.rstd_T,
                         d_TH,
                         Accumulate::kAdd,
                         norm_->grad.row_major());
}

}  // namespace pecan::model
