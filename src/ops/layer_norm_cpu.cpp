#include <algorithm>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {

void layer_norm_forward(Context& ctx,
                        ConstTensorView x_TH,
                        ConstTensorView w_H,
                        ConstTensorView b_H,
                        double eps,
                        TensorView y_TH,
                        TensorView mean_T,
                        TensorView rstd_T) {
  with_storage_type(x_TH.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const std::int64_t width = w_H.num_elements();
    const auto* x = stored<T>(x_TH);
    const M* w = w_H.as<M>().data();
    const M* b = b_H.as<M>().data();
    auto* y = stored<T>(y_TH);
    M* means = mean_T.as<M>().data();
    M* rstds = rstd_T.as<M>().data();
    parallel_for(ctx, rstd_T.num_elements(), x_TH.num_elements(), [&](std::int64_t t) {
      rstds[t] =
          kernels_of<T>().layer_norm(x + t * width, w, b, eps, y + t * width, means + t, width);
    });
  });
}

void layer_norm_backward(Context& ctx,
                         ConstTensorView dy_TH,
                         ConstTensorView x_TH,
                         ConstTensorView w_H,
                         ConstTensorView mean_T,
                         ConstTensorView rstd_T,
                         TensorView dx_TH,
                         Accumulate accumulate,
                         TensorView dw_H,
                         TensorView db_H) {
  with_storage_type(x_TH.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const std::int64_t width = w_H.num_elements();
    const std::int64_t rows = rstd_T.num_elements();
    const auto* dy = stored<T>(dy_TH);
    const auto* x = stored<T>(x_TH);
    const M* w = w_H.as<M>().data();
    const M* means = mean_T.as<M>().data();
    const M* rstds = rstd_T.as<M>().data();
    auto* dx = stored<T>(dx_TH);
    M* dw = dw_H.as<M>().data();
    M* db = db_H.as<M>().data();
    // dw and db come first, as dx may take dy's place.
    for_each_column_strip(ctx, width, rows, [&](std::int64_t begin, std::int64_t count) {
      double weight_sums[detail::kSumColumns] = {}, bias_sums[detail::kSumColumns] = {};
      kernels_of<T>().layer_norm_columns(
          dy + begin, x + begin, means, rstds, rows, width, count, weight_sums, bias_sums);
      for (std::int64_t h = 0; h < count; ++h) {
        dw[begin + h] += M(weight_sums[h]);
        db[begin + h] += M(bias_sums[h]);
      }
    });
    parallel_for(ctx, rows, rows * width, [&](std::int64_t t) {
      kernels_of<T>().layer_norm_backward(dy + t * width,
                                          x + t * width,
                                          w,
                                          means[t],
                                          rstds[t],
                                          accumulate == Accumulate::kAdd,
                                          dx + t * width,
                                          width);
    });
  });
}

}  // namespace pecan::ops::cpu
