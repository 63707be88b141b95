#include <algorithm>

#include <pecan/comm/group.hpp>

#include <pecan/optim/adamw.hpp>

#include <pecan/checkpoint/checkpointer.hpp>
#include <pecan/checkpoint/plan.hpp>

#include <pecan/train/plan.hpp>
#include <pecan/train/state.hpp>

namespace pecan::train {
namespace {

ParameterCounts count_parameters(const model::ModelDims& dims,
                                 const std::vector<parallel::ParamSpec>& specs) {
  ParameterCounts counts;
  for (const parallel::ParamSpec& spec : specs) {
    const std::int64_t elements = spec.shape.num_elements();
    counts.total += elements;
    (spec.is_expert() ? counts.expert : counts.non_expert) += elements;
  }
  counts.active = counts.non_expert;
  if (dims.num_experts > 0) counts.active += counts.expert / dims.num_experts * dims.topk;
  return counts;
}

/// Bytes of the rotating groups of all expert units, and of everything else, in a checkpoint.
std::pair<std::int64_t, std::int64_t> state_bytes(const StateCatalog& catalog,
                                                  const std::vector<RoleGroup>& always_saved) {
  std::int64_t rotating = 0, rest = 0;
  for (const StateItem& item : catalog.items) {
    const bool always = !catalog.units[std::size_t(item.unit.value)].is_expert() ||
                        std::ranges::count(always_saved, item.group) > 0;
    (always ? rest : rotating) += std::int64_t(item.num_bytes());
  }
  return {rotating, rest};
}

parallel::Sharding sharding_of(config::DataSharding strategy) {
  switch (strategy) {
    case config::DataSharding::kNone:
      return parallel::Sharding::kNone;
    case config::DataSharding::kOptimizer:
      return parallel::Sharding::kOptimizer;
    case config::DataSharding::kOptimizerAndGradients:
      return parallel::Sharding::kGradients;
  }
  throw InternalError("an unknown sharding strategy");
}

parallel::Overlap overlap_of(bool on) {
  return on ? parallel::Overlap::kOn : parallel::Overlap::kOff;
}

}  // namespace

TrainPlan make_plan(const config::Config& config, std::int64_t vocab_size, int world_size) {
  config::validate_for_world(config, world_size);
  TrainPlan plan;
  plan.mesh = parallel::plan_mesh(config.parallel, world_size);
  plan.sharding = sharding_of(config.parallel.data_parallel_sharding_strategy);
  plan.overlap_reduce = overlap_of(config.parallel.overlap_grad_reduce);
  plan.overlap_gather = overlap_of(config.parallel.overlap_param_gather);
  plan.dims = model::plan_dims(config, vocab_size);
  plan.specs = model::plan_parameters(plan.dims);
  const auto& always_saved = config.checkpoint.pec.always_saved;
  const bool weights_saved = std::ranges::find(always_saved, "weight") != always_saved.end();
  plan.catalog = plan_catalog(plan.dims,
                              weights_saved ? DerivedWeights::kSaved : DerivedWeights::kOmitted,
                              plan.specs,
                              plan.mesh,
                              plan.sharding);
  plan.parameters = count_parameters(plan.dims, plan.specs);
  plan.num_micro_batches =
      config.training.global_batch_size / (config.training.micro_batch_size * plan.mesh.dp);
  const bool on_device = config.training.device == config::DeviceChoice::kCuda;
  const model::MemoryPlan memory =
      model::plan_memory(plan.dims,
                         std::max(1, config.training.threads),
                         on_device ? device::DeviceKind::kCuda : device::DeviceKind::kCpu);
  for (int r = 0; r < world_size; ++r) {
    const parallel::MeshPosition position = parallel::position_of(plan.mesh, Rank{r});
    const parallel::ParamLayout layout = parallel::plan_layout(
        plan.specs, int(plan.dims.num_experts), plan.mesh, position, plan.dims.dtype);
    const parallel::StateBytes state =
        parallel::plan_state_memory(layout, plan.sharding, position, plan.dims.dtype).bytes;
    comm::SentBytes sent =
        model::plan_traffic(plan.dims, plan.mesh, position).times(plan.num_micro_batches);
    sent += parallel::plan_gradient_traffic(layout,
                                            plan.sharding,
                                            plan.mesh,
                                            position,
                                            plan.dims.kv_replicas(),
                                            plan.dims.dtype,
                                            plan.num_micro_batches);
    plan.sent.push_back(sent);
    std::size_t communication = 0;
    for (const parallel::Bucket& bucket : layout.buckets) {
      if (on_device) break;
      communication += comm::plan_all_reduce_scratch(std::int64_t(bucket.range.count),
                                                     plan.dims.master_dtype(),
                                                     bucket.expert ? plan.mesh.edp : plan.mesh.dp);
    }
    const parallel::MeshShape& mesh = plan.mesh;
    for (const int size : {mesh.world,
                           mesh.tp,
                           mesh.dp,
                           plan.dims.kv_replicas(),
                           mesh.etp,
                           mesh.edp,
                           mesh.etp * mesh.ep}) {
      if (on_device) communication += comm::plan_device_scratch_bytes(size);
      // Which groups share a node is not known here: the plan has room for both ways.
      if (config.comm.shared_memory) communication += comm::plan_window_bytes(size);
    }
    if (plan.dims.default_vectors && !on_device) {
      communication += comm::plan_all_reduce_scratch(plan.dims.num_experts * (plan.dims.hidden + 1),
                                                     plan.dims.master_dtype(),
                                                     plan.mesh.world);
    }
    plan.memory.push_back({.weights = state.weights + memory.default_vector_bytes,
                           .gradients = state.gradients,
                           .optimizer = state.masters + 2 * state.moment,
                           .activations = memory.activation_bytes,
                           .workspace = memory.workspace_bytes,
                           .communication = communication});
  }
  if (!config.checkpoint.save_interval.never()) {
    plan.snapshots =
        checkpoint::plan_snapshot_memory(plan.catalog, config.checkpoint, {}, /*has_full=*/false);
    for (std::size_t r = 0; r < plan.memory.size(); ++r) {
      const checkpoint::SnapshotMemory& buffers = plan.snapshots[r];
      // Its own and, where nodes have equally many ranks, as much for each copy of another's.
      const std::uint64_t in_directory = checkpoint::memory_dir_bytes(buffers) *
                                         std::uint64_t(config.checkpoint.replication_factor);
      // The last checkpoint has a buffer of its own beside those of the memory level.
      plan.memory[r].snapshots = in_directory > 0 ? in_directory + buffers.first : buffers.total();
    }
  }
  const auto [rotating, rest] =
      state_bytes(plan.catalog, checkpoint::always_saved_groups(always_saved));
  plan.full_checkpoint_bytes = rotating + rest;
  const std::int64_t experts = std::max<std::int64_t>(1, plan.dims.num_experts);
  plan.partial_checkpoint_bytes =
      rest + rotating / experts * config.checkpoint.pec.experts_per_checkpoint;
  return plan;
}

CheckpointReport report_checkpoints(const config::Config& config,
                                    const TrainPlan& plan,
                                    const checkpoint::RunFigures& figures) {
  CheckpointReport report;
  report.figures = figures;
  report.estimate = checkpoint::estimate_checkpoints(
      plan_catalog(plan.dims, DerivedWeights::kSaved, plan.specs, plan.mesh, plan.sharding),
      config.checkpoint);
  report.costs = checkpoint::estimate_costs(
      report.estimate, config.checkpoint, config.training.train_iters, figures);
  return report;
}

}  // namespace pecan::train
