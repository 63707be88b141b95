#pragma once
/// What all ranks sum once a step.

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace pecan::train {

/// Doubles that all ranks sum once a step. Counts are exact below 2^53.
class StepSums {
 public:
  /// `with_chosen`: what routers chose is summed beside what experts processed.
  StepSums(std::size_t moe_layers, std::size_t experts, bool with_chosen)
      : num_slots_(moe_layers * experts),
        values_(kFirstSlot + (with_chosen ? 2 : 1) * num_slots_, 0.0) {}
  double& loss() { return values_[0]; }
  double& aux_loss() { return values_[1]; }
  double& z_loss() { return values_[2]; }
  double& dense_squares() { return values_[3]; }
  double& expert_squares() { return values_[4]; }
  double& non_finite() { return values_[5]; }
  double& chunks_added() { return values_[6]; }
  double& dropped() { return values_[7]; }
  /// Token slots that experts processed, [MoE layer, expert].
  [[nodiscard]] std::span<double> slots() {
    return std::span(values_).subspan(kFirstSlot, num_slots_);
  }
  /// Those that routers chose, dropped ones too; empty where nobody asks.
  [[nodiscard]] std::span<double> chosen() {
    return std::span(values_).subspan(kFirstSlot + num_slots_);
  }
  [[nodiscard]] std::span<double> all() { return values_; }
  void clear() { std::ranges::fill(values_, 0.0); }

 private:
  static constexpr std::size_t kFirstSlot = 8;
  std::size_t num_slots_;
  std::vector<double> values_;
};

}  // namespace pecan::train
