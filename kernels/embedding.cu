#include "kernels/embedding.cuh"
#include "kernels/operators.hpp"

namespace pecan::kernels {

void embedding_forward(Context& ctx,
                       ConstTensorView tokens_T,
                       const ops::ParamStorage& w_VH,
                       ops::VocabShard shard,
                       TensorView y_TH) {
  with_storage_type(y_TH.dtype, [&]<typename T>(T) {
    launch(embedding_forward_kernel<T>,
           blocks_of(tokens_T.num_elements(), 1),
           kTokenThreads,
           0,
           stream_of(ctx),
           data_of<std::int32_t>(tokens_T),
           data_of<T>(ConstTensorView(w_VH.row_major())),
           shard,
           y_TH.shape[1],
           data_of<T>(y_TH));
  });
}

void embedding_backward(Context& ctx,
                        ConstTensorView dy_TH,
                        ConstTensorView tokens_T,
                        ops::VocabShard shard,
                        const ops::ParamStorage& dw_VH) {
  with_storage_type(dy_TH.dtype, [&]<typename T>(T) {
    const Index num_tokens = tokens_T.num_elements();
    launch(embedding_backward_kernel<T>,
           blocks_of(num_tokens, 1),
           kTokenThreads,
           0,
           stream_of(ctx),
           data_of<T>(dy_TH),
           data_of<std::int32_t>(tokens_T),
           num_tokens,
           shard,
           dy_TH.shape[1],
           data_of<MathOf<T>>(dw_VH.row_major()));
  });
}

}  // namespace pecan::kernels
