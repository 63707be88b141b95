#include "kernels/gelu.cuh"
#include "kernels/operators.hpp"

namespace pecan::kernels {

void gelu_forward(Context& ctx, ConstTensorView x_TF, TensorView h_TF) {
  with_storage_type(x_TF.dtype, [&]<typename T>(T) {
    map_1(ctx, Gelu{}, x_TF.num_elements(), data_of<T>(x_TF), data_of<T>(h_TF));
  });
}

void gelu_backward(Context& ctx, ConstTensorView dh_TF, ConstTensorView x_TF, TensorView dx_TF) {
  with_storage_type(x_TF.dtype, [&]<typename T>(T) {
    map_2(ctx,
          GeluBackward{},
          x_TF.num_elements(),
          data_of<T>(dh_TF),
          data_of<T>(x_TF),
          data_of<T>(dx_TF));
  });
}

}  // namespace pecan::kernels
