#pragma once
/// Plain row-major matrix products, the ground under matmul and attention.

#include <cstdint>

#include <pecan/ops/types.hpp>

namespace pecan::ops::detail {

enum class Transpose : std::uint8_t { kNo, kYes };

/// A matrix in memory: rows `stride` elements apart, used transposed or as it is.
template <typename T>
struct Matrix {
  T* data;
  std::int64_t stride;
  Transpose transpose = Transpose::kNo;
};

/// C[m, n] (+)= A[m, k] B[k, n], with m, n, k the sizes after transposition. k = 0 counts as a
/// product of zeros. f32 by oneDNN, f64 by a tiled loop that sums in ascending order of k.
void gemm(int threads,
          std::int64_t m,
          std::int64_t n,
          std::int64_t k,
          Matrix<const float> a,
          Matrix<const float> b,
          Accumulate accumulate,
          Matrix<float> c);
void gemm(int threads,
          std::int64_t m,
          std::int64_t n,
          std::int64_t k,
          Matrix<const double> a,
          Matrix<const double> b,
          Accumulate accumulate,
          Matrix<double> c);

}  // namespace pecan::ops::detail
