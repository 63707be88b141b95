#include "kernels/operators.hpp"
#include "kernels/swiglu.cuh"

namespace pecan::kernels {

void swiglu_forward(Context& ctx, ConstTensorView gate_TF, ConstTensorView up_TF, TensorView h_TF) {
  with_storage_type(gate_TF.dtype, [&]<typename T>(T) {
    map_2(ctx,
          SwiGlu{},
          h_TF.num_elements(),
          data_of<T>(gate_TF),
          data_of<T>(up_TF),
          data_of<T>(h_TF));
  });
}

void swiglu_backward(Context& ctx,
                     ConstTensorView dh_TF,
                     ConstTensorView gate_TF,
                     ConstTensorView up_TF,
                     TensorView dgate_TF,
                     TensorView dup_TF) {
  with_storage_type(gate_TF.dtype, [&]<typename T>(T) {
    const Index count = gate_TF.num_elements();
    const T* dh = data_of<T>(dh_TF);
    const T* gate = data_of<T>(gate_TF);
    const T* up = data_of<T>(up_TF);
    T* dgate = data_of<T>(dgate_TF);
    T* dup = data_of<T>(dup_TF);
    launch(swiglu_backward_kernel<T>,
           blocks_of(count, kMapThreads * kLanes),
           kMapThreads,
           0,
           stream_of(ctx),
           count,
           are_aligned(dh, gate, up, dgate, dup),
           dh,
           gate,
           up,
           dgate,
           dup);
  });
}

}  // namespace pecan::kernels
