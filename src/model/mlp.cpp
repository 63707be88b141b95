#include <pecan/ops/matmul.hpp>
#include <pecan/ops/swiglu.hpp>

#include <pecan/model/mlp.hpp>

namespace pecan::model {

using ops::Accumulate;

MlpActivations MlpActivations::plan(DType dtype,
                                    std::int64_t rows,
                                    std::int64_t ffn,
                                    device::Arena& arena) {
  MlpActivations kept;
  kept.gate_TF = arena.allocate(dtype, {rows, ffn});
  kept.up_TF = arena.allocate(dtype, {rows, ffn});
  kept.h_TF = arena.allocate(dtype, {rows, ffn});
  return kept;
}

MlpActivations MlpActivations::rows(std::int64_t first, std::int64_t count) const {
  return {gate_TF.rows(first, count), up_TF.rows(first, count), h_TF.rows(first, count)};
}

Mlp::Mlp(parallel::ParamSet& params, const std::string& prefix)
    : gate_(&params.at(prefix + ".gate_proj.weight")),
      up_(&params.at(prefix + ".up_proj.weight")),
      down_(&params.at(prefix + ".down_proj.weight")) {}

void Mlp::forward(Context& ctx, ConstTensorView x_TH, MlpActivations kept, TensorView y_TH) const {
  ops::matmul_forward(ctx, x_TH, gate_->weight, kept.gate_TF);
  ops::matmul_forward(ctx, x_TH, up_->weight, kept.up_TF);
  ops::swiglu_forward(ctx, kept.gate_TF, kept.up_TF, kept.h_TF);
  ops::matmul_forward(ctx, kept.h_TF, down_->weight, y_TH);
}

void Mlp::backward(Context& ctx,
                   ConstTensorView dy_TH,
                   ConstTensorView x_TH,
                   MlpActivations kept,
                   TensorView dx_TH,
                   Accumulate accumulate,
                   WeightGradient weight_gradient) const {
  if (weight_gradient == WeightGradient::kOn)
    ops::matmul_backward_weight(ctx, dy_TH, kept.h_TF, down_->grad);
  const TensorView dh_TF = kept.h_TF;
  ops::matmul_backward_input(ctx, dy_TH, down_->weight, dh_TF, Accumulate::kOverwrite);
  ops::swiglu_backward(ctx, dh_TF, kept.gate_TF, kept.up_TF, kept.gate_TF, kept.up_TF);
  if (weight_gradient == WeightGradient::kOn) {
    ops::matmul_backward_weight(ctx, kept.gate_TF, x_TH, gate_->grad);
    ops::matmul_backward_weight(ctx, kept.up_TF, x_TH, up_->grad);
  }
  ops::matmul_backward_input(ctx, kept.gate_TF, gate_->weight, dx_TH, accumulate);
  ops::matmul_backward_input(ctx, kept.up_TF, up_->weight, dx_TH, Accumulate::kAdd);
}

Experts::Experts(const ModelDims& dims,
                 parallel::ParamSet& params,
                 LayerId layer,
                 const parallel::MeshShape& mesh,
                 Rank rank) {
  const int num_local = int(dims.num_experts) / mesh.ep;
  const int first = parallel::position_of(mesh, rank).ep * num_local;
  for (int e = first; e < first + num_local; ++e)
    experts_.emplace_back(params, expert_name(layer, ExpertId{e}));
  weight_gradient_.assign(experts_.size(), WeightGradient::kOn);
}

void Experts::forward(Context& ctx,
                      std::span<const std::int64_t> counts,
                      ConstTensorView x_RH,
                      const MlpActivations& kept,
                      TensorView y_RH) const {
  std::int64_t first = 0;
  for (std::size_t e = 0; e < experts_.size(); first += counts[e++]) {
    experts_[e].forward(
        ctx, x_RH.rows(first, counts[e]), kept.rows(first, counts[e]), y_RH.rows(first, counts[e]));
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
