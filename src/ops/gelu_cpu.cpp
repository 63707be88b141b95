#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {

void gelu_forward(Context& ctx, ConstTensorView x_TF, TensorView h_TF) {
  with_storage_type(x_TF.dtype, [&]<typename T>(T) {
    const auto* x = stored<T>(x_TF);
    auto* h = stored<T>(h_TF);
    parallel_ranges(ctx, x_TF.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      kernels_of<T>().gelu(x + begin, h + begin, end - begin);
    });
  });
}

void gelu_backward(Context& ctx, ConstTensorView dh_TF, ConstTensorView x_TF, TensorView dx_TF) {
  with_storage_type(x_TF.dtype, [&]<typename T>(T) {
    const auto* dh = stored<T>(dh_TF);
    const auto* x = stored<T>(x_TF);
    auto* dx = stored<T>(dx_TF);
    parallel_ranges(ctx, x_TF.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      kernels_of<T>().gelu_backward(dh + begin, x + begin, dx + begin, end - begin);
    });
  });
}

}  // namespace pecan::ops::cpu
