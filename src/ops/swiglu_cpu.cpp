#include "ops/backends.hpp"
#include "ops/cpu.hpp"
#include "ops/vector_kernels.hpp"

namespace pecan::ops::cpu {

void swiglu_forward(Context& ctx, ConstTensorView gate_TF, ConstTensorView up_TF, TensorView h_TF) {
  with_float_type(gate_TF.dtype, [&]<typename T>(T) {
    const T* gate = gate_TF.as<T>().data();
    const T* up = up_TF.as<T>().data();
    T* h = h_TF.as<T>().data();
    parallel_ranges(ctx, gate_TF.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      detail::vector_kernels<T>().swiglu(gate + begin, up + begin, h + begin, end - begin);
    });
  });
}

void swiglu_backward(Context& ctx,
                     ConstTensorView dh_TF,
                     ConstTensorView gate_TF,
                     ConstTensorView up_TF,
                     TensorView dgate_TF,
                     TensorView dup_TF) {
  with_float_type(gate_TF.dtype, [&]<typename T>(T) {
    const T* dh = dh_TF.as<T>().data();
    const T* gate = gate_TF.as<T>().data();
    const T* up = up_TF.as<T>().data();
    T* dgate = dgate_TF.as<T>().data();
    T* dup = dup_TF.as<T>().data();
    parallel_ranges(ctx, gate_TF.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      detail::vector_kernels<T>().swiglu_backward(
          dh + begin, gate + begin, up + begin, dgate + begin, dup + begin, end - begin);
    });
  });
}

}  // namespace pecan::ops::cpu
