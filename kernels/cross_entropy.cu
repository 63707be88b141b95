#include "kernels/cross_entropy.cuh"
#include "kernels/operators.hpp"

namespace pecan::kernels {

void cross_entropy_forward(Context& ctx,
                           ConstTensorView logits_TV,
                           std::int64_t vocab_size,
                           ConstTensorView labels_T,
                           ConstTensorView mask_T,
                           TensorView loss_T) {
  with_storage_type(logits_TV.dtype, [&]<typename T>(T) {
    launch(cross_entropy_kernel<T, false>,
           blocks_of(logits_TV.shape[0], 1),
           kLossThreads,
           0,
           stream_of(ctx),
           data_of<T>(logits_TV),
           vocab_size,
           logits_TV.shape[1],
           data_of<std::int32_t>(labels_T),
           data_of<T>(mask_T),
           1.0,
           data_of<double>(loss_T));
  });
}

void cross_entropy_forward_backward(Context& ctx,
                                    TensorView logits_TV,
                                    std::int64_t vocab_size,
                                    ConstTensorView labels_T,
                                    ConstTensorView mask_T,
                                    double scale,
                                    TensorView loss_T) {
  with_storage_type(logits_TV.dtype, [&]<typename T>(T) {
    launch(cross_entropy_kernel<T, true>,
           blocks_of(logits_TV.shape[0], 1),
           kLossThreads,
           0,
           stream_of(ctx),
           data_of<T>(logits_TV),
           vocab_size,
           logits_TV.shape[1],
           data_of<std::int32_t>(labels_T),
           data_of<T>(mask_T),
           scale,
           data_of<double>(loss_T));
  });
}

void cross_entropy_max(Context& ctx,
                       ConstTensorView logits_TV,
                       ops::VocabShard shard,
                       TensorView max_T) {
  with_storage_type(logits_TV.dtype, [&]<typename T>(T) {
    launch(cross_entropy_max_kernel<T>,
           blocks_of(logits_TV.shape[0], 1),
           kLossThreads,
           0,
           stream_of(ctx),
           data_of<T>(logits_TV),
           shard.count,
           logits_TV.shape[1],
           data_of<double>(max_T));
  });
}

void cross_entropy_sums(Context& ctx,
                        ConstTensorView logits_TV,
                        ops::VocabShard shard,
                        ConstTensorView labels_T,
                        ConstTensorView mask_T,
                        ConstTensorView max_T,
                        TensorView sums_2T) {
  with_storage_type(logits_TV.dtype, [&]<typename T>(T) {
    launch(cross_entropy_sums_kernel<T>,
           blocks_of(logits_TV.shape[0], 1),
           kLossThreads,
           0,
           stream_of(ctx),
           data_of<T>(logits_TV),
           shard,
           logits_TV.shape[1],
           logits_TV.shape[0],
           data_of<std::int32_t>(labels_T),
           data_of<T>(mask_T),
           data_of<double>(max_T),
           data_of<double>(sums_2T));
  });
}

void cross_entropy_from_sums(Context& ctx,
                             ConstTensorView sums_2T,
                             ConstTensorView mask_T,
                             TensorView loss_T) {
  with_storage_type(mask_T.data == nullptr ? DType::kF64 : mask_T.dtype, [&]<typename M>(M) {
    const Index tokens = loss_T.shape[0];
    launch(cross_entropy_from_sums_kernel<M>,
           blocks_of(tokens, kLossThreads),
           kLossThreads,
           0,
           stream_of(ctx),
           data_of<double>(sums_2T),
           data_of<M>(mask_T),
           tokens,
           data_of<double>(loss_T));
  });
}

void cross_entropy_backward(Context& ctx,
                            TensorView logits_TV,
                            ops::VocabShard shard,
                            ConstTensorView labels_T,
                            ConstTensorView mask_T,
                            ConstTensorView max_T,
                            ConstTensorView sums_2T,
                            double scale) {
  with_storage_type(logits_TV.dtype, [&]<typename T>(T) {
    launch(cross_entropy_backward_kernel<T>,
           blocks_of(logits_TV.shape[0], 1),
           kLossThreads,
           0,
           stream_of(ctx),
           data_of<T>(logits_TV),
           shard,
           logits_TV.shape[1],
           data_of<std::int32_t>(labels_T),
           data_of<T>(mask_T),
           data_of<double>(max_T),
           data_of<double>(sums_2T),
           scale);
  });
}

}  // namespace pecan::kernels
