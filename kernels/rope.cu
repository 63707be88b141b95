#include "kernels/operators.hpp"
#include "kernels/rope.cuh"

namespace pecan::kernels {
namespace {

void rotate(const Context& ctx,
            const ConstTensorView& table_SD,
            const ConstTensorView& positions_T,
            const TensorView& x_TND,
            int sign) {
  with_storage_type(x_TND.dtype, [&]<typename T>(T) {
    const Index pairs = x_TND.num_elements() / 2;
    launch(rotate_kernel<T>,
           blocks_of(pairs, kRopeThreads),
           kRopeThreads,
           0,
           stream_of(ctx),
           data_of<MathOf<T>>(table_SD),
           data_of<std::int32_t>(positions_T),
           table_SD.shape[0],
           pairs,
           x_TND.shape[1],
           x_TND.shape[2] / 2,
           MathOf<T>(sign),
           data_of<T>(x_TND));
  });
}

}  // namespace

void rope_forward(Context& ctx,
                  ConstTensorView table_SD,
                  ConstTensorView positions_T,
                  TensorView x_TND) {
  rotate(ctx, table_SD, positions_T, x_TND, 1);
}

void rope_backward(Context& ctx,
                   ConstTensorView table_SD,
                   ConstTensorView positions_T,
                   TensorView dx_TND) {
  rotate(ctx, table_SD, positions_T, dx_TND, -1);
}

}  // namespace pecan::kernels
