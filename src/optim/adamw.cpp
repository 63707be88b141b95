#include <algorithm>

#include <pecan/ops/adamw.hpp>
#include <pecan/ops/elementwise.hpp>

#include <pecan/optim/adamw.hpp>

namespace pecan::optim {

AdamW::AdamW(device::Device device, parallel::ParamSet& params)
    : params_(params),
      exp_avg_(device, params.num_owned() * size_of(params.master_dtype())),
      exp_avg_sq_(device, params.num_owned() * size_of(params.master_dtype())),
      units_{UnitUpdates{}} {
  for (const parallel::Param& param : params.params()) {
    const LayerId layer = param.spec.is_expert() ? param.spec.layer : kNoLayer;
    auto unit = std::ranges::find_if(units_, [&](const UnitUpdates& u) {
      return u.layer == layer && u.expert == param.spec.expert;
    });
    if (unit == units_.end()) unit = units_.insert(unit, {layer, param.spec.expert, 0});
    unit_of_param_.push_back(std::size_t(unit - units_.begin()));
  }
}

void AdamW::zero(Context& ctx) {
  for (const device::Buffer* moment : {&exp_avg_, &exp_avg_sq_}) {
    ops::fill(ctx, 0, {moment->data(), DType::kU8, Shape{std::int64_t(moment->size())}});
  }
}

void AdamW::update(Context& ctx,
                   const config::OptimizerConfig& config,
                   double lr,
                   double grad_scale) {
  for (UnitUpdates& unit : units_) ++unit.count;
  std::size_t index = 0;
  for (const parallel::Param& param : params_.params()) {
    const bool decays = param.spec.decay == parallel::WeightDecay::kDecoupled;
    const ops::AdamWOptions options{.lr = lr,
                                    .beta1 = config.adam_beta1,
                                    .beta2 = config.adam_beta2,
                                    .eps = config.adam_eps,
                                    .weight_decay = decays ? config.weight_decay : 0.0,
                                    .grad_scale = grad_scale,
                                    .update_count = units_[unit_of_param_[index++]].count};
    ops::adamw_update(ctx,
                      options,
                      param.owned_grad.flat(),
                      param.master.flat(),
                      exp_avg(param).flat(),
                      exp_avg_sq(param).flat(),
                      param.is_derived() ? param.owned_weight.flat() : TensorView{});
  }
}

}  // namespace pecan::optim
