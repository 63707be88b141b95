#include "kernels/bias.cuh"
#include "kernels/operators.hpp"

namespace pecan::kernels {

void add_bias(Context& ctx, ConstTensorView b_O, TensorView y_TO) {
  with_storage_type(y_TO.dtype, [&]<typename T>(T) {
    const auto add = [&]<typename B>(B) {
      launch(add_bias_kernel<T, B>,
             blocks_of(y_TO.shape[0], 1),
             kRowBlock,
             0,
             stream_of(ctx),
             data_of<B>(b_O),
             y_TO.shape[1],
             data_of<T>(y_TO));
    };
    if (b_O.dtype == y_TO.dtype) {
      add(T{});
    } else {
      add(MathOf<T>{});
    }
  });
}

void bias_backward(Context& ctx, ConstTensorView dy_TO, TensorView db_O) {
  with_storage_type(dy_TO.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const Index rows = dy_TO.shape[0], width = dy_TO.shape[1];
    const Parts parts(rows);
    Scratch scratch(ctx);
    M* db_parts = scratch.take<M>(parts.count * width);
    launch(bias_backward_kernel<T>,
           dim3(blocks_of(width, kRowBlock), unsigned(parts.count)),
           kRowBlock,
           0,
           stream_of(ctx),
           data_of<T>(dy_TO),
           rows,
           parts.rows_each,
           width,
           db_parts);
    add_parts(ctx, db_parts, parts.count, width, data_of<M>(db_O));
  });
}

}  // namespace pecan::kernels
