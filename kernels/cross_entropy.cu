#include "kernels/cross_entropy.cuh"

#include "kernels/operators.hpp"

namespace pecan::kernels {

void cross_entropy_forward(Context& ctx,
                           ConstTensorView logits_TV,
                           std::int64_t vocab_size,
                           ConstTensorView labels_T,
                           ConstTensorView mask_T,
                           TensorView loss_T) {
  with_storage_type("cross_entropy_forward", logits_TV.dtype, [&]<typename T>(T) {
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
  with_storage_type("cross_entropy_forward_backward", logits_TV.dtype, [&]<typename T>(T) {
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
  with_storage_type("cross_entropy_max", logits_TV.dtype, [&]<typename T>(T) {
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
  with_storage_type("cross_entropy_sums", logits_TV.dtype, [&]<typename T>(T) {
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
  const auto of_mask = [&]<typename M>(M) {
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
  };
  if (mask_T.data == nullptr || mask_T.dtype == DType::kF64) return of_mask(double{});
  with_storage_type("cross_entropy_from_sums", mask_T.dtype, of_mask);
}

void cross_entropy_backward(Context& ctx,
                            TensorView logits_TV,
                            ops::VocabShard shard,
                            ConstTensorView labels_T,
                            ConstTensorView mask_T,
                            ConstTensorView max_T,
                            ConstTensorView sums_2T,
                            double scale) {
  with_storage_type("cross_entropy_backward", logits_TV.dtype, [&]<typename T>(T) {
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
