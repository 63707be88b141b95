/// Elementwise loops, sums, rotations and rows of StorageKernels; part of vector_kernels.inl.

#include "ops/vector_bf16.inl"

namespace pecan::ops::detail {
namespace {

template <typename T>
void widen(const T* x, Wide<T>* y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] = wide(x[i]);
}

template <typename T>
void narrow(const Wide<T>* x, T* y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) put(y[i], x[i]);
}

template <typename T>
void add(const T* a, const T* b, T* y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) put(y[i], wide(a[i]) + wide(b[i]));
}

template <typename T, typename From>
void axpy(Wide<T> alpha, const From* x, T* y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) put(y[i], wide(y[i]) + alpha * wide(x[i]));
}

template <typename T>
void scale_by(Wide<T> alpha, T* y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) put(y[i], wide(y[i]) * alpha);
}

template <typename T>
void add_wide(const Wide<T>* b, T* y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) put(y[i], wide(y[i]) + b[i]);
}

template <typename T>
void accumulate(const T* x, Wide<T>* y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] += wide(x[i]);
}

template <typename T>
double sum_of(const T* x, std::int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += double(wide(x[i]));
  return sum;
}

template <typename T>
inline double square_of(T x) {
  return double(wide(x)) * double(wide(x));
}

/// In four streams, of which a core reads more from memory at once than of one.
template <typename T>
double sum_of_squares(const T* x, std::int64_t n) {
  const std::int64_t part = n / 4;
  double a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
  for (std::int64_t i = 0; i < part; ++i) {
    a += square_of(x[i]);
    b += square_of(x[part + i]);
    c += square_of(x[2 * part + i]);
    d += square_of(x[3 * part + i]);
  }
  for (std::int64_t i = 4 * part; i < n; ++i) a += square_of(x[i]);
  return (a + b) + (c + d);
}

/// 1 if every bit of the exponent is set, which infinities and NaNs have in common.
inline std::uint32_t non_finite(float x) {
  return (__builtin_bit_cast(std::uint32_t, x) & 0x7F800000U) == 0x7F800000U ? 1U : 0U;
}
inline std::uint32_t non_finite(Bf16Bits x) {
  return non_finite(wide(x));
}
inline std::uint64_t non_finite(double x) {
  constexpr std::uint64_t kExponent = 0x7FF0000000000000U;
  return (__builtin_bit_cast(std::uint64_t, x) & kExponent) == kExponent ? 1U : 0U;
}

template <typename T>
std::int64_t count_non_finite(const T* x, std::int64_t n) {
  // Counts of pieces fit the narrow type that vectors count in.
  constexpr std::int64_t kPiece = std::int64_t(1) << 20;
  std::int64_t total = 0;
  for (std::int64_t start = 0; start < n; start += kPiece) {
    const std::int64_t end = n < start + kPiece ? n : start + kPiece;
    decltype(non_finite(T{})) count = 0;
#pragma omp simd reduction(+ : count)
    for (std::int64_t i = start; i < end; ++i) count += non_finite(x[i]);
    total += std::int64_t(count);
  }
  return total;
}

/// Calls body(begin, count) for strips of [0, n); count is a constant but for the last, so that
/// sums of a strip stay in registers.
template <typename Body>
inline void for_each_strip(std::int64_t n, Body&& body) {
  std::int64_t begin = 0;
  for (; begin + kSumColumns <= n; begin += kSumColumns) body(begin, kSumColumns);
  if (begin < n) body(begin, n - begin);
}

template <typename T>
inline void add_columns_of(
    const T* x, std::int64_t rows, std::int64_t row_stride, std::int64_t columns, double* sums) {
  double local[kSumColumns] = {};
  for (std::int64_t t = 0; t < rows; ++t) {
#pragma omp simd
    for (std::int64_t c = 0; c < columns; ++c) local[c] += double(wide(x[t * row_stride + c]));
  }
  for (std::int64_t c = 0; c < columns; ++c) sums[c] += local[c];
}

template <typename T>
void add_columns(
    const T* x, std::int64_t rows, std::int64_t row_stride, std::int64_t columns, double* sums) {
  if (columns == kSumColumns) return add_columns_of(x, rows, row_stride, kSumColumns, sums);
  add_columns_of(x, rows, row_stride, columns, sums);
}

template <typename T, typename M = Wide<T>>
void rotate(M sign, const M* cosines, const M* sines, std::int64_t heads, std::int64_t dim, T* x) {
  const std::int64_t half = dim / 2;
  for (std::int64_t head = 0; head < heads; ++head) {
    T* first = x + head * dim;
    T* second = first + half;
#pragma omp simd
    for (std::int64_t i = 0; i < half; ++i) {
      const M a = wide(first[i]);
      const M b = wide(second[i]);
      const M sine = sign * sines[i];
      put(first[i], a * cosines[i] - b * sine);
      put(second[i], b * cosines[i] + a * sine);
    }
  }
}

template <typename T, typename M = Wide<T>>
void sum_rows(const T* rows,
              const std::int32_t* positions,
              const M* weights,
              std::int64_t k,
              bool add_to_y,
              T* y,
              std::int64_t n) {
  for_each_strip(n, [&](std::int64_t begin, std::int64_t count) {
    M sums[kSumColumns] = {};
    if (add_to_y) {
#pragma omp simd
      for (std::int64_t h = 0; h < count; ++h) sums[h] = wide(y[begin + h]);
    }
    for (std::int64_t i = 0; i < k; ++i) {
      if (positions[i] < 0) continue;
      const T* row = rows + positions[i] * n + begin;
      const M weight = weights == nullptr ? M(1) : weights[i];
#pragma omp simd
      for (std::int64_t h = 0; h < count; ++h) sums[h] += weight * wide(row[h]);
    }
#pragma omp simd
    for (std::int64_t h = 0; h < count; ++h) put(y[begin + h], sums[h]);
  });
}

template <typename T>
double dot_and_scale(Wide<T> weight, const T* a, const T* b, T* y, std::int64_t n) {
  double dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t i = 0; i < n; ++i) dot += double(wide(a[i])) * double(wide(b[i]));
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) put(y[i], weight * wide(a[i]));
  return dot;
}

}  // namespace
}  // namespace pecan::ops::detail
