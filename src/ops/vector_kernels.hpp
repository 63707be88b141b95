#pragma once
/// Inner loops that live from wide vectors, built for three instruction sets and chosen at run
/// time.

#include <cstdint>

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
  /// h = silu(gate) * up; h may be gate or up.
  void (*swiglu)(const T* gate, const T* up, T* h, std::int64_t n);
  /// Gradients of swiglu; outputs may be inputs.
  void (*swiglu_backward)(
      const T* dh, const T* gate, const T* up, T* dgate, T* dup, std::int64_t n);
  /// h = gelu(x) in the tanh form; h may be x.
  void (*gelu)(const T* x, T* h, std::int64_t n);
  /// Gradient of gelu; dx may be an input.
  void (*gelu_backward)(const T* dh, const T* x, T* dx, std::int64_t n);
};

/// Columns of the right-hand tile of multiply_tile.
inline constexpr std::int64_t kTileColumns = 64;

struct IsaKernels {
  VectorKernels<float> f32;
  VectorKernels<double> f64;
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

/// Whether this CPU runs `isa`.
[[nodiscard]] bool supports(Isa isa);
[[nodiscard]] const IsaKernels& isa_kernels(Isa isa);
/// Those of the widest instruction set that this CPU runs.
[[nodiscard]] const IsaKernels& isa_kernels();

template <typename T>
[[nodiscard]] const VectorKernels<T>& vector_kernels() {
  if constexpr (sizeof(T) == sizeof(float)) {
    return isa_kernels().f32;
  } else {
    return isa_kernels().f64;
  }
}

}  // namespace pecan::ops::detail
