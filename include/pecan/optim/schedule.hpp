#pragma once
/// Learning-rate schedules.

#include <cstdint>

#include <pecan/config/config.hpp>

namespace pecan::optim {

/// Learning rate of the update that follows `step` done ones. Pure: depends on the global step
/// alone, so that a resumed run and a stale expert follow the same schedule. Warm-up is linear from
/// lr_warmup_init over lr_warmup_iters; then min + (max - min) f with r = (step - warmup) / (decay -
/// warmup) and f = (1 + cos(pi r)) / 2 for cosine, 1 - r for linear; for WSD f = 1 until the last
/// lr_wsd_decay_iters, then with r over these 1 - r, the cosine, 2^(1 - r) - 1 (exponential) or 1 -
/// sqrt(r) (minus_sqrt). inverse-square-root: max sqrt(warmup) / sqrt(step), at least min_lr.
/// min_lr after lr_decay_iters, but for constant. Source: Megatron's OptimizerParamScheduler.
/// Differs from it: steps instead of samples, equal at a constant batch size.
[[nodiscard]] double learning_rate(const config::OptimizerConfig& config, std::int64_t step);

/// Factor on gradients so that their norm is at most `clip_grad`: clip / (norm + 1e-6) where below
/// 1, else 1 (0: no clipping).
[[nodiscard]] double clip_factor(double clip_grad, double norm);

}  // namespace pecan::optim
