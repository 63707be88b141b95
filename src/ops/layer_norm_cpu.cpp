#include <algorithm>
#include <cmath>

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
    const M* w = w_H.as<M>().data();
    const M* b = b_H.as<M>().data();
    M* means = mean_T.as<M>().data();
    M* rstds = rstd_T.as<M>().data();
    parallel_for(ctx, rstd_T.num_elements(), x_TH.num_elements(), [&](std::int64_t t) {
      const T* x = x_TH.as<T>().data() + t * width;
      T* y = y_TH.as<T>().data() + t * width;
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t h = 0; h < width; ++h) sum += double(x[h]);
      // Deviations are taken from the rounded mean, which is what the backward will see.
      const M mean = M(sum / double(width));
      double squares = 0;
#pragma omp simd reduction(+ : squares)
      for (std::int64_t h = 0; h < width; ++h) {
        const double deviation = double(x[h]) - double(mean);
        squares += deviation * deviation;
      }
      const M r = M(1 / std::sqrt(squares / double(width) + eps));
      means[t] = mean;
      rstds[t] = r;
#pragma omp simd
      for (std::int64_t h = 0; h < width; ++h) y[h] = T((M(x[h]) - mean) * r * w[h] + b[h]);
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
    constexpr std::int64_t kStrip = 64;
    const std::int64_t width = w_H.num_elements();
    const std::int64_t rows = rstd_T.num_elements();
    const T* dy = dy_TH.as<T>().data();
    const T* x = x_TH.as<T>().data();
    const M* w = w_H.as<M>().data();
    const M* means = mean_T.as<M>().data();
    const M* rstds = rstd_T.as<M>().data();
    T* dx = dx_TH.as<T>().data();
    M* dw = dw_H.as<M>().data();
    M* db = db_H.as<M>().data();
    // dw and db come first, as dx may take dy's place.
    parallel_for(ctx, (width + kStrip - 1) / kStrip, rows * width, [&](std::int64_t strip) {
      const std::int64_t begin = strip * kStrip;
      const std::int64_t count = std::min(kStrip, width - begin);
      double weight_sums[kStrip] = {}, bias_sums[kStrip] = {};
      for (std::int64_t t = 0; t < rows; ++t) {
        const T* dy_row = dy + t * width + begin;
        const T* x_row = x + t * width + begin;
        const M mean = means[t];
        const M r = rstds[t];
#pragma omp simd
        for (std::int64_t h = 0; h < count; ++h) {
          weight_sums[h] += double(M(dy_row[h]) * ((M(x_row[h]) - mean) * r));
          bias_sums[h] += double(dy_row[h]);
        }
      }
      for (std::int64_t h = 0; h < count; ++h) {
        dw[begin + h] += M(weight_sums[h]);
        db[begin + h] += M(bias_sums[h]);
      }
    });
    parallel_for(ctx, rows, rows * width, [&](std::int64_t t) {
      const T* dy_row = dy + t * width;
      const T* x_row = x + t * width;
      T* dx_row = dx + t * width;
      const M mean = means[t];
      const M r = rstds[t];
      double sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
      for (std::int64_t h = 0; h < width; ++h) {
        const double g = double(M(dy_row[h]) * w[h]);
        sum += g;
        dot += g * (double(x_row[h]) - double(mean));
      }
      const M shift = M(sum / double(width));
      const M along = M(dot / double(width) * double(r) * double(r));
      if (accumulate == Accumulate::kAdd) {
#pragma omp simd
        for (std::int64_t h = 0; h < width; ++h) {
          dx_row[h] =
              T(M(dx_row[h]) + r * (M(dy_row[h]) * w[h] - shift - (M(x_row[h]) - mean) * along));
        }
      } else {
#pragma omp simd
        for (std::int64_t h = 0; h < width; ++h) {
          dx_row[h] = T(r * (M(dy_row[h]) * w[h] - shift - (M(x_row[h]) - mean) * along));
        }
      }
    });
  });
}

}  // namespace pecan::ops::cpu
