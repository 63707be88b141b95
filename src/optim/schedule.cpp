#include <algorithm>
#include <cmath>
#include <numbers>

#include <pecan/optim/schedule.hpp>

namespace pecan::optim {
namespace {

using config::LrDecayStyle;
using config::WsdDecayStyle;

double cosine(double ratio) {
  return (1 + std::cos(std::numbers::pi * ratio)) / 2;
}

/// Share of the way from min_lr up to lr, after the warm-up and up to lr_decay_iters.
double decay_factor(const config::OptimizerConfig& config, std::int64_t step) {
  if (config.lr_decay_style != LrDecayStyle::kWsd) {
    const double ratio = double(step - config.lr_warmup_iters) /
                         double(config.lr_decay_iters - config.lr_warmup_iters);
    return config.lr_decay_style == LrDecayStyle::kLinear ? 1 - ratio : cosine(ratio);
  }
  const std::int64_t start = config.lr_decay_iters - config.lr_wsd_decay_iters;
  if (step <= start) return 1;
  const double ratio = double(step - start) / double(config.lr_wsd_decay_iters);
  switch (config.lr_wsd_decay_style) {
    case WsdDecayStyle::kLinear:
      return 1 - ratio;
    case WsdDecayStyle::kCosine:
      return cosine(ratio);
    case WsdDecayStyle::kMinusSqrt:
      return 1 - std::sqrt(ratio);
    case WsdDecayStyle::kExponential:
      break;
  }
  return 2 * std::exp2(-ratio) - 1;
}

}  // namespace

double learning_rate(const config::OptimizerConfig& config, std::int64_t step) {
  if (config.lr_warmup_iters > 0 && step <= config.lr_warmup_iters) {
    return config.lr_warmup_init +
           (config.lr - config.lr_warmup_init) * double(step) / double(config.lr_warmup_iters);
  }
  if (config.lr_decay_style == config::LrDecayStyle::kConstant) return config.lr;
  if (step > config.lr_decay_iters) return config.min_lr;
  if (config.lr_decay_style == config::LrDecayStyle::kInverseSquareRoot) {
    const double warmup = double(std::max<std::int64_t>(config.lr_warmup_iters, 1));
    const double done = double(std::max<std::int64_t>(step, 1));
    return std::max(config.min_lr, config.lr * std::sqrt(warmup / done));
  }
  return config.min_lr + (config.lr - config.min_lr) * decay_factor(config, step);
}

double clip_factor(double clip_grad, double norm) {
  constexpr double kNormEpsilon = 1e-6;
  if (clip_grad <= 0) return 1;
  const double factor = clip_grad / (norm + kNormEpsilon);
  return factor < 1 ? factor : 1;
}

}  // namespace pecan::optim
