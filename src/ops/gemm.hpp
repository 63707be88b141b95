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

/// Floats that a product of bf16 matrices may use beside its operands.
inline constexpr std::int64_t kConvertedBlock = 256;
inline constexpr std::int64_t kConvertedElements = 3 * kConvertedBlock * kConvertedBlock;

/// These floats, in the workspace; nothing for other types.
[[nodiscard]] inline TensorView allocate_converted(Context& ctx, DType dtype) {
  return ctx.workspace.allocate(DType::kF32, {dtype == DType::kBF16 ? kConvertedElements : 0});
}

/// How products of bf16 matrices are computed.
enum class BF16Path : std::uint8_t {
  kNative,     ///< by the CPU's bf16 instructions
  kConverted,  ///< blocks are converted to f32 first: any CPU
};
/// kNative where this CPU has AVX512-BF16.
[[nodiscard]] BF16Path best_bf16_path();

/// The same for bf16 factors, summed in f32; C is bf16 or f32. A bf16 C is rounded once, and with
/// kAdd what it held was rounded before. `converted` has room for kConvertedElements.
void gemm(BF16Path path,
          int threads,
          std::int64_t m,
          std::int64_t n,
          std::int64_t k,
          Matrix<const BFloat16> a,
          Matrix<const BFloat16> b,
          Accumulate accumulate,
          Matrix<BFloat16> c,
          float* converted);
void gemm(BF16Path path,
          int threads,
          std::int64_t m,
          std::int64_t n,
          std::int64_t k,
          Matrix<const BFloat16> a,
          Matrix<const BFloat16> b,
          Accumulate accumulate,
          Matrix<float> c,
          float* converted);

}  // namespace pecan::ops::detail
