#include <algorithm>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {
namespace {

template <typename T, typename B>
void add_bias_as(Context& ctx, const ConstTensorView& b_O, const TensorView& y_TO) {
  using M = MathOf<T>;
  const std::int64_t width = y_TO.shape[1];
  const B* b = b_O.as<B>().data();
  parallel_for(ctx, y_TO.shape[0], y_TO.num_elements(), [&](std::int64_t t) {
    T* y = y_TO.as<T>().data() + t * width;
#pragma omp simd
    for (std::int64_t o = 0; o < width; ++o) y[o] = T(M(y[o]) + M(b[o]));
  });
}

}  // namespace

void add_bias(Context& ctx, ConstTensorView b_O, TensorView y_TO) {
  with_storage_type(y_TO.dtype, [&]<typename T>(T) {
    if (b_O.dtype == y_TO.dtype) {
      add_bias_as<T, T>(ctx, b_O, y_TO);
    } else {
      add_bias_as<T, MathOf<T>>(ctx, b_O, y_TO);
    }
  });
}

void bias_backward(Context& ctx, ConstTensorView dy_TO, TensorView db_O) {
  with_storage_type(dy_TO.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    constexpr std::int64_t kStrip = 64;
    const std::int64_t rows = dy_TO.shape[0];
    const std::int64_t width = dy_TO.shape[1];
    const T* dy = dy_TO.as<T>().data();
    M* db = db_O.as<M>().data();
    parallel_for(ctx, (width + kStrip - 1) / kStrip, rows * width, [&](std::int64_t strip) {
      const std::int64_t begin = strip * kStrip;
      const std::int64_t count = std::min(kStrip, width - begin);
      double sums[kStrip] = {};
      for (std::int64_t t = 0; t < rows; ++t) {
        const T* row = dy + t * width + begin;
#pragma omp simd
        for (std::int64_t o = 0; o < count; ++o) sums[o] += double(row[o]);
      }
      for (std::int64_t o = 0; o < count; ++o) db[begin + o] += M(sums[o]);
    });
  });
}

}  // namespace pecan::ops::cpu
