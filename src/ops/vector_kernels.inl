/// The loops of vector_kernels.hpp, compiled once per instruction set by vector_<isa>.cpp.
/// Nothing here may instantiate an inline function of a library: the linker could keep the copy of
/// a wide instruction set for callers that run without it.

#include <cmath>
#include <cstdint>

#include "ops/vector_kernels.hpp"

namespace pecan::ops::detail {
namespace {

inline double exp_of(double x) {
  return ::exp(x);
}

/// exp(x) = 2^n exp(r), |r| <= ln(2)/2, by a polynomial of degree 6 (minimax fit, relative error
/// 3e-9 before rounding). Arguments above 88 count as 88. Branch-free, so that loops over it become
/// vector code.
inline float exp_of(float x) {
  constexpr float kLog2E = 1.44269504F;
  // ln(2) in two parts; the high one has trailing zeros, so that n * high is exact.
  constexpr float kLn2High = 0.693359375F;
  constexpr float kLn2Low = -2.12194440e-4F;
  // Added and taken away again, it rounds to an integer, whose bits then stand in the low mantissa.
  constexpr float kRounder = 12582912.0F;
  x = x > 88.0F ? 88.0F : x;
  const float shifted = x * kLog2E + kRounder;
  const float n = shifted - kRounder;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float q = 0x1.6a2434p-10F;
  q = q * r + 0x1.1239e2p-7F;
  q = q * r + 0x1.5558f2p-5F;
  q = q * r + 0x1.555492p-3F;
  q = q * r + 0x1.fffffcp-2F;
  const float mantissa = q * r * r + r + 1.0F;
  const std::uint32_t exponent = __builtin_bit_cast(std::uint32_t, shifted) -
                                 __builtin_bit_cast(std::uint32_t, kRounder) + 127U;
  const float power = __builtin_bit_cast(float, exponent << 23U);
  return x < -87.0F ? 0.0F : mantissa * power;
}

template <typename T>
inline T sigmoid_of(T x) {
  return T(1) / (T(1) + exp_of(-x));
}

template <typename T>
T max_of(const T* x, std::int64_t n) {
  T largest = -T(__builtin_inff());
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

template <typename T>
double exp_sum(const T* x, T* y, std::int64_t n, T scale, T shift) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) {
    const T value = exp_of(scale * x[i] - shift);
    y[i] = value;
    sum += double(value);
  }
  return sum;
}

void multiply_tile(std::int64_t rows,
                   std::int64_t columns,
                   std::int64_t depth,
                   const double* a,
                   std::int64_t a_row,
                   std::int64_t a_column,
                   const double* b,
                   double* c,
                   std::int64_t c_row) {
  for (std::int64_t i = 0; i < rows; ++i) {
    double sums[kTileColumns] = {};
    for (std::int64_t j = 0; j < columns; ++j) sums[j] = c[i * c_row + j];
    for (std::int64_t p = 0; p < depth; ++p) {
      const double factor = a[i * a_row + p * a_column];
      for (std::int64_t j = 0; j < kTileColumns; ++j) sums[j] += factor * b[p * kTileColumns + j];
    }
    for (std::int64_t j = 0; j < columns; ++j) c[i * c_row + j] = sums[j];
  }
}

}  // namespace
}  // namespace pecan::ops::detail

#include "ops/vector_activation.inl"
#include "ops/vector_elementwise.inl"
#include "ops/vector_loss.inl"
#include "ops/vector_norm.inl"

namespace pecan::ops::detail {
namespace {

template <typename T>
constexpr VectorKernels<T> kTable{max_of<T>, exp_sum<T>};

template <typename T>
constexpr StorageKernels<T> kStorageTable{widen<T>,
                                          narrow<T>,
                                          add<T>,
                                          axpy<T, T>,
                                          axpy<T, Wide<T>>,
                                          scale_by<T>,
                                          add_wide<T>,
                                          accumulate<T>,
                                          sum_of<T>,
                                          sum_of_squares<T>,
                                          count_non_finite<T>,
                                          add_columns<T>,
                                          rotate<T>,
                                          sum_rows<T>,
                                          dot_and_scale<T>,
                                          swiglu<T>,
                                          swiglu_backward<T>,
                                          gelu<T>,
                                          gelu_backward<T>,
                                          rms_norm<T>,
                                          rms_norm_backward<T>,
                                          rms_norm_columns<T>,
                                          layer_norm<T>,
                                          layer_norm_backward<T>,
                                          layer_norm_columns<T>,
                                          row_largest<T>,
                                          row_exp_sum<T>,
                                          row_exp_sum_below<T>,
                                          softmax_gradient<T>,
                                          softmax_and_gradient};

}  // namespace

extern const IsaKernels PECAN_ISA_KERNELS;
const IsaKernels PECAN_ISA_KERNELS{kTable<float>,
                                   kTable<double>,
                                   kStorageTable<float>,
                                   kStorageTable<double>,
                                   kStorageTable<Bf16Bits>,
                                   multiply_tile};

}  // namespace pecan::ops::detail
