#include <algorithm>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {

void add_bias(Context& ctx, ConstTensorView b_O, TensorView y_TO) {
  with_storage_type(y_TO.dtype, [&]<typename T>(T) {
    const std::int64_t width = y_TO.shape[1];
    auto* y = stored<T>(y_TO);
    const auto add_rows = [&](auto&& add_row) {
      parallel_for(
          ctx, y_TO.shape[0], y_TO.num_elements(), [&](std::int64_t t) { add_row(y + t * width); });
    };
    if (b_O.dtype == y_TO.dtype) {
      const auto* b = stored<T>(b_O);
      add_rows([&](auto* row) { kernels_of<T>().add(row, b, row, width); });
    } else {
      const auto* b = b_O.as<MathOf<T>>().data();
      add_rows([&](auto* row) { kernels_of<T>().add_wide(b, row, width); });
    }
  });
}

void bias_backward(Context& ctx, ConstTensorView dy_TO, TensorView db_O) {
  with_storage_type(dy_TO.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const std::int64_t rows = dy_TO.shape[0];
    const std::int64_t width = dy_TO.shape[1];
    const auto* dy = stored<T>(dy_TO);
    M* db = db_O.as<M>().data();
    for_each_column_strip(ctx, width, rows, [&](std::int64_t begin, std::int64_t count) {
      double sums[detail::kSumColumns] = {};
      kernels_of<T>().add_columns(dy + begin, rows, width, count, sums);
      for (std::int64_t o = 0; o < count; ++o) db[begin + o] += M(sums[o]);
    });
  });
}

}  // namespace pecan::ops::cpu
