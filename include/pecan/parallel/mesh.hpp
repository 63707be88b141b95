#pragma once
/// The mesh: two grids over the same ranks, dense (tp fastest, then dp) and expert (etp fastest,
/// then ep, then edp). Source: Megatron's parallel folding (order tp-cp-ep-dp-pp); cp and pp are 1.

#include <memory>
#include <vector>

#include <pecan/core/ids.hpp>

#include <pecan/config/config.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::parallel {

/// Sizes of the axes; tp * dp = etp * ep * edp = world.
struct MeshShape {
  int world = 1;
  int tp = 1;
  int dp = 1;
  int etp = 1;
  int ep = 1;
  int edp = 1;
  bool operator==(const MeshShape&) const = default;
};

/// A rank's position on each axis.
struct MeshPosition {
  int tp = 0;
  int dp = 0;
  int etp = 0;
  int ep = 0;
  int edp = 0;
  bool operator==(const MeshPosition&) const = default;
};

/// Pure; ConfigError where the sizes do not divide the world.
[[nodiscard]] MeshShape plan_mesh(const config::ParallelConfig& config, int world_size);
[[nodiscard]] MeshPosition position_of(const MeshShape& mesh, Rank rank);
/// Ranks (ascending) that hold the experts of expert-parallel position `ep`.
[[nodiscard]] std::vector<Rank> expert_holders(const MeshShape& mesh, int ep);

/// This rank's groups along the axes. The world group outlives the object.
struct MeshGroups {
  comm::Group* world = nullptr;
  std::unique_ptr<comm::Group> dp;   ///< replicas of dense parameters
  std::unique_ptr<comm::Group> ep;   ///< exchanges tokens
  std::unique_ptr<comm::Group> edp;  ///< replicas of this rank's experts
};
/// Collective over `world`.
[[nodiscard]] MeshGroups make_groups(const MeshShape& mesh, comm::Group& world);

}  // namespace pecan::parallel
