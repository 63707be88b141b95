#include <algorithm>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {

void rms_norm_forward(Context& ctx,
                      ConstTensorView x_TH,
                      ConstTensorView w_H,
                      double eps,
                      TensorView y_TH,
                      TensorView rstd_T) {
  with_storage_type(x_TH.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const std::int64_t width = w_H.num_elements();
    const auto* x = stored<T>(x_TH);
    const M* w = w_H.as<M>().data();
    auto* y = stored<T>(y_TH);
    M* rstd = rstd_T.as<M>().data();
    parallel_for(ctx, rstd_T.num_elements(), x_TH.num_elements(), [&](std::int64_t t) {
      rstd[t] = kernels_of<T>().rms_norm(x + t * width, w, eps, y + t * width, width);
    });
  });
}

void rms_norm_backward(Context& ctx,
                       ConstTensorView dy_TH,
                       ConstTensorView x_TH,
                       ConstTensorView w_H,
                       ConstTensorView rstd_T,
                       TensorView dx_TH,
                       Accumulate accumulate,
                       TensorView dw_H) {
  with_storage_type(x_TH.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const std::int64_t width = w_H.num_elements();
    const std::int64_t rows = rstd_T.num_elements();
    const auto* dy = stored<T>(dy_TH);
    const auto* x = stored<T>(x_TH);
    const M* w = w_H.as<M>().data();
    const M* rstd = rstd_T.as<M>().data();
    auto* dx = stored<T>(dx_TH);
    M* dw = dw_H.as<M>().data();
    // dw comes first, as dx may take dy's place.
    for_each_column_strip(ctx, width, rows, [&](std::int64_t begin, std::int64_t count) {
      double sums[detail::kSumColumns] = {};
      kernels_of<T>().rms_norm_columns(dy + begin, x + begin, rstd, rows, width, count, sums);
      for (std::int64_t h = 0; h < count; ++h) dw[begin + h] += M(sums[h]);
    });
    parallel_for(ctx, rows, rows * width, [&](std::int64_t t) {
      kernels_of<T>().rms_norm_backward(dy + t * width,
                                        x + t * width,
                                        w,
                                        rstd[t],
                                        accumulate == Accumulate::kAdd,
                                        dx + t * width,
                                        width);
    });
  });
}

}  // namespace pecan::ops::cpu
