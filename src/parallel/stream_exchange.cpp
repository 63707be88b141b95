#include <pecan/parallel/stream_exchange.hpp>

namespace pecan::parallel {

using comm::Purpose;

TensorView StreamExchange::own_rows(TensorView whole_TH) const {
  if (!shares_) return whole_TH;
  const std::int64_t rows = whole_TH.shape[0] / tp_.size();
  return whole_TH.rows(tp_.rank().value * rows, rows);
}

ConstTensorView StreamExchange::own_rows(ConstTensorView whole_TH) const {
  if (!shares_) return whole_TH;
  const std::int64_t rows = whole_TH.shape[0] / tp_.size();
  return whole_TH.rows(tp_.rank().value * rows, rows);
}

ConstTensorView StreamExchange::gather(
    Context& ctx, ConstTensorView own_tH, TensorView whole_TH, LayerId layer, Pass pass) const {
  if (!shares_) return own_tH;
  const Purpose purpose =
      pass == Pass::kForward ? Purpose::kTensorGather : Purpose::kTensorGatherBackward;
  tp_.all_gather_v(ctx, own_tH, counts(own_tH.num_elements()), whole_TH, {purpose, layer}).wait();
  return whole_TH;
}

void StreamExchange::reduce(
    Context& ctx, TensorView own_tH, TensorView whole_TH, LayerId layer, Pass pass) const {
  if (tp_.size() == 1) return;
  const comm::Tag tag{
      pass == Pass::kForward ? Purpose::kTensorReduce : Purpose::kTensorReduceBackward, layer};
  if (shares_) {
    tp_.reduce_scatter_v(
           ctx, whole_TH, counts(own_tH.num_elements()), own_tH, comm::ReduceOp::kSum, tag)
        .wait();
  } else {
    tp_.all_reduce(ctx, own_tH, comm::ReduceOp::kSum, tag).wait();
  }
}

}  // namespace pecan::parallel
