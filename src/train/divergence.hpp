#pragma once
/// What is wrong with a step's numbers: spikes of the loss, and the first tensor that is not
/// finite.

#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <pecan/comm/group.hpp>

#include <pecan/parallel/params.hpp>
#include <pecan/parallel/stage_listener.hpp>

#include <pecan/model/transformer.hpp>

#include <pecan/train/metrics.hpp>

namespace pecan::train {

/// The losses of the last steps that were not skipped. Not part of checkpoints: it begins empty
/// after a recovery.
class LossWindow {
 public:
  static constexpr std::size_t kSize = 64;
  static constexpr std::size_t kLeast = 16;  ///< with fewer nothing is a spike
  void accept(double loss);
  [[nodiscard]] std::size_t size() const { return losses_.size(); }
  [[nodiscard]] double mean() const;
  /// Standard deviation, by n - 1; 0 of fewer than two.
  [[nodiscard]] double deviation() const;
  /// Whether a finite `loss` lies more than `sigmas` deviations above the mean; sigmas 0: never.
  [[nodiscard]] bool is_spike(double loss, double sigmas) const;
  /// "has loss 9, more than ...".
  [[nodiscard]] std::string describe_spike(double loss, double sigmas) const;

 private:
  std::deque<double> losses_;
};

/// "has loss nan and 3 non-finite ...", for a step whose numbers are not finite.
[[nodiscard]] std::string describe_non_finite(const StepRecord& record);

/// Looks for values that are not finite while a step is computed once more. Where it finds some
/// first is a place in the step's own order: the weights, then of each micro-batch the embedding,
/// attention and mlp of each layer, the loss, and the gradients in the order in which backward
/// completes them; among gradients of one stage, the model's order. A gradient is looked at before
/// it is summed over ranks, so that it tells its rank. Weights, activations and gradients are read
/// once each.
class TensorProbe final : public parallel::StageListener {
 public:
  /// `specs` are all of the model's parameters. Everything given outlives the object.
  TensorProbe(const parallel::ParamSet& params,
              const std::vector<parallel::ParamSpec>& specs,
              const model::Activations& activations);
  /// From here to disarm() what passes is looked at.
  void arm(Context& ctx);
  void begin_micro_batch(int micro) { micro_ = micro; }
  void before_forward(Context& ctx, int stage) override;
  void after_backward(Context& ctx, int stage) override;
  /// The micro-batch's loss on this rank.
  void loss(double value);
  void disarm() { armed_ = false; }
  /// One sentence on the first bad tensor of all ranks and which has it, the same on all; empty if
  /// nothing was found. Collective over `world`.
  [[nodiscard]] std::string report(Context& ctx, comm::Group& world) const;

 private:
  enum class Phase : std::uint8_t { kWeight, kForward, kBackward };
  struct Finding {
    std::int64_t place = std::numeric_limits<std::int64_t>::max();
    std::int64_t bad = 0;
    std::int64_t of = 0;
  };
  void look(Context& ctx, Phase phase, std::int64_t order, std::int64_t spec, ConstTensorView x);
  void note(Phase phase, std::int64_t order, std::int64_t spec, std::int64_t bad, std::int64_t of);
  [[nodiscard]] std::string describe(std::int64_t place) const;

  const parallel::ParamSet& params_;
  const std::vector<parallel::ParamSpec>& specs_;
  const model::Activations& activations_;
  std::int64_t num_layers_;
  std::int64_t num_orders_;
  std::vector<std::int64_t> spec_of_param_;
  bool armed_ = false;
  int micro_ = 0;
  Finding first_;
};

}  // namespace pecan::train
