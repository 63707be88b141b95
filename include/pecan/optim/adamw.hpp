#pragma once
/// AdamW over a rank's parameters, with an update count for each unit.

#include <cstdint>
#include <span>
#include <vector>

#include <pecan/config/config.hpp>

#include <pecan/device/context.hpp>

#include <pecan/parallel/params.hpp>

namespace pecan::optim {

/// The non-expert state or one expert of one layer, as far as the optimizer cares.
struct UnitUpdates {
  LayerId layer = kNoLayer;
  ExpertId expert{-1};
  std::int64_t count =
      0;  ///< updates so far; bias correction follows it, so that a stale expert stays consistent
};

class AdamW {
 public:
  /// Moments of `params`, zero, but on a device only after zero(); `params` outlives it.
  AdamW(device::Device device, parallel::ParamSet& params);
  /// The moments become zero.
  void zero(Context& ctx);
  /// One update of every master from its gradient times `grad_scale`, and of the weights derived
  /// from it. Decay as each spec says. Not collective.
  void update(Context& ctx, const config::OptimizerConfig& config, double lr, double grad_scale);
  [[nodiscard]] device::ParamStorage exp_avg(const parallel::Param& param) const {
    return params_.storage_in(exp_avg_, param);
  }
  [[nodiscard]] device::ParamStorage exp_avg_sq(const parallel::Param& param) const {
    return params_.storage_in(exp_avg_sq_, param);
  }
  /// This rank's units, the non-expert one first.
  [[nodiscard]] std::span<UnitUpdates> units() { return units_; }
  /// Bytes of the moments of `elements` parameters of a model of `dtype`, and with bf16 of their
  /// masters. Pure.
  [[nodiscard]] static std::size_t plan_bytes(std::size_t elements, DType dtype) {
    return (dtype == master_of(dtype) ? 2 : 3) * elements * size_of(master_of(dtype));
  }

 private:
  parallel::ParamSet& params_;
  device::Buffer exp_avg_;
  device::Buffer exp_avg_sq_;
  std::vector<UnitUpdates> units_;
  std::vector<std::size_t> unit_of_param_;
};

}  // namespace pecan::optim
