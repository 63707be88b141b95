#include "train/step_report.hpp"

#include <nlohmann/json.hpp>

namespace pecan::train {

std::vector<comm::Traffic> traffic(const parallel::MeshGroups& groups) {
  std::vector<comm::Traffic> all;
  for (std::size_t i = 0; i < std::size_t(comm::Purpose::kCount); ++i)
    all.push_back(parallel::traffic(groups, comm::Purpose(i)));
  return all;
}

std::vector<PurposeTraffic> traffic_between(const std::vector<comm::Traffic>& before,
                                            const std::vector<comm::Traffic>& after,
                                            const comm::SentBytes& planned) {
  std::vector<PurposeTraffic> sent;
  for (std::size_t i = 0; i < after.size(); ++i) {
    const comm::Traffic step{after[i].calls - before[i].calls,
                             after[i].sent_bytes - before[i].sent_bytes,
                             after[i].seconds - before[i].seconds};
    if (step.sent_bytes > 0 || planned[comm::Purpose(i)] > 0)
      sent.push_back({comm::Purpose(i), step, planned[comm::Purpose(i)]});
  }
  return sent;
}

double planned_slots(const config::Config& config, const TrainPlan& plan) {
  return double(config.training.train_iters) * double(config.training.global_batch_size) *
         double(config.training.seq_length) * double(plan.dims.topk);
}

std::string manifest_extra(const config::Config& config,
                           const TrainPlan& plan,
                           const TrainState& state,
                           const checkpoint::ExpertBudget& budget,
                           const std::optional<RestoredState>& restored) {
  const std::size_t experts = std::size_t(plan.dims.num_experts);
  nlohmann::json routed = nlohmann::json::array();
  for (std::size_t first = 0; first < state.routed().size(); first += experts) {
    const auto layer = state.routed().subspan(first, experts);
    routed.push_back(std::vector<std::int64_t>(layer.begin(), layer.end()));
  }
  nlohmann::json extra{
      {"routed", routed},
      {"topk", plan.dims.topk},
      {"global_batch_size", config.training.global_batch_size},
      {"seq_length", config.training.seq_length},
      {"train_iters", config.training.train_iters},
      {"layout",
       {{"tp", plan.mesh.tp},
        {"dp", plan.mesh.dp},
        {"etp", plan.mesh.etp},
        {"ep", plan.mesh.ep},
        {"edp", plan.mesh.edp}}},
      {"plt", state.plt(planned_slots(config, plan))},
      {"retention",
       {{"keep_latest_k", config.checkpoint.keep_latest_k},
        {"save_retain_interval", config.checkpoint.save_retain_interval},
        {"fallback_copies", config.checkpoint.fallback_copies}}},
      {"experts_per_checkpoint",
       budget.checkpoint > 0 ? budget.checkpoint : config.checkpoint.pec.experts_per_checkpoint},
      {"selection", config.checkpoint.pec.selection}};
  if (restored) {
    extra["recovery"] = {{"step", restored->exactness.step.value},
                         {"experts", restored->exactness.experts},
                         {"older_experts", restored->exactness.older},
                         {"most_steps_older", restored->exactness.most_steps},
                         {"plt_now", restored->plt}};
  }
  return extra.dump();
}

}  // namespace pecan::train
