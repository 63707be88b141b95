#include <algorithm>

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

MlpActivations MlpActivations::first_rows(std::int64_t count) const {
  return {gate_TF.shape.num_dims() > 0 ? gate_TF.rows(0, count) : gate_TF,
          up_TF.rows(0, count),
          h_TF.rows(0, count)};
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
                 Rank rank)
    : compute_(dims.expert_compute) {
  const int num_local = int(dims.num_experts) / mesh.ep;
  const int first = parallel::position_of(mesh, rank).ep * num_local;
  const auto maps = [&](const char* name, HiddenSide side) {
    std::vector<std::string> names;
    for (int e = first; e < first + num_local; ++e)
      names.push_back(expert_name(layer, ExpertId{e}) + name);
    return GroupedLinear(dims, params, side, names);
  };
  if (dims.gated_ffn) gate_ = maps(".gate_proj", HiddenSide::kOutput);
  up_ = maps(".up_proj", HiddenSide::kOutput);
  down_ = maps(".down_proj", HiddenSide::kInput);
  adds_bias_ = parallel::position_of(mesh, rank).etp == 0;
}

void Experts::forward(Context& ctx,
                      std::span<const std::int64_t> counts,
                      ConstTensorView x_RH,
                      const MlpActivations& kept,
                      TensorView topology_memory,
                      TensorView y_RH) {
  const MlpActivations rows = kept.first_rows(x_RH.shape[0]);
  rows_ = ExpertRows(ctx, compute_, counts, rows.up_TF.shape[1], topology_memory);
  up_->forward_part(ctx, rows_, x_RH, rows.up_TF);
  up_->add_bias(ctx, rows_, rows.up_TF);
  if (gate_) {
    gate_->forward_part(ctx, rows_, x_RH, rows.gate_TF);
    gate_->add_bias(ctx, rows_, rows.gate_TF);
    ops::swiglu_forward(ctx, rows.gate_TF, rows.up_TF, rows.h_TF);
  } else {
    ops::gelu_forward(ctx, rows.up_TF, rows.h_TF);
  }
  down_->forward_part(ctx, rows_, rows.h_TF, y_RH);
  if (adds_bias_) down_->add_bias(ctx, rows_, y_RH);
}

void Experts::backward(Context& ctx,
                       std::span<const std::int64_t> counts,
                       ConstTensorView dy_RH,
                       ConstTensorView x_RH,
                       const MlpActivations& kept,
                       TensorView dx_RH) const {
  PECAN_EXPECTS(std::ranges::equal(counts, rows_.counts()));
  const MlpActivations rows = kept.first_rows(x_RH.shape[0]);
  down_->backward_weight(ctx, rows_, dy_RH, rows.h_TF);
  const TensorView dh_RF = rows.h_TF;
  down_->backward_input(ctx, rows_, dy_RH, dh_RF, Accumulate::kOverwrite);
  Accumulate accumulate = Accumulate::kOverwrite;
  if (gate_) {
    ops::swiglu_backward(ctx, dh_RF, rows.gate_TF, rows.up_TF, rows.gate_TF, rows.up_TF);
    gate_->backward_weight(ctx, rows_, rows.gate_TF, x_RH);
    gate_->backward_input(ctx, rows_, rows.gate_TF, dx_RH, accumulate);
    accumulate = Accumulate::kAdd;
  } else {
    ops::gelu_backward(ctx, dh_RF, rows.up_TF, rows.up_TF);
  }
  up_->backward_weight(ctx, rows_, rows.up_TF, x_RH);
  up_->backward_input(ctx, rows_, rows.up_TF, dx_RH, accumulate);
}

void Experts::set_weight_gradient(int local_expert, WeightGradient value) {
  for (std::optional<GroupedLinear>* maps : {&gate_, &up_, &down_})
    if (*maps) (*maps)->set_weight_gradient(std::size_t(local_expert), value);
}

}  // namespace pecan::model
