#include <pecan/parallel/mesh.hpp>

namespace pecan::parallel {

MeshShape plan_mesh(const config::ParallelConfig& config, int world_size) {
  const int tp = config.tensor_model_parallel_size;
  const int etp = config.expert_tensor_parallel_size;
  const int ep = config.expert_model_parallel_size;
  PECAN_VALIDATE(world_size >= 1 && world_size % tp == 0,
                 ConfigError,
                 "{} ranks are not divisible by tensor_model_parallel_size={} (each replica needs "
                 "that many); start a "
                 "multiple of {} ranks",
                 world_size,
                 tp,
                 tp);
  PECAN_VALIDATE(world_size % (etp * ep) == 0,
                 ConfigError,
                 "{} ranks are not divisible by expert_model_parallel_size={} x "
                 "expert_tensor_parallel_size={} (each "
                 "replica of the experts needs that many); start a multiple of {} ranks or lower "
                 "expert_model_parallel_size",
                 world_size,
                 ep,
                 etp,
                 etp * ep);
  return {world_size, tp, world_size / tp, etp, ep, world_size / (etp * ep)};
}

MeshPosition position_of(const MeshShape& mesh, Rank rank) {
  PECAN_EXPECTS(rank.value >= 0 && rank.value < mesh.world);
  const int r = rank.value;
  return {r % mesh.tp, r / mesh.tp, r % mesh.etp, r / mesh.etp % mesh.ep, r / (mesh.etp * mesh.ep)};
}

std::vector<Rank> expert_holders(const MeshShape& mesh, int ep) {
  std::vector<Rank> holders;
  for (int r = 0; r < mesh.world; ++r) {
    if (position_of(mesh, Rank{r}).ep == ep) holders.push_back(Rank{r});
  }
  return holders;
}

MeshGroups make_groups(const MeshShape& mesh, comm::Group& world, int kv_replicas) {
  PECAN_EXPECTS(kv_replicas >= 1 && mesh.tp % kv_replicas == 0);
  const MeshPosition at = position_of(mesh, world.rank());
  MeshGroups groups;
  groups.world = &world;
  groups.tp = world.split(at.dp, at.tp);
  groups.dp = world.split(at.tp, at.dp);
  groups.kv = groups.tp->split(at.tp / kv_replicas, at.tp);
  groups.etp = world.split(at.ep + mesh.ep * at.edp, at.etp);
  groups.edp = world.split(at.etp + mesh.etp * at.ep, at.edp);
  groups.dispatch = world.split(at.edp, at.etp + mesh.etp * at.ep);
  return groups;
}

comm::Traffic traffic(const MeshGroups& groups, comm::Purpose purpose) {
  comm::Traffic sum;
  for (const comm::Group* group : {static_cast<const comm::Group*>(groups.world),
                                   static_cast<const comm::Group*>(groups.tp.get()),
                                   static_cast<const comm::Group*>(groups.dp.get()),
                                   static_cast<const comm::Group*>(groups.kv.get()),
                                   static_cast<const comm::Group*>(groups.etp.get()),
                                   static_cast<const comm::Group*>(groups.edp.get()),
                                   static_cast<const comm::Group*>(groups.dispatch.get())}) {
    const comm::Traffic one = group->traffic(purpose);
    sum.calls += one.calls;
    sum.sent_bytes += one.sent_bytes;
    sum.seconds += one.seconds;
  }
  return sum;
}

}  // namespace pecan::parallel
