#include <pecan/ops/capacity.hpp>

#include "kernels/capacity.cuh"
#include "kernels/operators.hpp"
#include "kernels/reduce.cuh"

namespace pecan::kernels {

std::int64_t drop_over_capacity(Context& ctx,
                                ops::DropPolicy policy,
                                std::int64_t capacity,
                                ConstTensorView topk_ids_TK,
                                ConstTensorView weights_TK,
                                TensorView counts_E,
                                TensorView kept_ids_TK) {
  const Index experts = counts_E.shape[0];
  Scratch scratch(ctx);
  double* const dropped = scratch.take<double>(experts);
  double* const all_dropped = scratch.take<double>(1);
  with_float_type(weights_TK.dtype, [&]<typename T>(T) {
    launch(capacity_kernel<T>,
           blocks_of(experts, 1),
           kCapacityThreads,
           0,
           stream_of(ctx),
           policy == ops::DropPolicy::kProbs,
           capacity,
           data_of<std::int32_t>(topk_ids_TK),
           data_of<T>(weights_TK),
           topk_ids_TK.num_elements(),
           data_of<std::int64_t>(counts_E),
           data_of<std::int32_t>(kept_ids_TK),
           dropped);
  });
  reduce_to<Value, Plus>(ctx, static_cast<const double*>(dropped), experts, all_dropped);
  double found = 0;
  fetch(ctx, all_dropped, 1, &found);
  return std::int64_t(found);
}

}  // namespace pecan::kernels
