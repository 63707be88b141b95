#include <pecan/parallel/gradients.hpp>

namespace pecan::parallel {

double gradient_scale(const MeshShape& mesh, int num_micro_batches) {
  return 1.0 / (double(mesh.dp) * double(num_micro_batches));
}

void exchange_gradients(Context& ctx, ParamSet& params, MeshGroups& groups) {
  const comm::Tag tag{comm::Purpose::kGradients};
  comm::Pending dense = groups.dp->all_reduce(
      ctx, params.flat_grads(params.dense_range()), comm::ReduceOp::kSum, tag);
  comm::Pending experts = groups.edp->all_reduce(
      ctx, params.flat_grads(params.expert_range()), comm::ReduceOp::kSum, tag);
  dense.wait();
  experts.wait();
}

bool counts_dense(const MeshShape& mesh, Rank rank) {
  return position_of(mesh, rank).dp == 0;
}
bool counts_experts(const MeshShape& mesh, Rank rank) {
  return position_of(mesh, rank).edp == 0;
}

}  // namespace pecan::parallel
