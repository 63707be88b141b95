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
/// Ranks (ascending) that hold experts of expert-parallel position `ep`, whole or in part.
[[nodiscard]] std::vector<Rank> expert_holders(const MeshShape& mesh, int ep);

/// This rank's groups along the axes, members in ascending order of their world ranks. The world
/// group outlives the object.
struct MeshGroups {
  comm::Group* world = nullptr;
  std::unique_ptr<comm::Group> tp;        ///< shares each dense matrix and each micro-batch
  std::unique_ptr<comm::Group> dp;        ///< replicas of dense parameters
  std::unique_ptr<comm::Group> kv;        ///< of tp, those that hold the same key-value group
  std::unique_ptr<comm::Group> etp;       ///< shares each expert's matrices
  std::unique_ptr<comm::Group> edp;       ///< replicas of this rank's experts
  std::unique_ptr<comm::Group> dispatch;  ///< ep x etp: exchanges tokens
};
/// What this rank sent and waited in all its groups so far, of one purpose.
[[nodiscard]] comm::Traffic traffic(const MeshGroups& groups, comm::Purpose purpose);
/// `kv_replicas` ranks of tp in a row hold the same key-value group; it divides tp. Collective over
/// `world`.
[[nodiscard]] MeshGroups make_groups(const MeshShape& mesh, comm::Group& world, int kv_replicas);

}  // namespace pecan::parallel
