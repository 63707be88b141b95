#include <algorithm>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {
namespace {

/// A logical row of a stored matrix: its first element and the distance of its elements.
template <typename T>
struct Row {
  T* first;
  std::int64_t stride;
};

template <typename T>
Row<T> row_of(const ParamStorage& w_VH, std::int64_t row) {
  T* memory = reinterpret_cast<T*>(w_VH.memory());
  const std::int64_t columns = w_VH.shape()[1];
  if (w_VH.order() == device::StorageOrder::kRowMajor) return {memory + row * columns, 1};
  const std::int64_t panel = row - row % w_VH.panel_rows();
  return {memory + panel * columns + (row - panel),
          std::min(w_VH.panel_rows(), w_VH.shape()[0] - panel)};
}

}  // namespace

void embedding_forward(Context& ctx,
                       ConstTensorView tokens_T,
                       const ParamStorage& w_VH,
                       VocabShard shard,
                       TensorView y_TH) {
  with_storage_type(w_VH.dtype(), [&]<typename T>(T) {
    const std::int64_t width = w_VH.shape()[1];
    const std::int32_t* tokens = tokens_T.as<std::int32_t>().data();
    T* y = y_TH.as<T>().data();
    parallel_for(ctx, tokens_T.num_elements(), y_TH.num_elements(), [&](std::int64_t t) {
      if (!shard.holds(tokens[t])) {
        std::fill_n(y + t * width, width, T(MathOf<T>(0)));
        return;
      }
      const Row<const T> row = row_of<const T>(w_VH, tokens[t] - shard.first);
      if (row.stride == 1) {
        std::copy_n(row.first, width, y + t * width);
      } else {
        for (std::int64_t h = 0; h < width; ++h) y[t * width + h] = row.first[h * row.stride];
      }
    });
  });
}

void embedding_backward(Context& ctx,
                        ConstTensorView dy_TH,
                        ConstTensorView tokens_T,
                        VocabShard shard,
                        const ParamStorage& dw_VH) {
  with_storage_type(dy_TH.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const std::int64_t width = dw_VH.shape()[1];
    const std::int64_t num_tokens = tokens_T.num_elements();
    const std::int32_t* tokens = tokens_T.as<std::int32_t>().data();
    const T* dy = dy_TH.as<T>().data();
    const auto* stored_dy = stored<T>(dy_TH);
    // Tokens repeat, so threads share columns out, not tokens: every sum keeps its order.
    const std::int64_t strip = (width + ctx.threads - 1) / ctx.threads;
    parallel_for(ctx, ctx.threads, num_tokens * width, [&](std::int64_t part) {
      const std::int64_t begin = std::min(width, part * strip);
      const std::int64_t end = std::min(width, begin + strip);
      for (std::int64_t t = 0; t < num_tokens; ++t) {
        if (!shard.holds(tokens[t])) continue;
        const Row<M> row = row_of<M>(dw_VH, tokens[t] - shard.first);
        if (row.stride == 1) {
          kernels_of<T>().accumulate(stored_dy + t * width + begin, row.first + begin, end - begin);
        } else {
          for (std::int64_t h = begin; h < end; ++h) {
            row.first[h * row.stride] += M(dy[t * width + h]);
          }
        }
      }
    });
  });
}

}  // namespace pecan::ops::cpu
