#include <algorithm>

#include <nlohmann/json.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/optim/adamw.hpp>

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

/// "46,702,792,704".
template <typename Int>
std::string grouped(Int value) {
  std::string digits = fmt::format("{}", value);
  for (std::size_t at = digits.size(); at > 3;) digits.insert(at -= 3, 1, ',');
  return digits;
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
  const model::MemoryPlan memory =
      model::plan_memory(plan.dims, std::max(1, config.training.threads));
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
      communication += comm::plan_all_reduce_scratch(std::int64_t(bucket.range.count),
                                                     plan.dims.master_dtype(),
                                                     bucket.expert ? plan.mesh.edp : plan.mesh.dp);
    }
    plan.memory.push_back({.weights = state.weights,
                           .gradients = state.gradients,
                           .optimizer = state.masters + 2 * state.moment,
                           .activations = memory.activation_bytes,
                           .workspace = memory.workspace_bytes,
                           .communication = communication});
  }
  const auto [rotating, rest] =
      state_bytes(plan.catalog, checkpoint::always_saved_groups(always_saved));
  plan.full_checkpoint_bytes = rotating + rest;
  const std::int64_t experts = std::max<std::int64_t>(1, plan.dims.num_experts);
  plan.partial_checkpoint_bytes =
      rest + rotating / experts * config.checkpoint.pec.experts_per_checkpoint;
  return plan;
}

std::string describe(const TrainPlan& plan) {
  const auto busiest = std::ranges::max_element(
      plan.sent, {}, [](const comm::SentBytes& sent) { return sent.total(); });
  std::string sent;
  for (std::size_t i = 0; i < std::size_t(comm::Purpose::kCount); ++i) {
    const auto purpose = comm::Purpose(i);
    if ((*busiest)[purpose] == 0) continue;
    sent +=
        fmt::format("            {} {}\n", comm::name_of(purpose), grouped((*busiest)[purpose]));
  }
  const auto largest = std::ranges::max_element(plan.memory, {}, &RankMemory::total);
  const double expert_share = double(plan.parameters.expert) / double(plan.parameters.total);
  return fmt::format(
      "parameters  {} total, {} active a token\n"
      "            {} in experts ({:.2f} %), {} in the rest\n"
      "layout      {} ranks: dp {}, ep {}, edp {}, tp {}, etp {}; {} micro-batches a step and "
      "rank\n"
      "memory      {} bytes a rank at most: weights {}, gradients {}, optimizer {},\n"
      "            activations {}, workspace {}, communication {}\n"
      "traffic     {} bytes a step that a rank sends at most, if experts are chosen equally often\n"
      "{}"
      "checkpoint  {} bytes full, {} partial ({:.1f} %)\n",
      grouped(plan.parameters.total),
      grouped(plan.parameters.active),
      grouped(plan.parameters.expert),
      100 * expert_share,
      grouped(plan.parameters.non_expert),
      plan.mesh.world,
      plan.mesh.dp,
      plan.mesh.ep,
      plan.mesh.edp,
      plan.mesh.tp,
      plan.mesh.etp,
      plan.num_micro_batches,
      grouped(largest->total()),
      grouped(largest->weights),
      grouped(largest->gradients),
      grouped(largest->optimizer),
      grouped(largest->activations),
      grouped(largest->workspace),
      grouped(largest->communication),
      grouped(busiest->total()),
      sent,
      grouped(plan.full_checkpoint_bytes),
      grouped(plan.partial_checkpoint_bytes),
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
                     {"communication", memory.communication},
                     {"total", memory.total()}});
  }
  nlohmann::ordered_json traffic = nlohmann::ordered_json::array();
  for (const comm::SentBytes& sent : plan.sent) {
    nlohmann::ordered_json purposes = nlohmann::ordered_json::object();
    for (std::size_t i = 0; i < std::size_t(comm::Purpose::kCount); ++i) {
      const auto purpose = comm::Purpose(i);
      if (sent[purpose] > 0) purposes[std::string(comm::name_of(purpose))] = sent[purpose];
    }
    traffic.push_back(purposes);
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
      {"sent_bytes", traffic},
      {"checkpoint_bytes",
       {{"full", plan.full_checkpoint_bytes}, {"partial", plan.partial_checkpoint_bytes}}}};
  return json.dump(2) + "\n";
}

}  // namespace pecan::train
