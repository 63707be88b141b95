#pragma once
/// training.check_weight_hash_across_dp_replicas_interval: do ranks that hold the same parameters
/// hold the same bytes?

#include <string>
#include <vector>

#include <pecan/checkpoint/replicas.hpp>

#include <pecan/train/state.hpp>

namespace pecan::train {

/// Compares masters and moments as the catalog places them, and the weights that forward reads
/// wherever these are not the masters themselves: rounded to bf16, or gathered from their owners.
class ReplicaCheck {
 public:
  /// Both outlive the object.
  ReplicaCheck(const TrainPlan& plan, TrainState& state, Rank rank);
  /// Blocks that several ranks hold; 0: there is nothing to compare.
  [[nodiscard]] std::size_t num_blocks() const { return shared_.size(); }
  /// Parameters of this rank that another rank holds too.
  [[nodiscard]] std::vector<std::string> shared_weights() const;
  /// DivergenceError naming the ranks that differ. `ctx` is that of the state. Collective over
  /// `world`; all weights are gathered.
  void compare(Context& ctx, comm::Group& world, Step step) const;

 private:
  const TrainPlan& plan_;
  TrainState& state_;
  Rank rank_;
  std::vector<checkpoint::Replicated> shared_;  ///< those of the catalog first
};

}  // namespace pecan::train
