#include <pecan/ops/default_vectors.hpp>
#include <pecan/ops/elementwise.hpp>
#include <pecan/ops/matmul.hpp>

#include <pecan/model/default_vectors.hpp>

namespace pecan::model {

using ops::Accumulate;

namespace {

std::size_t vector_bytes(const ModelDims& dims) {
  return std::size_t(dims.num_experts * dims.hidden) * size_of(dims.master_dtype());
}

}  // namespace

std::size_t plan_default_vectors(const ModelDims& dims) {
  return dims.default_vectors ? 2 * vector_bytes(dims) : 0;
}

std::int64_t plan_default_vectors_sent(const ModelDims& dims,
                                       const parallel::MeshShape& mesh,
                                       const parallel::MeshPosition& position) {
  if (!dims.default_vectors) return 0;
  return comm::plan_all_reduce_sent(dims.num_experts * (dims.hidden + 1),
                                    dims.master_dtype(),
                                    mesh.world,
                                    position.dp * mesh.tp + position.tp);
}

DefaultVectorScratch DefaultVectorScratch::plan(const ModelDims& dims, device::Arena& arena) {
  if (!dims.default_vectors) return {};
  const DType dtype = dims.master_dtype();
  return {.sums_EC = arena.allocate(dtype, {dims.num_experts, dims.hidden + 1}),
          .weights_tE = arena.allocate(dtype, {dims.stream_tokens(), dims.num_experts})};
}

DefaultVectors::DefaultVectors(device::Device device,
                               const ModelDims& dims,
                               const parallel::MeshGroups& groups,
                               LayerId layer)
    : dims_(dims), groups_(groups), layer_(layer), memory_(device, plan_default_vectors(dims)) {
  PECAN_EXPECTS(dims.default_vectors);
  // The memory of a device is not cleared.
  device::Stream stream(device);
  device::Arena no_workspace;
  Context ctx{device, stream, no_workspace};
  const std::int64_t rows = 2 * dims.num_experts;
  ops::fill(ctx, 0, {memory_.data(), dims.master_dtype(), {rows, dims.hidden}});
  stream.synchronize();
}

TensorView DefaultVectors::vectors_EH() const {
  return {memory_.data(), dims_.master_dtype(), {dims_.num_experts, dims_.hidden}};
}

TensorView DefaultVectors::at_begin_EH() const {
  return {memory_.data() + vector_bytes(dims_),
          dims_.master_dtype(),
          {dims_.num_experts, dims_.hidden}};
}

device::ParamStorage DefaultVectors::as_weight() const {
  const TensorView vectors = vectors_EH();
  return {vectors.data, vectors.dtype, vectors.shape};
}

void DefaultVectors::undo_step(Context& ctx) {
  if (changed_) ops::copy(ctx, at_begin_EH(), vectors_EH());
  changed_ = false;
}

void DefaultVectors::gather(Context& ctx) {
  comm::Group& dispatch = *groups_.dispatch;
  // Of the ranks that share an expert, which hold the same vector, the first gives it.
  const std::int64_t num_local = dims_.num_experts / dims_.ep;
  std::vector<std::int64_t> counts(std::size_t(dispatch.size()), 0);
  for (std::size_t rank = 0; rank < counts.size(); rank += std::size_t(dims_.etp))
    counts[rank] = num_local * dims_.hidden;
  const int own = dispatch.rank().value;
  const std::int64_t rows = own % dims_.etp == 0 ? num_local : 0;
  const TensorView vectors = vectors_EH();
  dispatch
      .all_gather_v(ctx,
                    vectors.rows(own / dims_.etp * num_local, rows),
                    counts,
                    vectors,
                    {comm::Purpose::kRecovery, layer_})
      .wait();
}

void DefaultVectors::sum_outputs(Context& ctx,
                                 ConstTensorView returned_SH,
                                 ConstTensorView order_P,
                                 ConstTensorView ids_tK,
                                 ConstTensorView weights_tK,
                                 const DefaultVectorScratch& scratch,
                                 Accumulate accumulate) {
  ops::expert_output_sums(
      ctx, returned_SH, order_P, ids_tK, weights_tK, scratch.sums_EC, accumulate);
}

void DefaultVectors::update(Context& ctx, const DefaultVectorScratch& scratch) {
  groups_.world
      ->all_reduce(
          ctx, scratch.sums_EC, comm::ReduceOp::kSum, {comm::Purpose::kDefaultVectors, layer_})
      .wait();
  if (!changed_) ops::copy(ctx, vectors_EH(), at_begin_EH());
  changed_ = true;
  ops::default_vectors_update(ctx, dims_.default_beta, scratch.sums_EC, vectors_EH());
}

void DefaultVectors::forward(Context& ctx,
                             ConstTensorView probs_tE,
                             ConstTensorView ids_tK,
                             const DefaultVectorScratch& scratch,
                             TensorView wide_tH,
                             TensorView y_tH) const {
  ops::default_weights_forward(ctx, dims_.router_scaling, probs_tE, ids_tK, scratch.weights_tE);
  if (dims_.dtype == dims_.master_dtype()) {
    ops::matmul_backward_input(ctx, scratch.weights_tE, as_weight(), y_tH, Accumulate::kAdd);
    return;
  }
  ops::matmul_backward_input(ctx, scratch.weights_tE, as_weight(), wide_tH, Accumulate::kOverwrite);
  ops::axpy(ctx, 1, wide_tH, y_tH);
}

void DefaultVectors::backward(Context& ctx,
                              ConstTensorView d_tH,
                              ConstTensorView probs_tE,
                              ConstTensorView ids_tK,
                              const DefaultVectorScratch& scratch,
                              TensorView wide_tH,
                              TensorView d_logits_tE) const {
  if (dims_.dtype != dims_.master_dtype()) {
    ops::cast(ctx, d_tH, wide_tH);
    d_tH = wide_tH;
  }
  ops::matmul_forward(ctx, d_tH, as_weight(), scratch.weights_tE);
  ops::default_weights_backward(
      ctx, dims_.router_scaling, probs_tE, ids_tK, scratch.weights_tE, d_logits_tE);
}

}  // namespace pecan::model
