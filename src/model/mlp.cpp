#include <pecan/ops/gelu.hpp>
#include <pecan/ops/swiglu.hpp>

#include <pecan/model/mlp.hpp>

namespace pecan::model {

using ops::Accumulate;

MlpActivations MlpActivations::plan(const ModelDims& dims,
                                    std::int64_t rows,
                                    std::int64_t ffn,
                                    device::Arena& arena) {
  MlpActivations kept;
  if (dims.gated_ffn) kept.gate_TF = arena.allocate(dims.dtype, {rows, ffn});
  kept.up_TF = arena.allocate(dims.dtype, {rows, ffn});
  kept.h_TF = arena.allocate(dims.dtype, {rows, ffn});
  return kept;
}

MlpActivations MlpActivations::rows(std::int64_t first, std::int64_t count) const {
  return {gate_TF.shape.num_dims() > 0 ? gate_TF.rows(first, count) : gate_TF,
          up_TF.rows(first, count),
          h_TF.rows(first, count)};
}

Mlp::Mlp(const ModelDims& dims, parallel::ParamSet& params, const std::string& prefix)
    : up_(dims, params, prefix + ".up_proj"), down_(dims, params, prefix + ".down_proj") {
  if (dims.gated_ffn) gate_.emplace(dims, params, prefix + ".gate_proj");
}

void Mlp::forward_part(Context& ctx,
                       ConstTensorView x_TH,
                       MlpActivations kept,
                       TensorView y_TH) const {
  up_.forward(ctx, x_TH, kept.up_TF);
  if (gate_) {
    gate_->forward(ctx, x_TH, kept.gate_TF);
    ops::swiglu_forward(ctx, kept.gate_TF, kept.up_TF, kept.h_TF);
  } else {
    ops::gelu_forward(ctx, kept.up_TF, kept.h_TF);
  }
  down_.forward_part(ctx, kept.h_TF, y_TH);
}

void Mlp::backward(Context& ctx,
                   ConstTensorView dy_TH,
                   ConstTensorView x_TH,
                   MlpActivations kept,
                   TensorView dx_TH,
                   Accumulate accumulate,
                   WeightGradient weight_gradient) const {
  const bool with_weights = weight_gradient == WeightGradient::kOn;
  if (with_weights) down_.backward_weight(ctx, dy_TH, kept.h_TF);
  const TensorView dh_TF = kept.h_TF;
  down_.backward_input(ctx, dy_TH, dh_TF, Accumulate::kOverwrite);
  if (gate_) {
    ops::swiglu_backward(ctx, dh_TF, kept.gate_TF, kept.up_TF, kept.gate_TF, kept.up_TF);
    if (with_weights) gate_->backward_weight(ctx, kept.gate_TF, x_TH);
    gate_->backward_input(ctx, kept.gate_TF, dx_TH, accumulate);
    accumulate = Accumulate::kAdd;
  } else {
    ops::gelu_backward(ctx, dh_TF, kept.up_TF, kept.up_TF);
  }
  if (with_weights) up_.backward_weight(ctx, kept.up_TF, x_TH);
  up_.backward_input(ctx, kept.up_TF, dx_TH, accumulate);
}

Experts::Experts(const ModelDims& dims,
                 parallel::ParamSet& params,
                 LayerId layer,
                 const parallel::MeshShape& mesh,
                 Rank rank) {
  const int num_local = int(dims.num_experts) / mesh.ep;
  const int first = parallel::position_of(mesh, rank).ep * num_local;
  for (int e = first; e < first + num_local; ++e)
    experts_.emplace_back(dims, params, expert_name(layer, ExpertId{e}));
  adds_bias_ = parallel::position_of(mesh, rank).etp == 0;
  weight_gradient_.assign(experts_.size(), WeightGradient::kOn);
}

void Experts::forward(Context& ctx,
                      std::span<const std::int64_t> counts,
                      ConstTensorView x_RH,
                      const MlpActivations& kept,
                      TensorView y_RH) const {
  std::int64_t first = 0;
  for (std::size_t e = 0; e < experts_.size(); first += counts[e++]) {
    const TensorView y = y_RH.rows(first, counts[e]);
    experts_[e].forward_part(ctx, x_RH.rows(first, counts[e]), kept.rows(first, counts[e]), y);
    if (adds_bias_) experts_[e].add_bias(ctx, y);
  }
}

void Experts::backward(Context& ctx,
                       std::span<const std::int64_t> counts,
                       ConstTensorView dy_RH,
                       ConstTensorView x_RH,
                       const MlpActivations& kept,
                       TensorView dx_RH) const {
  std::int64_t first = 0;
  for (std::size_t e = 0; e < experts_.size(); first += counts[e++]) {
    experts_[e].backward(ctx,
                         dy_RH.rows(first, counts[e]),
                         x_RH.rows(first, counts[e]),
                         kept.rows(first, counts[e]),
                         dx_RH.rows(first, counts[e]),
                         Accumulate::kOverwrite,
                         weight_gradient_[e]);
  }
}

}  // namespace pecan::model
