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

template <typename T>
void swiglu(const T* gate, const T* up, T* h, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) h[i] = gate[i] * sigmoid_of(gate[i]) * up[i];
}

template <typename T>
void swiglu_backward(const T* dh, const T* gate, const T* up, T* dgate, T* dup, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const T sigmoid = sigmoid_of(gate[i]);
    const T silu = gate[i] * sigmoid;
    const T d = dh[i];
    const T d_gate = d * up[i] * (sigmoid + silu * (T(1) - sigmoid));
    dup[i] = d * silu;
    dgate[i] = d_gate;
  }
}

/// (1 + tanh(u)) / 2 = sigmoid(2 u), where 2 u = c x (1 + a x^2) is the argument of gelu.
constexpr double kGeluC = 1.5957691216057307118;  // 2 sqrt(2/pi)
constexpr double kGeluA = 0.044715;

/// Beyond +-20 the sigmoid is 0 or 1 to rounding in both types; farther out the exponential of f64
/// and the square of x would overflow.
template <typename T>
inline T near(T x) {
  x = x > T(20) ? T(20) : x;
  return x < T(-20) ? T(-20) : x;
}

template <typename T>
void gelu(const T* x, T* h, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const T v = near(x[i]);
    h[i] = (x[i] > T(0) ? x[i] : v) * sigmoid_of(T(kGeluC) * v * (T(1) + T(kGeluA) * v * v));
  }
}

template <typename T>
void gelu_backward(const T* dh, const T* x, T* dx, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const T v = near(x[i]);
    const T square = T(kGeluA) * v * v;
    const T e = exp_of(-T(kGeluC) * v * (T(1) + square));
    const T s = T(1) / (T(1) + e);
    // e s = 1 - s, without the difference of nearly equal numbers.
    dx[i] = dh[i] * (s + v * s * (e * s) * (T(kGeluC) * (T(1) + T(3) * square)));
  }
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

template <typename T>
constexpr VectorKernels<T> kTable{
    max_of<T>, exp_sum<T>, swiglu<T>, swiglu_backward<T>, gelu<T>, gelu_backward<T>};

}  // namespace

extern const IsaKernels PECAN_ISA_KERNELS;
const IsaKernels PECAN_ISA_KERNELS{kTable<float>, kTable<double>, multiply_tile};

}  // namespace pecan::ops::detail
