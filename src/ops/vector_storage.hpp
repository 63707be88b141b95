#pragma once
/// Inner loops over tensors as they are stored, per storage type; part of vector_kernels.hpp.

#include <cstdint>

namespace pecan::ops::detail {

/// A bf16 as these loops see it.
using Bf16Bits = std::uint16_t;

/// What a stored T is computed with.
template <typename T>
struct WideOf {
  using Type = T;
};
template <>
struct WideOf<Bf16Bits> {
  using Type = float;
};

/// Columns that are summed together over rows.
inline constexpr std::int64_t kSumColumns = 64;

/// The largest of a row of logits and the sum of exp(logit - largest).
struct ExpSum {
  double largest;
  double sum;
};

/// Loops over n elements of storage type T; M is what they are computed with, and results are
/// rounded once. An output may be an input where both are of type T.
template <typename T, typename M = typename WideOf<T>::Type>
struct StorageKernels {
  void (*widen)(const T* x, M* y, std::int64_t n);
  void (*narrow)(const M* x, T* y, std::int64_t n);
  /// y = a + b.
  void (*add)(const T* a, const T* b, T* y, std::int64_t n);
  /// y += alpha * x.
  void (*axpy)(M alpha, const T* x, T* y, std::int64_t n);
  void (*axpy_wide)(M alpha, const M* x, T* y, std::int64_t n);
  /// y *= alpha.
  void (*scale)(M alpha, T* y, std::int64_t n);
  /// y += b in the wide type; b may be stored wide.
  void (*add_wide)(const M* b, T* y, std::int64_t n);
  /// Sum of a wide array and a stored one in the wide one: y += x.
  void (*accumulate)(const T* x, M* y, std::int64_t n);
  double (*sum)(const T* x, std::int64_t n);
  double (*sum_of_squares)(const T* x, std::int64_t n);
  std::int64_t (*count_non_finite)(const T* x, std::int64_t n);
  /// sums[c] += the elements of column c < columns <= kSumColumns, in ascending order of rows.
  void (*add_columns)(
      const T* x, std::int64_t rows, std::int64_t row_stride, std::int64_t columns, double* sums);

  /// Rotates the halves of each of `heads` rows of `dim` by the angles of the cosines and sines,
  /// dim / 2 each; sign -1 rotates back.
  void (*rotate)(
      M sign, const M* cosines, const M* sines, std::int64_t heads, std::int64_t dim, T* x);

  /// y = [y +] sum over i < k of weights[i] * row positions[i] of `rows`; positions below 0 are
  /// left out, weights == nullptr means 1.
  void (*sum_rows)(const T* rows,
                   const std::int32_t* positions,
                   const M* weights,
                   std::int64_t k,
                   bool add_to_y,
                   T* y,
                   std::int64_t n);
  /// y = weight * a; returns the dot product of a and b.
  double (*dot_and_scale)(M weight, const T* a, const T* b, T* y, std::int64_t n);

  /// h = silu(gate) * up.
  void (*swiglu)(const T* gate, const T* up, T* h, std::int64_t n);
  void (*swiglu_backward)(
      const T* dh, const T* gate, const T* up, T* dgate, T* dup, std::int64_t n);
  /// h = gelu(x) in the tanh form.
  void (*gelu)(const T* x, T* h, std::int64_t n);
  void (*gelu_backward)(const T* dh, const T* x, T* dx, std::int64_t n);

  /// y = x * r * w of one row; returns r = 1 / sqrt(mean of squares + eps).
  M (*rms_norm)(const T* x, const M* w, double eps, T* y, std::int64_t n);
  /// dx [+]= the gradient of one row.
  void (*rms_norm_backward)(
      const T* dy, const T* x, const M* w, M rstd, bool add_to_dx, T* dx, std::int64_t n);
  /// sums[c] += dy * x * rstd of column c < columns <= kSumColumns, over rows in ascending order.
  void (*rms_norm_columns)(const T* dy,
                           const T* x,
                           const M* rstd,
                           std::int64_t rows,
                           std::int64_t row_stride,
                           std::int64_t columns,
                           double* sums);
  /// As rms_norm, about the mean, which it writes, and with a bias.
  M (*layer_norm)(const T* x, const M* w, const M* b, double eps, T* y, M* mean, std::int64_t n);
  void (*layer_norm_backward)(
      const T* dy, const T* x, const M* w, M mean, M rstd, bool add_to_dx, T* dx, std::int64_t n);
  void (*layer_norm_columns)(const T* dy,
                             const T* x,
                             const M* mean,
                             const M* rstd,
                             std::int64_t rows,
                             std::int64_t row_stride,
                             std::int64_t columns,
                             double* weight_sums,
                             double* bias_sums);

  /// -inf of none; may pass over NaNs.
  double (*largest)(const T* row, std::int64_t n);
  /// Largest and sum of a row. NaN logits make the sum NaN.
  ExpSum (*exp_sum)(const T* row, std::int64_t n);
  /// The sum of exp(logit - largest).
  double (*exp_sum_below)(const T* row, std::int64_t n, double largest);
  /// Replaces a row by scale * (exp(logit - largest) / sum - [is label]); a label outside [0, n) is
  /// in another row.
  void (*softmax_gradient)(T* row, std::int64_t n, std::int64_t label, ExpSum known, double scale);
  /// exp_sum and softmax_gradient of one row at once.
  ExpSum (*softmax_and_gradient)(T* row, std::int64_t n, std::int64_t label, double scale);
};

/// Constants of one AdamW update, see vector_exact.inl.
template <typename T>
struct AdamWFactors {
  T grad_scale, keep, beta1, beta2, rest1, rest2, step, eps;
};

/// Loops that give the same bits in every instruction set: no products are fused with sums.
struct ExactKernels {
  /// Updates p, m and v by g; bf16, unless nullptr, receives p rounded.
  void (*adamw_f32)(const AdamWFactors<float>& factors,
                    const float* g,
                    float* p,
                    float* m,
                    float* v,
                    Bf16Bits* bf16,
                    std::int64_t n);
  void (*adamw_f64)(const AdamWFactors<double>& factors,
                    const double* g,
                    double* p,
                    double* m,
                    double* v,
                    std::int64_t n);
};

}  // namespace pecan::ops::detail
