#pragma once
/// Sums of gradients over the ranks that hold the same parameter.

#include <pecan/parallel/mesh.hpp>
#include <pecan/parallel/params.hpp>

namespace pecan::parallel {

/// Factor on a micro-batch's mean loss so that plain sums over ranks give the gradient of the
/// global mean: 1 / (dp * micro-batches). It serves dense and expert parameters alike: an expert
/// has already received the tokens of its whole expert-parallel group, so its sum over edp covers
/// all dp ranks. Source: Megatron's rule for experts.
[[nodiscard]] double gradient_scale(const MeshShape& mesh, int num_micro_batches);

/// Sums dense gradients over dp and experts' over edp, in place, in ascending rank order.
/// Collective over both groups.
void exchange_gradients(Context& ctx, ParamSet& params, MeshGroups& groups);

/// Whether this rank counts dense (experts') gradients in a sum over the world in which each
/// parameter stands once.
[[nodiscard]] bool counts_dense(const MeshShape& mesh, Rank rank);
[[nodiscard]] bool counts_experts(const MeshShape& mesh, Rank rank);

}  // namespace pecan::parallel
