#include <pecan/ops/bias.hpp>
#include <pecan/ops/layer_norm.hpp>
#include <pecan/ops/matmul.hpp>
#include <pecan/ops/rms_norm.hpp>

#include <pecan/model/blocks.hpp>

namespace pecan::model {

using config::Normalization;
using ops::Accumulate;

Linear::Linear(const ModelDims& dims, parallel::ParamSet& params, const std::string& name)
    : weight_(&params.at(name + ".weight")) {
  if (dims.linear_bias) bias_ = &params.at(name + ".bias");
}

void Linear::forward(Context& ctx, ConstTensorView x_TI, TensorView y_TO) const {
  forward_part(ctx, x_TI, y_TO);
  add_bias(ctx, y_TO);
}

void Linear::forward_part(Context& ctx, ConstTensorView x_TI, TensorView y_TO) const {
  ops::matmul_forward(ctx, x_TI, weight_->weight, y_TO);
}

void Linear::add_bias(Context& ctx, TensorView y_TO) const {
  if (bias_ != nullptr) ops::add_bias(ctx, bias_->weight.row_major(), y_TO);
}

void Linear::backward_weight(Context& ctx, ConstTensorView dy_TO, ConstTensorView x_TI) const {
  ops::matmul_backward_weight(ctx, dy_TO, x_TI, weight_->grad);
  if (bias_ != nullptr) ops::bias_backward(ctx, dy_TO, bias_->grad.row_major());
}

void Linear::backward_input(Context& ctx,
                            ConstTensorView dy_TO,
                            TensorView dx_TI,
                            Accumulate accumulate) const {
  ops::matmul_backward_input(ctx, dy_TO, weight_->weight, dx_TI, accumulate);
}

GroupedLinear::GroupedLinear(const ModelDims& dims,
                             parallel::ParamSet& params,
                             HiddenSide side,
                             std::span<const std::string> names)
    : side_(side) {
  for (const std::string& name : names) {
    parallel::Param& weight = params.at(name + ".weight");
    params_.push_back(&weight);
    weights_.push_back(weight.weight);
    grads_.push_back(weight.grad);
    if (dims.linear_bias) biases_.push_back(&params.at(name + ".bias"));
  }
}

void GroupedLinear::forward_part(Context& ctx,
                                 const ExpertRows& rows,
                                 ConstTensorView x_RI,
                                 TensorView y_RO) const {
  rows.forward(ctx, side_, x_RI, weights_, y_RO);
}

void GroupedLinear::add_bias(Context& ctx, const ExpertRows& rows, TensorView y_RO) const {
  const auto counts = rows.counts();
  std::int64_t first = 0;
  for (std::size_t e = 0; e < biases_.size(); first += counts[e++])
    ops::add_bias(ctx, biases_[e]->weight.row_major(), y_RO.rows(first, counts[e]));
}

void GroupedLinear::backward_weight(Context& ctx,
                                    const ExpertRows& rows,
                                    ConstTensorView dy_RO,
                                    ConstTensorView x_RI) const {
  rows.backward_weight(ctx, side_, dy_RO, x_RI, grads_);
  const auto counts = rows.counts();
  std::int64_t first = 0;
  for (std::size_t e = 0; e < biases_.size(); first += counts[e++]) {
    if (grads_[e].memory() == nullptr) continue;
    ops::bias_backward(ctx, dy_RO.rows(first, counts[e]), biases_[e]->grad.row_major());
  }
}

void GroupedLinear::backward_input(Context& ctx,
                                   const ExpertRows& rows,
                                   ConstTensorView dy_RO,
                                   TensorView dx_RI,
                                   Accumulate accumulate) const {
  rows.backward_input(ctx, side_, dy_RO, weights_, dx_RI, accumulate);
}

void GroupedLinear::set_weight_gradient(std::size_t index, WeightGradient value) {
  grads_.at(index) = value == WeightGradient::kOn ? params_.at(index)->grad : ops::ParamStorage{};
}

WholeStream WholeStream::plan(const ModelDims& dims, device::Arena& arena) {
  if (!dims.shares_stream()) return {};
  return {.first_TH = arena.allocate(dims.dtype, {dims.tokens(), dims.hidden}),
          .second_TH = arena.allocate(dims.dtype, {dims.tokens(), dims.hidden})};
}

NormStatistics NormStatistics::plan(const ModelDims& dims,
                                    std::int64_t rows,
                                    device::Arena& arena) {
  NormStatistics statistics;
  statistics.rstd_T = arena.allocate(dims.master_dtype(), {rows});
  if (dims.normalization == Normalization::kLayerNorm) {
    statistics.mean_T = arena.allocate(dims.master_dtype(), {rows});
  }
  return statistics;
}

Norm::Norm(const ModelDims& dims, parallel::ParamSet& params, const std::string& name)
    : dims_(dims), weight_(&params.at(name + ".weight")) {
  if (dims.normalization == Normalization::kLayerNorm) bias_ = &params.at(name + ".bias");
}

void Norm::forward(Context& ctx, ConstTensorView x, NormStatistics statistics, TensorView y) const {
  if (bias_ == nullptr) {
    return ops::rms_norm_forward(
        ctx, x, weight_->weight.row_major(), dims_.norm_epsilon, y, statistics.rstd_T);
  }
  ops::layer_norm_forward(ctx,
                          x,
                          weight_->weight.row_major(),
                          bias_->weight.row_major(),
                          dims_.norm_epsilon,
                          y,
                          statistics.mean_T,
                          statistics.rstd_T);
}

void Norm::backward(Context& ctx,
                    ConstTensorView dy,
                    ConstTensorView x,
                    const NormStatistics& statistics,
                    TensorView dx,
                    Accumulate accumulate) const {
  if (bias_ == nullptr) {
    return ops::rms_norm_backward(ctx,
                                  dy,
                                  x,
                                  weight_->weight.row_major(),
                                  statistics.rstd_T,
                                  dx,
                                  accumulate,
                                  weight_->grad.row_major());
  }
  ops::layer_norm_backward(ctx,
                           dy,
                           x,
                           weight_->weight.row_major(),
                           statistics.mean_T,
                           statistics.rstd_T,
                           dx,
                           accumulate,
                           weight_->grad.row_major(),
                           bias_->grad.row_major());
}

}  // namespace pecan::model
