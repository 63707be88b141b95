#include <algorithm>

#include <nlohmann/json.hpp>

#include <pecan/optim/adamw.hpp>

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

/// Bytes of all expert units, and of everything else, in a checkpoint.
std::pair<std::int64_t, std::int64_t> state_bytes(const StateCatalog& catalog) {
  std::int64_t expert = 0, rest = 0;
  for (const StateItem& item : catalog.items) {
    (catalog.units[std::size_t(item.unit.value)].is_expert() ? expert : rest) +=
        std::int64_t(item.num_bytes());
  }
  return {expert, rest};
}

double gigabytes(std::size_t bytes) {
  return double(bytes) / 1e9;
}

}  // namespace

TrainPlan make_plan(const config::Config& config, std::int64_t vocab_size, int world_size) {
  config::validate_for_world(config, world_size);
  TrainPlan plan;
  plan.mesh = parallel::plan_mesh(config.parallel, world_size);
  plan.dims = model::plan_dims(config, vocab_size);
  plan.specs = model::plan_parameters(plan.dims);
  const auto& always_saved = config.checkpoint.pec.always_saved;
  const bool weights_saved = std::ranges::find(always_saved, "weight") != always_saved.end();
  plan.catalog = plan_catalog(plan.dims,
                              weights_saved ? DerivedWeights::kSaved : DerivedWeights::kOmitted,
                              plan.specs,
                              plan.mesh);
  plan.parameters = count_parameters(plan.dims, plan.specs);
  plan.num_micro_batches =
      config.training.global_batch_size / (config.training.micro_batch_size * plan.mesh.dp);
  const model::MemoryPlan memory =
      model::plan_memory(plan.dims, plan.mesh.ep, config.training.threads);
  for (int r = 0; r < world_size; ++r) {
    const std::size_t elements = parallel::ParamSet::plan_elements(
        plan.specs, int(plan.dims.num_experts), plan.mesh, Rank{r}, plan.dims.dtype);
    plan.memory.push_back({elements * size_of(plan.dims.dtype),
                           elements * size_of(master_of(plan.dims.dtype)),
                           optim::AdamW::plan_bytes(elements, plan.dims.dtype),
                           memory.activation_bytes,
                           memory.workspace_bytes});
  }
  const auto [expert, rest] = state_bytes(plan.catalog);
  plan.full_checkpoint_bytes = expert + rest;
  const std::int64_t experts = std::max<std::int64_t>(1, plan.dims.num_experts);
  plan.partial_checkpoint_bytes =
      rest + expert / experts * config.checkpoint.pec.experts_per_checkpoint;
  return plan;
}

std::string describe(const TrainPlan& plan) {
  const auto largest = std::ranges::max_element(plan.memory, {}, &RankMemory::total);
  const double expert_share = double(plan.parameters.expert) / double(plan.parameters.total);
  return fmt::format(
      "model       {:.2f} M parameters ({:.1f} % in experts), {:.2f} M active a token\n"
      "layout      {} ranks: dp {}, ep {}, edp {}, tp {}, etp {}; {} micro-batches a step and "
      "rank\n"
      "memory      {:.3f} GB a rank at most: weights {:.3f}, gradients {:.3f}, optimizer {:.3f}, "
      "activations {:.3f}, "
      "workspace {:.3f}\n"
      "checkpoint  {:.3f} GB full, {:.3f} GB partial ({:.1f} %)\n",
      double(plan.parameters.total) / 1e6,
      100 * expert_share,
      double(plan.parameters.active) / 1e6,
      plan.mesh.world,
      plan.mesh.dp,
      plan.mesh.ep,
      plan.mesh.edp,
      plan.mesh.tp,
      plan.mesh.etp,
      plan.num_micro_batches,
      gigabytes(largest->total()),
      gigabytes(largest->weights),
      gigabytes(largest->gradients),
      gigabytes(largest->optimizer),
      gigabytes(largest->activations),
      gigabytes(largest->workspace),
      double(plan.full_checkpoint_bytes) / 1e9,
      double(plan.partial_checkpoint_bytes) / 1e9,
      100 * double(plan.partial_checkpoint_bytes) / double(plan.full_checkpoint_bytes));
}

std::string to_json(const TrainPlan& plan) {
  nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
  for (const RankMemory& memory : plan.memory) {
    ranks.push_back({{"weights", memory.weights},
                     {"gradients", memory.gradients},
                     {"optimizer", memory.optimizer},
                     {"activations", memory.activations},
                     {"workspace", memory.workspace},
                     {"total", memory.total()}});
  }
  const nlohmann::ordered_json json{
      {"schema", 1},
      {"parameters",
       {{"total", plan.parameters.total},
        {"active", plan.parameters.active},
        {"expert", plan.parameters.expert},
        {"non_expert", plan.parameters.non_expert}}},
      {"layout",
       {{"world", plan.mesh.world},
        {"tp", plan.mesh.tp},
        {"dp", plan.mesh.dp},
        {"etp", plan.mesh.etp},
        {"ep", plan.mesh.ep},
        {"edp", plan.mesh.edp},
        {"micro_batches", plan.num_micro_batches}}},
      {"rank_bytes", ranks},
      {"checkpoint_bytes",
       {{"full", plan.full_checkpoint_bytes}, {"partial", plan.partial_checkpoint_bytes}}}};
  return json.dump(2) + "\n";
}

}  // namespace pecan::train
