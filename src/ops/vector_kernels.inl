/// The loops of vector_kernels.hpp, compiled once per instruction set by vector_<isa>.cpp.
/// Nothing here may instantiate an inline function of a library: the linker could keep the copy of
/// a wide instruction set for callers that run without it.

#include <cstdint>

#include "ops/vector_exp.inl"
#include "ops/vector_kernels.hpp"

namespace pecan::ops::detail {
namespace {

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
