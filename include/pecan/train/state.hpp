#pragma once
/// A rank's trainable state, its token counters, and how the checkpoint sees both.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include <pecan/comm/group.hpp>

#include <pecan/parallel/storage_binding.hpp>

#include <pecan/optim/adamw.hpp>

#include <pecan/checkpoint/recovery.hpp>

#include <pecan/train/plan.hpp>

namespace pecan::train {

/// What was lost at one recovery.
struct LossReport {
  std::vector<std::int64_t>
      lost_slots;      ///< by MoE layer: token slots whose updates were lost now, any role group
  double plt_now = 0;  ///< of this recovery alone, any role group, of the planned training
  double plt = 0;      ///< over all faults so far, any role group stale, of the planned training
  double plt_weights = 0;  ///< the same for weights alone
  double plt_so_far = 0;   ///< plt relative to the tokens trained so far
};

/// How experts' weights came back.
struct WeightRestore {
  int rounded_units = 0;  ///< experts of the job whose bf16 weights were newer than their masters,
                          ///< which are now those weights
};

/// Parameters, moments and token counters of one rank, bound to the catalog.
/// Counters, by MoE layer l and expert e: routed (token slots whose update was applied, over the
/// whole job), absorbed (those that a role group's state holds) and lost, with routed = absorbed +
/// lost for every group. Source: papers.md 1, PLT.
class TrainState {
 public:
  /// On the context's device, and changed in its stream, which outlives it.
  TrainState(Context& ctx, const TrainPlan& plan, Rank rank);
  [[nodiscard]] parallel::ParamSet& params() { return params_; }
  [[nodiscard]] optim::AdamW& optimizer() { return optimizer_; }
  [[nodiscard]] StateBinding& binding() { return *binding_; }
  /// Adds the job's token slots of one applied step, [MoE layer * E + expert].
  void count_tokens(std::span<const std::int64_t> slots);
  [[nodiscard]] std::span<const std::int64_t> routed() const { return routed_; }
  /// Whether the model itself keeps state: biases of routers, default vectors.
  [[nodiscard]] static bool keeps_state_in_model(const model::ModelDims& dims);
  /// Adds that state of `model` to what checkpoints hold; once, before recovery, where there is
  /// any.
  void bind_model(model::Transformer& model);
  /// After a recovery by `plan`, with bf16: takes masters from weights that are newer, and rounds
  /// all other weights from their masters. Source: papers.md 1, W and O modes. Not collective.
  [[nodiscard]] WeightRestore restore_weights(Context& ctx, const checkpoint::RestorePlan& plan);
  /// After a recovery: sets lost from routed and the recovered units' absorbed counters. Collective
  /// over `world`.
  [[nodiscard]] LossReport account_for_losses(Context& ctx,
                                              comm::Group& world,
                                              const config::Config& config);
  /// Proportion of lost tokens so far (any group) of `planned` token slots a layer.
  [[nodiscard]] double plt(double planned_slots) const;

 private:
  struct ExpertCounters {
    int moe_layer = 0;
    int expert = 0;
    std::int64_t absorbed_weight = 0;   ///< by the parameter: the weight, or with bf16 the master
    std::int64_t absorbed_derived = 0;  ///< by the bf16 weight in checkpoints
    std::int64_t absorbed_moments = 0;
  };
  const TrainPlan& plan_;
  Rank rank_;
  parallel::ParamSet params_;
  optim::AdamW optimizer_;
  std::vector<std::int64_t> routed_;       ///< [MoE layer, E]
  std::vector<std::int64_t> lost_weight_;  ///< [MoE layer, E]
  std::vector<std::int64_t> lost_moments_;
  std::vector<std::int64_t> lost_any_;
  std::vector<ExpertCounters> experts_;  ///< held by this rank
  std::unique_ptr<parallel::StorageBinding> binding_;
};

/// Whether checkpoints hold the bf16 weights of experts beside their masters.
enum class DerivedWeights : std::uint8_t { kOmitted, kSaved };

/// Items of everything above. Pure; used by make_plan.
[[nodiscard]] StateCatalog plan_catalog(const model::ModelDims& dims,
                                        DerivedWeights derived_weights,
                                        const std::vector<parallel::ParamSpec>& specs,
                                        const parallel::MeshShape& mesh,
                                        parallel::Sharding sharding);

}  // namespace pecan::train
