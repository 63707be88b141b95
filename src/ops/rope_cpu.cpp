#include <cmath>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {
namespace {

enum class Turn : std::uint8_t { kForward, kBack };

void rotate(Context& ctx,
            const ConstTensorView& table_SD,
            const ConstTensorView& positions_T,
            const TensorView& x_TND,
            Turn turn) {
  with_storage_type(x_TND.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const std::int64_t sequence = table_SD.shape[0];
    const std::int64_t heads = x_TND.shape[1];
    const std::int64_t dim = x_TND.shape[2];
    const M* table = table_SD.as<M>().data();
    const std::int32_t* positions =
        positions_T.data == nullptr ? nullptr : positions_T.as<std::int32_t>().data();
    auto* x = stored<T>(x_TND);
    const M sign = turn == Turn::kForward ? M(1) : M(-1);
    parallel_for(ctx, x_TND.shape[0], x_TND.num_elements(), [&](std::int64_t t) {
      const std::int64_t position = positions == nullptr ? t % sequence : positions[t];
      const M* cosines = table + position * dim;
      kernels_of<T>().rotate(sign, cosines, cosines + dim / 2, heads, dim, x + t * heads * dim);
    });
  });
}

}  // namespace

void rope_table(Context& /*ctx*/, double rotary_base, TensorView table_SD) {
  with_float_type(table_SD.dtype, [&]<typename T>(T) {
    const std::int64_t dim = table_SD.shape[1];
    T* table = table_SD.as<T>().data();
    for (std::int64_t s = 0; s < table_SD.shape[0]; ++s) {
      for (std::int64_t i = 0; i < dim / 2; ++i) {
        const double angle = double(s) * std::pow(rotary_base, -2.0 * double(i) / double(dim));
        table[s * dim + i] = T(std::cos(angle));
        table[s * dim + dim / 2 + i] = T(std::sin(angle));
      }
    }
  });
}

void rope_forward(Context& ctx,
                  ConstTensorView table_SD,
                  ConstTensorView positions_T,
                  TensorView x_TND) {
  rotate(ctx, table_SD, positions_T, x_TND, Turn::kForward);
}

void rope_backward(Context& ctx,
                   ConstTensorView table_SD,
                   ConstTensorView positions_T,
                   TensorView dx_TND) {
  rotate(ctx, table_SD, positions_T, dx_TND, Turn::kBack);
}

}  // namespace pecan::ops::cpu
