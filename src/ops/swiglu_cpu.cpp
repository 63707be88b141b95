#include "ops/backends.hpp"
#include "ops/cpu.hpp"
#include "ops/vector_kernels.hpp"

namespace pecan::ops::cpu {

void swiglu_forward(Context& ctx, ConstTensorView gate_TF, ConstTensorView up_TF, TensorView h_TF) {
  with_storage_type(gate_TF.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const auto& kernels = detail::vector_kernels<M>();
    const T* gate = gate_TF.as<T>().data();
    const T* up = up_TF.as<T>().data();
    T* h = h_TF.as<T>().data();
    parallel_ranges(ctx, gate_TF.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      if constexpr (std::is_same_v<T, M>) {
        kernels.swiglu(gate + begin, up + begin, h + begin, end - begin);
      } else {
        for_each_piece(begin, end, [&](std::int64_t at, std::int64_t count) {
          M wide_gate[kWidePiece] = {}, wide_up[kWidePiece] = {};
          convert(gate + at, count, wide_gate);
          convert(up + at, count, wide_up);
          kernels.swiglu(wide_gate, wide_up, wide_gate, count);
          convert(wide_gate, count, h + at);
        });
      }
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
    using M = MathOf<T>;
    const auto& kernels = detail::vector_kernels<M>();
    const T* dh = dh_TF.as<T>().data();
    const T* gate = gate_TF.as<T>().data();
    const T* up = up_TF.as<T>().data();
    T* dgate = dgate_TF.as<T>().data();
    T* dup = dup_TF.as<T>().data();
    parallel_ranges(ctx, gate_TF.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      if constexpr (std::is_same_v<T, M>) {
        kernels.swiglu_backward(
            dh + begin, gate + begin, up + begin, dgate + begin, dup + begin, end - begin);
      } else {
        for_each_piece(begin, end, [&](std::int64_t at, std::int64_t count) {
          M wide_dh[kWidePiece] = {}, wide_gate[kWidePiece] = {}, wide_up[kWidePiece] = {};
          convert(dh + at, count, wide_dh);
          convert(gate + at, count, wide_gate);
          convert(up + at, count, wide_up);
          kernels.swiglu_backward(wide_dh, wide_gate, wide_up, wide_gate, wide_up, count);
          convert(wide_gate, count, dgate + at);
          convert(wide_up, count, dup + at);
        });
      }
    });
  });
}

}  // namespace pecan::ops::cpu
