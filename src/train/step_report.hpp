#pragma once
/// What is told of a step beside its numbers: what it sent, and what its checkpoint's manifest says
/// to people.

#include <optional>
#include <string>
#include <vector>

#include <pecan/config/config.hpp>

#include <pecan/parallel/mesh.hpp>

#include <pecan/checkpoint/dynamic_k.hpp>
#include <pecan/checkpoint/exactness.hpp>

#include <pecan/train/metrics.hpp>
#include <pecan/train/plan.hpp>

namespace pecan::train {

/// By purpose, of this rank since its groups were made.
[[nodiscard]] std::vector<comm::Traffic> traffic(const parallel::MeshGroups& groups);
/// Between two of those: purposes that `planned` has, and those that only turned up.
[[nodiscard]] std::vector<PurposeTraffic> traffic_between(const std::vector<comm::Traffic>& before,
                                                          const std::vector<comm::Traffic>& after,
                                                          const comm::SentBytes& planned);

/// Token slots that the whole training feeds to each MoE layer.
[[nodiscard]] double planned_slots(const config::Config& config, const TrainPlan& plan);
/// What a start continues from.
struct RestoredState {
  checkpoint::Exactness exactness;
  double plt = 0;  ///< lost by that recovery
};
/// Manifest::extra_json (docs/formats/checkpoint.md).
[[nodiscard]] std::string manifest_extra(const config::Config& config,
                                         const TrainPlan& plan,
                                         const TrainState& state,
                                         const checkpoint::ExpertBudget& budget,
                                         const std::optional<RestoredState>& restored);

}  // namespace pecan::train
