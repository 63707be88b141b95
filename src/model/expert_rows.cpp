#include <pecan/ops/grouped_matmul.hpp>
#include <pecan/ops/matmul.hpp>

#include <pecan/model/expert_rows.hpp>

namespace pecan::model {

using config::ExpertCompute;
using ops::Accumulate;
using ops::WeightForm;
using Weights = std::span<const ops::ParamStorage>;

namespace {

/// Calls body(expert, its first row, its rows) for each expert that has some.
template <typename Body>
void for_each_expert(std::span<const std::int64_t> counts, const Body& body) {
  std::int64_t first = 0;
  for (std::size_t e = 0; e < counts.size(); first += counts[e++]) {
    if (counts[e] > 0) body(e, first, counts[e]);
  }
}

/// Weights are [outputs, inputs].
WeightForm form_of(HiddenSide side) {
  return side == HiddenSide::kOutput ? WeightForm::kFirstIsF : WeightForm::kLastIsF;
}

}  // namespace

ExpertRows::ExpertRows(Context& ctx,
                       ExpertCompute compute,
                       std::span<const std::int64_t> counts,
                       std::int64_t ffn,
                       TensorView topology_memory)
    : compute_(compute), counts_(counts.begin(), counts.end()) {
  if (compute != ExpertCompute::kBlockSparse) return;
  topology_ = ops::BlockTopology(counts, ffn);
  topology_.upload(ctx, topology_memory);
}

void ExpertRows::forward(
    Context& ctx, HiddenSide side, ConstTensorView x_RI, Weights weights, TensorView y_RO) const {
  switch (compute_) {
    case ExpertCompute::kGrouped:
      return ops::grouped_matmul_forward(ctx, counts_, x_RI, weights, y_RO);
    case ExpertCompute::kBlockSparse:
      if (side == HiddenSide::kOutput)
        return ops::block_sparse_sdd(ctx, topology_, x_RI, weights, form_of(side), y_RO);
      return ops::block_sparse_dsd(
          ctx, topology_, x_RI, weights, form_of(side), y_RO, Accumulate::kOverwrite);
    case ExpertCompute::kLoop:
      return for_each_expert(counts_, [&](std::size_t e, std::int64_t first, std::int64_t count) {
        ops::matmul_forward(ctx, x_RI.rows(first, count), weights[e], y_RO.rows(first, count));
      });
  }
  throw InternalError("an unknown way to compute experts");
}

void ExpertRows::backward_input(Context& ctx,
                                HiddenSide side,
                                ConstTensorView dy_RO,
                                Weights weights,
                                TensorView dx_RI,
                                Accumulate accumulate) const {
  switch (compute_) {
    case ExpertCompute::kGrouped:
      return ops::grouped_matmul_backward_input(ctx, counts_, dy_RO, weights, dx_RI, accumulate);
    case ExpertCompute::kBlockSparse:
      if (side == HiddenSide::kOutput)
        return ops::block_sparse_dsd(
            ctx, topology_, dy_RO, weights, form_of(side), dx_RI, accumulate);
      PECAN_EXPECTS(accumulate == Accumulate::kOverwrite);
      return ops::block_sparse_sdd(ctx, topology_, dy_RO, weights, form_of(side), dx_RI);
    case ExpertCompute::kLoop:
      return for_each_expert(counts_, [&](std::size_t e, std::int64_t first, std::int64_t count) {
        ops::matmul_backward_input(
            ctx, dy_RO.rows(first, count), weights[e], dx_RI.rows(first, count), accumulate);
      });
  }
  throw InternalError("an unknown way to compute experts");
}

void ExpertRows::backward_weight(Context& ctx,
                                 HiddenSide side,
                                 ConstTensorView dy_RO,
                                 ConstTensorView x_RI,
                                 Weights grads) const {
  switch (compute_) {
    case ExpertCompute::kGrouped:
      return ops::grouped_matmul_backward_weight(ctx, counts_, dy_RO, x_RI, grads);
    case ExpertCompute::kBlockSparse:
      if (side == HiddenSide::kOutput)
        return ops::block_sparse_backward_weight(ctx, topology_, dy_RO, x_RI, grads, form_of(side));
      return ops::block_sparse_backward_weight(ctx, topology_, x_RI, dy_RO, grads, form_of(side));
    case ExpertCompute::kLoop:
      return for_each_expert(counts_, [&](std::size_t e, std::int64_t first, std::int64_t count) {
        if (grads[e].memory() == nullptr) return;
        ops::matmul_backward_weight(
            ctx, dy_RO.rows(first, count), x_RI.rows(first, count), grads[e]);
      });
  }
  throw InternalError("an unknown way to compute experts");
}

}  // namespace pecan::model
