#include "kernels/layer_norm.cuh"
#include "kernels/operators.hpp"

namespace pecan::kernels {

void layer_norm_forward(Context& ctx,
                        ConstTensorView x_TH,
                        ConstTensorView w_H,
                        ConstTensorView b_H,
                        double eps,
                        TensorView y_TH,
                        TensorView mean_T,
                        TensorView rstd_T) {
  with_storage_type(x_TH.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const Index width = w_H.num_elements(), rows = rstd_T.num_elements();
    with_row_threads(width, [&](auto threads) {
      constexpr int kRowThreads = decltype(threads)::value;
      launch(layer_norm_forward_kernel<T, kRowThreads>,
             blocks_of(rows, RowOfThread<kRowThreads>::kRows),
             kRowBlock,
             0,
             stream_of(ctx),
             data_of<T>(x_TH),
             data_of<M>(w_H),
             data_of<M>(b_H),
             M(eps),
             rows,
             width,
             data_of<T>(y_TH),
             data_of<M>(mean_T),
             data_of<M>(rstd_T));
    });
  });
}

void layer_norm_backward(Context& ctx,
                         ConstTensorView dy_TH,
                         ConstTensorView x_TH,
                         ConstTensorView w_H,
                         ConstTensorView mean_T,
                         ConstTensorView rstd_T,
                         TensorView dx_TH,
                         ops::Accumulate accumulate,
                         TensorView dw_H,
                         TensorView db_H) {
  with_storage_type(x_TH.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const Index width = w_H.num_elements(), rows = rstd_T.num_elements();
    const Parts parts(rows);
    Scratch scratch(ctx);
    M* dw_parts = scratch.take<M>(parts.count * width);
    M* db_parts = scratch.take<M>(parts.count * width);
    with_row_threads(width, [&](auto threads) {
      constexpr int kRowThreads = decltype(threads)::value;
      launch(layer_norm_backward_kernel<T, kRowThreads>,
             unsigned(parts.count),
             kRowBlock,
             2 * std::size_t(width) * RowOfThread<kRowThreads>::kRows * sizeof(M),
             stream_of(ctx),
             data_of<T>(dy_TH),
             data_of<T>(x_TH),
             data_of<M>(w_H),
             data_of<M>(mean_T),
             data_of<M>(rstd_T),
             rows,
             parts.rows_each,
             width,
             accumulate == ops::Accumulate::kAdd,
             data_of<T>(dx_TH),
             dw_parts,
             db_parts);
    });
    add_parts(ctx, dw_parts, parts.count, width, data_of<M>(dw_H));
    add_parts(ctx, db_parts, parts.count, width, data_of<M>(db_H));
  });
}

}  // namespace pecan::kernels
