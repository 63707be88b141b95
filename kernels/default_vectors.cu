#include "kernels/default_vectors.cuh"
#include "kernels/operators.hpp"

namespace pecan::kernels {

void default_weights_forward(Context& ctx,
                             double scale,
                             ConstTensorView probs_TE,
                             ConstTensorView ids_TK,
                             TensorView weights_TE) {
  with_float_type(probs_TE.dtype, [&]<typename T>(T) {
    launch(default_weights_kernel<T>,
           blocks_of(probs_TE.num_elements(), kDefaultThreads),
           kDefaultThreads,
           0,
           stream_of(ctx),
           T(scale),
           data_of<T>(probs_TE),
           data_of<std::int32_t>(ids_TK),
           probs_TE.num_elements(),
           probs_TE.shape[1],
           ids_TK.shape[1],
           data_of<T>(weights_TE));
  });
}

void default_weights_backward(Context& ctx,
                              double scale,
                              ConstTensorView probs_TE,
                              ConstTensorView ids_TK,
                              ConstTensorView dweights_TE,
                              TensorView dlogits_TE) {
  with_float_type(probs_TE.dtype, [&]<typename T>(T) {
    launch(default_weights_backward_kernel<T>,
           blocks_of(probs_TE.shape[0], kDefaultTokens),
           kDefaultTokens * kWarp,
           0,
           stream_of(ctx),
           T(scale),
           data_of<T>(probs_TE),
           data_of<std::int32_t>(ids_TK),
           data_of<T>(dweights_TE),
           probs_TE.shape[0],
           probs_TE.shape[1],
           ids_TK.shape[1],
           data_of<T>(dlogits_TE));
  });
}

void expert_output_sums(Context& ctx,
                        ConstTensorView rows_SH,
                        ConstTensorView order_P,
                        ConstTensorView ids_TK,
                        ConstTensorView weights_TK,
                        TensorView sums_EC,
                        ops::Accumulate accumulate) {
  with_storage_type(rows_SH.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const Index width = rows_SH.shape[1];
    launch(expert_output_sums_kernel<T>,
           dim3(blocks_of(width + 1, kSumThreads), unsigned(sums_EC.shape[0])),
           kSumThreads,
           0,
           stream_of(ctx),
           data_of<T>(rows_SH),
           data_of<std::int32_t>(order_P),
           data_of<std::int32_t>(ids_TK),
           data_of<M>(weights_TK),
           ids_TK.num_elements(),
           rows_SH.shape[0],
           width,
           accumulate == ops::Accumulate::kAdd,
           data_of<M>(sums_EC));
  });
}

void default_vectors_update(Context& ctx,
                            double beta,
                            ConstTensorView sums_EC,
                            TensorView vectors_EH) {
  with_float_type(vectors_EH.dtype, [&]<typename T>(T) {
    launch(default_vectors_update_kernel<T>,
           blocks_of(vectors_EH.num_elements(), kDefaultThreads),
           kDefaultThreads,
           0,
           stream_of(ctx),
           T(beta),
           data_of<T>(sums_EC),
           vectors_EH.num_elements(),
           vectors_EH.shape[1],
           data_of<T>(vectors_EH));
  });
}

}  // namespace pecan::kernels
