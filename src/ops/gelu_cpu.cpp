#include "ops/backends.hpp"
#include "ops/cpu.hpp"
#include "ops/vector_kernels.hpp"

namespace pecan::ops::cpu {

void gelu_forward(Context& ctx, ConstTensorView x_TF, TensorView h_TF) {
  with_storage_type(x_TF.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const auto& kernels = detail::vector_kernels<M>();
    const T* x = x_TF.as<T>().data();
    T* h = h_TF.as<T>().data();
    parallel_ranges(ctx, x_TF.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      if constexpr (std::is_same_v<T, M>) {
        kernels.gelu(x + begin, h + begin, end - begin);
      } else {
        for_each_piece(begin, end, [&](std::int64_t at, std::int64_t count) {
          M wide[kWidePiece] = {};
          convert(x + at, count, wide);
          kernels.gelu(wide, wide, count);
          convert(wide, count, h + at);
        });
      }
    });
  });
}

void gelu_backward(Context& ctx, ConstTensorView dh_TF, ConstTensorView x_TF, TensorView dx_TF) {
  with_storage_type(x_TF.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const auto& kernels = detail::vector_kernels<M>();
    const T* dh = dh_TF.as<T>().data();
    const T* x = x_TF.as<T>().data();
    T* dx = dx_TF.as<T>().data();
    parallel_ranges(ctx, x_TF.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      if constexpr (std::is_same_v<T, M>) {
        kernels.gelu_backward(dh + begin, x + begin, dx + begin, end - begin);
      } else {
        for_each_piece(begin, end, [&](std::int64_t at, std::int64_t count) {
          M wide_dh[kWidePiece] = {}, wide_x[kWidePiece] = {};
          convert(dh + at, count, wide_dh);
          convert(x + at, count, wide_x);
          kernels.gelu_backward(wide_dh, wide_x, wide_x, count);
          convert(wide_x, count, dx + at);
        });
      }
    });
  });
}

}  // namespace pecan::ops::cpu
