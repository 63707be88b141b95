#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {

void swiglu_forward(Context& ctx, ConstTensorView gate_TF, ConstTensorView up_TF, TensorView h_TF) {
  with_storage_type(gate_TF.dtype, [&]<typename T>(T) {
    const auto* gate = stored<T>(gate_TF);
    const auto* up = stored<T>(up_TF);
    auto* h = stored<T>(h_TF);
    parallel_ranges(ctx, gate_TF.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      kernels_of<T>().swiglu(gate + begin, up + begin, h + begin, end - begin);
    });
  });
}

void swiglu_backward(Context& ctx,
                     ConstTensorView dh_TF,
                     ConstTensorView gate_TF,
                     ConstTensorView up_TF,
                     TensorView dgate_TF,
                     TensorView dup_TF) {
  with_storage_type(gate_TF.dtype, [&]<typename T>(T) {
    const auto* dh = stored<T>(dh_TF);
    const auto* gate = stored<T>(gate_TF);
    const auto* up = stored<T>(up_TF);
    auto* dgate = stored<T>(dgate_TF);
    auto* dup = stored<T>(dup_TF);
    parallel_ranges(ctx, gate_TF.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      kernels_of<T>().swiglu_backward(
          dh + begin, gate + begin, up + begin, dgate + begin, dup + begin, end - begin);
    });
  });
}

}  // namespace pecan::ops::cpu
