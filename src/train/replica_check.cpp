#include "train/replica_check.hpp"

#include <algorithm>

#include <pecan/core/hash.hpp>

#include <pecan/device/copy.hpp>
#include <pecan/device/host_context.hpp>

namespace pecan::train {
namespace {

/// Where ranks hold weights: every replica whole, whoever keeps the optimizer's state.
std::vector<checkpoint::Replicated> weight_blocks(const TrainPlan& plan) {
  const auto placed = parallel::place(plan.specs,
                                      int(plan.dims.num_experts),
                                      plan.mesh,
                                      parallel::Sharding::kNone,
                                      plan.dims.dtype);
  std::vector<checkpoint::Replicated> shared;
  for (std::size_t s = 0; s < placed.size(); ++s) {
    for (const StateBlock& part : placed[s]) {
      if (part.holders.size() > 1)
        shared.push_back({plan.specs[s].name, ItemIndex{-1}, part.block, part.holders});
    }
  }
  return shared;
}

bool weights_are_masters(const TrainPlan& plan) {
  return plan.sharding == parallel::Sharding::kNone && plan.dims.dtype == plan.dims.master_dtype();
}

}  // namespace

ReplicaCheck::ReplicaCheck(const TrainPlan& plan, TrainState& state, Rank rank)
    : plan_(plan),
      state_(state),
      rank_(rank),
      shared_(checkpoint::replicated_blocks(plan.catalog, checkpoint::ReplicaScope::kParameters)) {
  if (weights_are_masters(plan)) return;
  for (checkpoint::Replicated& block : weight_blocks(plan)) shared_.push_back(std::move(block));
}

std::vector<std::string> ReplicaCheck::shared_weights() const {
  std::vector<std::string> names;
  for (const checkpoint::Replicated& block : weight_blocks(plan_)) {
    if (std::ranges::binary_search(block.holders, rank_)) names.push_back(block.name);
  }
  return names;
}

void ReplicaCheck::compare(Context& ctx, comm::Group& world, Step step) const {
  device::HostContext host(ctx);
  std::vector<std::byte> bytes;
  const auto hash = [&](std::size_t i) {
    const checkpoint::Replicated& block = shared_[i];
    if (block.item.value >= 0) return checkpoint::hash_of(state_.binding(), plan_.catalog, block);
    const device::ParamStorage& weight = state_.params().at(block.name).weight;
    Block here = block.block;
    for (int dim = 0; dim < here.offset.num_dims(); ++dim) here.offset[dim] = 0;
    bytes.resize(std::size_t(here.extent.num_elements()) * size_of(weight.dtype()));
    device::download(ctx.stream, weight, here, bytes);
    ctx.stream.synchronize();
    return xxh3(bytes);
  };
  const std::vector<checkpoint::ReplicaDifference> differences =
      checkpoint::compare_replicas(host.get(), world, comm::Purpose::kStepFlags, shared_, hash);
  PECAN_VALIDATE(differences.empty(),
                 DivergenceError,
                 "after step {} {} ({} of {} blocks that several ranks hold differ): memory or a "
                 "processor has failed silently; continue from a checkpoint with "
                 "--resume-from-failure, and leave that host out if it is named again",
                 step,
                 describe(differences.front()),
                 differences.size(),
                 shared_.size());
}

}  // namespace pecan::train
