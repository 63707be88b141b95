#include <algorithm>
#include <utility>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {

void permute_plan(Context& /*ctx*/,
                  ConstTensorView topk_ids_TK,
                  TensorView counts_E,
                  TensorView order_P,
                  TensorView positions_TK) {
  const auto ids = topk_ids_TK.as<std::int32_t>();
  const auto counts = counts_E.as<std::int64_t>();
  const auto order = order_P.as<std::int32_t>();
  const auto positions = positions_TK.as<std::int32_t>();
  std::ranges::fill(counts, 0);
  for (const std::int32_t id : ids) {
    if (id >= 0) ++counts[std::size_t(id)];
  }
  // A counting sort; counts serve as the next free position of each expert meanwhile.
  std::int64_t start = 0;
  for (std::int64_t& count : counts) start += std::exchange(count, start);
  std::int64_t dropped = start;
  for (std::size_t slot = 0; slot < ids.size(); ++slot) {
    if (ids[slot] < 0) {
      order[std::size_t(dropped++)] = std::int32_t(slot);
      positions[slot] = -1;
      continue;
    }
    const std::int64_t position = counts[std::size_t(ids[slot])]++;
    order[std::size_t(position)] = std::int32_t(slot);
    positions[slot] = std::int32_t(position);
  }
  std::int64_t previous_end = 0;
  for (std::int64_t& end : counts) {
    const std::int64_t count = end - previous_end;
    previous_end = std::exchange(end, count);
  }
}

void permute_forward(Context& ctx,
                     ConstTensorView x_TH,
                     ConstTensorView order_P,
                     TensorView rows_PH) {
  const std::int64_t rows = rows_PH.shape[0];
  if (rows == 0) return;
  const std::int64_t k = order_P.num_elements() / x_TH.shape[0];
  const std::size_t row_bytes = x_TH.num_bytes() / std::size_t(x_TH.shape[0]);
  const std::int32_t* order = order_P.as<std::int32_t>().data();
  parallel_for(ctx, rows, rows_PH.num_elements(), [&](std::int64_t p) {
    std::copy_n(x_TH.data + std::size_t(order[p] / k) * row_bytes,
                row_bytes,
                rows_PH.data + std::size_t(p) * row_bytes);
  });
}

void permute_backward(Context& ctx,
                      ConstTensorView drows_PH,
                      ConstTensorView positions_TK,
                      TensorView dx_TH,
                      Accumulate accumulate) {
  with_storage_type(dx_TH.dtype, [&]<typename T>(T) {
    const std::int64_t width = dx_TH.shape[1];
    const std::int64_t k = positions_TK.shape[1];
    const std::int32_t* positions = positions_TK.as<std::int32_t>().data();
    const auto* drows = stored<T>(drows_PH);
    auto* dx = stored<T>(dx_TH);
    parallel_for(ctx, dx_TH.shape[0], drows_PH.num_elements(), [&](std::int64_t t) {
      kernels_of<T>().sum_rows(drows,
                               positions + t * k,
                               nullptr,
                               k,
                               accumulate == Accumulate::kAdd,
                               dx + t * width,
                               width);
    });
  });
}

void unpermute_forward(Context& ctx,
                       ConstTensorView rows_PH,
                       ConstTensorView positions_TK,
                       ConstTensorView weights_TK,
                       TensorView y_TH,
                       Accumulate accumulate) {
  with_storage_type(y_TH.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const std::int64_t width = y_TH.shape[1];
    const std::int64_t k = positions_TK.shape[1];
    const std::int32_t* positions = positions_TK.as<std::int32_t>().data();
    const M* weights = weights_TK.as<M>().data();
    const auto* rows = stored<T>(rows_PH);
    auto* y = stored<T>(y_TH);
    parallel_for(ctx, y_TH.shape[0], rows_PH.num_elements(), [&](std::int64_t t) {
      kernels_of<T>().sum_rows(rows,
                               positions + t * k,
                               weights + t * k,
                               k,
                               accumulate == Accumulate::kAdd,
                               y + t * width,
                               width);
    });
  });
}

void unpermute_backward(Context& ctx,
                        ConstTensorView dy_TH,
                        ConstTensorView rows_PH,
                        ConstTensorView positions_TK,
                        ConstTensorView weights_TK,
                        TensorView drows_PH,
                        TensorView dweights_TK) {
  with_storage_type(dy_TH.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const std::int64_t width = dy_TH.shape[1];
    const std::int64_t k = positions_TK.shape[1];
    const std::int32_t* positions = positions_TK.as<std::int32_t>().data();
    const M* weights = weights_TK.as<M>().data();
    M* dweights = dweights_TK.as<M>().data();
    const auto* dy = stored<T>(dy_TH);
    const auto* rows = stored<T>(rows_PH);
    auto* drows = stored<T>(drows_PH);
    parallel_for(ctx, dy_TH.shape[0], 2 * rows_PH.num_elements(), [&](std::int64_t t) {
      for (std::int64_t i = 0; i < k; ++i) {
        if (positions[t * k + i] < 0) {
          dweights[t * k + i] = 0;
          continue;
        }
        const std::int64_t offset = positions[t * k + i] * width;
        dweights[t * k + i] = M(kernels_of<T>().dot_and_scale(
            weights[t * k + i], dy + t * width, rows + offset, drows + offset, width));
      }
    });
  });
}

}  // namespace pecan::ops::cpu
