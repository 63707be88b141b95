#pragma once
/// Inner loops that live from wide vectors, built for three instruction sets and chosen at run
/// time.

#include <cstdint>

#include "ops/vector_storage.hpp"

namespace pecan::ops::detail {

enum class Isa : std::uint8_t { kBaseline, kAvx2, kAvx512 };

template <typename T>
struct VectorKernels {
  /// Largest of n elements; -inf of none. May pass over NaNs.
  T (*max)(const T* x, std::int64_t n);
  /// y[i] = exp(scale * x[i] - shift), y may be x; returns the sum in double. f32: relative error
  /// <= 2e-7, results below the
  /// normal range are 0, and arguments above 88 count as 88.
  double (*exp_sum)(const T* x, T* y, std::int64_t n, T scale, T shift);
};

/// Columns of the right-hand tile of multiply_tile.
inline constexpr std::int64_t kTileColumns = 64;

struct IsaKernels {
  VectorKernels<float> f32;
  VectorKernels<double> f64;
  StorageKernels<float> of_f32;
  StorageKernels<double> of_f64;
  StorageKernels<Bf16Bits> of_bf16;
  /// c[i][j] += sum over p, ascending, of a[i * a_row + p * a_column] * b[p * kTileColumns + j], j
  /// < columns.
  void (*multiply_tile)(std::int64_t rows,
                        std::int64_t columns,
                        std::int64_t depth,
                        const double* a,
                        std::int64_t a_row,
                        std::int64_t a_column,
                        const double* b,
                        double* c,
                        std::int64_t c_row);
};

/// The one of three tables that `isa` names.
template <typename Table>
[[nodiscard]] const Table& table_of(Isa isa,
                                    const Table& baseline,
                                    const Table& avx2,
                                    const Table& avx512) {
  switch (isa) {
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
    case Isa::kBaseline:
      break;
  }
  return baseline;
}

/// Whether this CPU runs `isa`.
[[nodiscard]] bool supports(Isa isa);
/// How far PECAN_MAX_ISA lets kernels go, for all processes that set it; everything without it.
/// ConfigError for a name that is not known.
enum class IsaLimit : std::uint8_t { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };
[[nodiscard]] IsaLimit isa_limit();
/// The widest instruction set that this CPU runs, and the limit allows.
[[nodiscard]] Isa widest_isa();
[[nodiscard]] const IsaKernels& isa_kernels(Isa isa);
/// Those of widest_isa().
[[nodiscard]] const IsaKernels& isa_kernels();

[[nodiscard]] const ExactKernels& exact_kernels(Isa isa);
[[nodiscard]] const ExactKernels& exact_kernels();

template <typename T>
[[nodiscard]] const VectorKernels<T>& vector_kernels() {
  if constexpr (sizeof(T) == sizeof(float)) {
    return isa_kernels().f32;
  } else {
    return isa_kernels().f64;
  }
}

template <typename T>
[[nodiscard]] const StorageKernels<T>& storage_kernels(Isa isa) {
  const IsaKernels& kernels = isa_kernels(isa);
  if constexpr (sizeof(T) == sizeof(Bf16Bits)) {
    return kernels.of_bf16;
  } else if constexpr (sizeof(T) == sizeof(float)) {
    return kernels.of_f32;
  } else {
    return kernels.of_f64;
  }
}

}  // namespace pecan::ops::detail
