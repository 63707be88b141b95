#include <cmath>
#include <numbers>

#include <pecan/optim/schedule.hpp>

namespace pecan::optim {

double learning_rate(const config::OptimizerConfig& config, std::int64_t step) {
  if (config.lr_warmup_iters > 0 && step <= config.lr_warmup_iters) {
    return config.lr_warmup_init +
           (config.lr - config.lr_warmup_init) * double(step) / double(config.lr_warmup_iters);
  }
  if (config.lr_decay_style == config::LrDecayStyle::kConstant) return config.lr;
  if (step > config.lr_decay_iters) return config.min_lr;
  const double ratio = double(step - config.lr_warmup_iters) /
                       double(config.lr_decay_iters - config.lr_warmup_iters);
  return config.min_lr + (config.lr - config.min_lr) * (1 + std::cos(std::numbers::pi * ratio)) / 2;
}

double clip_factor(double clip_grad, double norm) {
  constexpr double kNormEpsilon = 1e-6;
  if (clip_grad <= 0) return 1;
  const double factor = clip_grad / (norm + kNormEpsilon);
  return factor < 1 ? factor : 1;
}

}  // namespace pecan::optim
