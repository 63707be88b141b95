/// Norms of StorageKernels; part of vector_kernels.inl.

#include "ops/vector_bf16.inl"

namespace pecan::ops::detail {
namespace {

template <typename T, typename M = Wide<T>>
M rms_norm(const T* x, const M* w, double eps, T* y, std::int64_t n) {
  const M r = M(1 / __builtin_sqrt(sum_of_squares(x, n) / double(n) + eps));
#pragma omp simd
  for (std::int64_t h = 0; h < n; ++h) put(y[h], wide(x[h]) * r * w[h]);
  return r;
}

template <typename T, typename M = Wide<T>>
void rms_norm_backward(
    const T* dy, const T* x, const M* w, M r, bool add_to_dx, T* dx, std::int64_t n) {
  double dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t h = 0; h < n; ++h) dot += double(wide(dy[h]) * w[h]) * double(wide(x[h]));
  const M along = M(dot / double(n) * double(r) * double(r));
  if (add_to_dx) {
#pragma omp simd
    for (std::int64_t h = 0; h < n; ++h)
      put(dx[h], wide(dx[h]) + r * (wide(dy[h]) * w[h] - wide(x[h]) * along));
  } else {
#pragma omp simd
    for (std::int64_t h = 0; h < n; ++h) put(dx[h], r * (wide(dy[h]) * w[h] - wide(x[h]) * along));
  }
}

template <typename T, typename M = Wide<T>>
inline void rms_norm_columns_of(const T* dy,
                                const T* x,
                                const M* rstd,
                                std::int64_t rows,
                                std::int64_t row_stride,
                                std::int64_t columns,
                                double* sums) {
  double local[kSumColumns] = {};
  for (std::int64_t t = 0; t < rows; ++t) {
    const T* dy_row = dy + t * row_stride;
    const T* x_row = x + t * row_stride;
    const M r = rstd[t];
#pragma omp simd
    for (std::int64_t c = 0; c < columns; ++c)
      local[c] += double(wide(dy_row[c]) * (wide(x_row[c]) * r));
  }
  for (std::int64_t c = 0; c < columns; ++c) sums[c] += local[c];
}

template <typename T, typename M = Wide<T>>
void rms_norm_columns(const T* dy,
                      const T* x,
                      const M* rstd,
                      std::int64_t rows,
                      std::int64_t row_stride,
                      std::int64_t columns,
                      double* sums) {
  if (columns == kSumColumns)
    return rms_norm_columns_of(dy, x, rstd, rows, row_stride, kSumColumns, sums);
  rms_norm_columns_of(dy, x, rstd, rows, row_stride, columns, sums);
}

template <typename T, typename M = Wide<T>>
M layer_norm(const T* x, const M* w, const M* b, double eps, T* y, M* mean_out, std::int64_t n) {
  // Deviations are taken from the rounded mean, which is what the backward will see.
  const M mean = M(sum_of(x, n) / double(n));
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t h = 0; h < n; ++h) {
    const double deviation = double(wide(x[h])) - double(mean);
    squares += deviation * deviation;
  }
  const M r = M(1 / __builtin_sqrt(squares / double(n) + eps));
#pragma omp simd
  for (std::int64_t h = 0; h < n; ++h) put(y[h], (wide(x[h]) - mean) * r * w[h] + b[h]);
  *mean_out = mean;
  return r;
}

template <typename T, typename M = Wide<T>>
void layer_norm_backward(
    const T* dy, const T* x, const M* w, M mean, M r, bool add_to_dx, T* dx, std::int64_t n) {
  double sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (std::int64_t h = 0; h < n; ++h) {
    const double g = double(wide(dy[h]) * w[h]);
    sum += g;
    dot += g * (double(wide(x[h])) - double(mean));
  }
  const M shift = M(sum / double(n));
  const M along = M(dot / double(n) * double(r) * double(r));
  if (add_to_dx) {
#pragma omp simd
    for (std::int64_t h = 0; h < n; ++h)
      put(dx[h], wide(dx[h]) + r * (wide(dy[h]) * w[h] - shift - (wide(x[h]) - mean) * along));
  } else {
#pragma omp simd
    for (std::int64_t h = 0; h < n; ++h)
      put(dx[h], r * (wide(dy[h]) * w[h] - shift - (wide(x[h]) - mean) * along));
  }
}

template <typename T, typename M = Wide<T>>
inline void layer_norm_columns_of(const T* dy,
                                  const T* x,
                                  const M* mean,
                                  const M* rstd,
                                  std::int64_t rows,
                                  std::int64_t row_stride,
                                  std::int64_t columns,
                                  double* weight_sums,
                                  double* bias_sums) {
  double weights[kSumColumns] = {}, biases[kSumColumns] = {};
  for (std::int64_t t = 0; t < rows; ++t) {
    const T* dy_row = dy + t * row_stride;
    const T* x_row = x + t * row_stride;
    const M m = mean[t];
    const M r = rstd[t];
#pragma omp simd
    for (std::int64_t c = 0; c < columns; ++c) {
      weights[c] += double(wide(dy_row[c]) * ((wide(x_row[c]) - m) * r));
      biases[c] += double(wide(dy_row[c]));
    }
  }
  for (std::int64_t c = 0; c < columns; ++c) {
    weight_sums[c] += weights[c];
    bias_sums[c] += biases[c];
  }
}

template <typename T, typename M = Wide<T>>
void layer_norm_columns(const T* dy,
                        const T* x,
                        const M* mean,
                        const M* rstd,
                        std::int64_t rows,
                        std::int64_t row_stride,
                        std::int64_t columns,
                        double* weight_sums,
                        double* bias_sums) {
  if (columns == kSumColumns)
    return layer_norm_columns_of(
        dy, x, mean, rstd, rows, row_stride, kSumColumns, weight_sums, bias_sums);
  layer_norm_columns_of(dy, x, mean, rstd, rows, row_stride, columns, weight_sums, bias_sums);
}

}  // namespace
}  // namespace pecan::ops::detail
