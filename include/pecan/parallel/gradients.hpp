#pragma once
/// Sums of gradients over the ranks that hold the same parameter, and the way back of updated
/// weights, bucket by bucket.

#include <memory>
#include <vector>

#include <pecan/comm/traffic.hpp>

#include <pecan/parallel/mesh.hpp>
#include <pecan/parallel/params.hpp>
#include <pecan/parallel/stage_listener.hpp>

namespace pecan::parallel {

/// Factor on a micro-batch's mean loss so that plain sums over ranks give the gradient of the
/// global mean: 1 / (dp * micro-batches). It serves dense and expert parameters alike: an expert
/// has already received the tokens of its whole dispatch group, so its sum over edp covers all
/// ranks. Source: Megatron's rule for experts.
[[nodiscard]] double gradient_scale(const MeshShape& mesh, int num_micro_batches);

/// Whether communication goes on while the next stage computes. Results are the same to the bit.
enum class Overlap : std::uint8_t { kOff, kOn };

/// Whether more micro-batches of the step follow.
enum class MicroBatch : std::uint8_t { kMoreFollow, kLast };

/// Sums the gradients of a step: each bucket when backward has left its first stage, over its
/// replicas in the tensor-parallel group where these computed parts, then over dp (experts: edp),
/// in ascending rank order. With Sharding::kNone every rank receives whole sums, else its share.
/// Buckets accumulate over micro-batches and are summed once a step; with Sharding::kGradients
/// those of one stage are summed after each micro-batch, since their memory is that of another
/// stage too.
class GradientExchange final : public StageListener, public device::Background {
 public:
  /// Refers to `params` and `groups`, which outlive it.
  GradientExchange(ParamSet& params, MeshGroups& groups, Overlap overlap);
  ~GradientExchange() override;
  /// Sets all gradients to zero.
  void begin_step(Context& ctx);
  void begin_micro_batch(MicroBatch which) { which_ = which; }
  void before_backward(Context& ctx, int stage) override;
  /// Collective over the groups of the stage's buckets.
  void after_backward(Context& ctx, int stage) override;
  /// Waits for all sums. Collective over the groups.
  void finish(Context& ctx);
  /// Lets sums under way progress.
  void advance() override;

 private:
  struct UnderWay;
  void start_replica_sum(Context& ctx, const Bucket& bucket);
  void start_data_sum(Context& ctx, UnderWay& sum);
  void complete(Context& ctx, UnderWay& sum);
  void begin_data_sums(Context& ctx);

  ParamSet& params_;
  MeshGroups& groups_;
  Overlap overlap_;
  MicroBatch which_ = MicroBatch::kLast;
  std::vector<UnderWay> under_way_;
};

/// Brings the weights that other ranks updated to this one; nothing to do with Sharding::kNone.
class WeightGather final : public StageListener, public device::Background {
 public:
  WeightGather(ParamSet& params, MeshGroups& groups, Overlap overlap);
  ~WeightGather() override;
  /// Starts to gather all weights; without overlap also waits for them. Collective over dp and edp.
  void start(Context& ctx);
  /// Waits for the weights that `stage` is the first to read.
  void before_forward(Context& ctx, int stage) override;
  /// Waits for all weights.
  void finish();
  void advance() override;

 private:
  struct UnderWay;
  ParamSet& params_;
  MeshGroups& groups_;
  Overlap overlap_;
  std::vector<UnderWay> under_way_;
};

/// What the rank at `position` sends in a step for sums of gradients and gathers of weights, by
/// purpose. Pure.
[[nodiscard]] comm::SentBytes plan_gradient_traffic(const ParamLayout& layout,
                                                    Sharding sharding,
                                                    const MeshShape& mesh,
                                                    const MeshPosition& position,
                                                    int kv_replicas,
                                                    DType dtype,
                                                    int num_micro_batches);

/// Both of them as the background of one Context.
class StepBackground final : public device::Background {
 public:
  /// Refers to both.
  StepBackground(WeightGather& gather, GradientExchange& exchange)
      : gather_(gather), exchange_(exchange) {}
  void advance() override {
    gather_.advance();
    exchange_.advance();
  }

 private:
  WeightGather& gather_;
  GradientExchange& exchange_;
};

}  // namespace pecan::parallel
