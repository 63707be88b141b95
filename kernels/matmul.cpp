/// Matrix products by cuBLAS.

#include <algorithm>
#include <limits>
#include <span>

#include "device/cuda/blas.hpp"
#include "device/cuda/stream.hpp"
#include "kernels/operators.hpp"

namespace pecan::kernels {
namespace {

using device::cuda::check;
using device::cuda::StreamState;
using ops::Accumulate;
using ops::ParamStorage;
using Index = std::int64_t;

enum class Order : std::uint8_t { kPlain, kTransposed };

Order flip(Order order) {
  return order == Order::kPlain ? Order::kTransposed : Order::kPlain;
}

/// A matrix in memory, row by row, or of which memory holds the transpose.
struct Matrix {
  std::byte* data;
  DType dtype;
  Index stride;  ///< elements between rows of what memory holds
  Order order = Order::kPlain;

  [[nodiscard]] Matrix flipped() const { return {data, dtype, stride, flip(order)}; }
  /// From column `first` on.
  [[nodiscard]] Matrix from(Index first) const {
    return {data + first * Index(size_of(dtype)), dtype, stride, order};
  }
};

Matrix matrix_of(const ConstTensorView& x) {
  return {const_cast<std::byte*>(x.data), x.dtype, std::max<Index>(x.shape[1], 1)};
}

cudaDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return CUDA_R_16BF;
    case DType::kF64:
      return CUDA_R_64F;
    default:
      return CUDA_R_32F;
  }
}

int to_int(Index extent) {
  PECAN_VALIDATE(extent <= std::numeric_limits<int>::max(),
                 ShapeError,
                 "a matrix of {} rows or columns is more than cuBLAS takes",
                 extent);
  return int(extent);
}

/// c (+)= a b of m x k and k x n elements, on the context's stream. With k = 0 only adds nothing.
void multiply(const Context& ctx,
              Index m,
              Index n,
              Index k,
              const Matrix& a,
              const Matrix& b,
              Accumulate accumulate,
              const Matrix& c) {
  if (m == 0 || n == 0 || k == 0) return;
  cublasContext* const blas = static_cast<StreamState*>(ctx.stream.handle())->products();
  const auto operation = [](const Matrix& matrix) {
    return matrix.order == Order::kPlain ? CUBLAS_OP_N : CUBLAS_OP_T;
  };
  const bool in_double = a.dtype == DType::kF64;
  const float one_f32 = 1, beta_f32 = accumulate == Accumulate::kAdd ? 1 : 0;
  const double one_f64 = 1, beta_f64 = double(beta_f32);
  const auto scalar = [&](const float& f32, const double& f64) {
    return in_double ? static_cast<const void*>(&f64) : static_cast<const void*>(&f32);
  };
  // cuBLAS goes by columns: what it sees are the transposed matrices, in the opposite order.
  check(cublasGemmEx(blas,
                     operation(b),
                     operation(a),
                     to_int(n),
                     to_int(m),
                     to_int(k),
                     scalar(one_f32, one_f64),
                     b.data,
                     type_of(b.dtype),
                     to_int(b.stride),
                     a.data,
                     type_of(a.dtype),
                     to_int(a.stride),
                     scalar(beta_f32, beta_f64),
                     c.data,
                     type_of(c.dtype),
                     to_int(c.stride),
                     in_double ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                     CUBLAS_GEMM_DEFAULT),
        "cublasGemmEx");
}

/// Calls body(first, count, panel) for rows [first, first + count) of a weight [O, I], as a matrix
/// [count, I], for each panel in ascending order; a row-major weight is one panel.
template <typename Body>
void for_each_panel(const ParamStorage& w_OI, Body&& body) {
  const Index rows = w_OI.shape()[0], columns = w_OI.shape()[1];
  const bool is_plain = w_OI.order() == device::StorageOrder::kRowMajor;
  const Index each = is_plain ? std::max<Index>(rows, 1) : w_OI.panel_rows();
  for (Index first = 0; first < rows; first += each) {
    const Index count = std::min(each, rows - first);
    const Matrix whole{w_OI.memory(), w_OI.dtype(), 1};
    Matrix panel = whole.from(first * columns);
    panel.stride = is_plain ? std::max<Index>(columns, 1) : count;
    panel.order = is_plain ? Order::kPlain : Order::kTransposed;
    body(first, count, panel);
  }
}

/// Calls body(group, first row, number of rows) for each group that has rows.
template <typename Body>
void for_each_group(std::span<const Index> counts_E, Body&& body) {
  Index first = 0;
  for (std::size_t group = 0; group < counts_E.size(); first += counts_E[group++]) {
    if (counts_E[group] > 0) body(group, first, counts_E[group]);
  }
}

}  // namespace

void matmul_forward(Context& ctx, ConstTensorView x_TI, const ParamStorage& w_OI, TensorView y_TO) {
  const Index tokens = x_TI.shape[0], inputs = x_TI.shape[1];
  if (inputs == 0) return fill(ctx, 0, y_TO);
  for_each_panel(w_OI, [&](Index first, Index count, const Matrix& panel) {
    multiply(ctx,
             tokens,
             count,
             inputs,
             matrix_of(x_TI),
             panel.flipped(),
             Accumulate::kOverwrite,
             matrix_of(y_TO).from(first));
  });
}

void matmul_backward_input(Context& ctx,
                           ConstTensorView dy_TO,
                           const ParamStorage& w_OI,
                           TensorView dx_TI,
                           Accumulate accumulate) {
  if (dy_TO.shape[1] == 0 && accumulate == Accumulate::kOverwrite) return fill(ctx, 0, dx_TI);
  for_each_panel(w_OI, [&](Index first, Index count, const Matrix& panel) {
    multiply(ctx,
             dy_TO.shape[0],
             dx_TI.shape[1],
             count,
             matrix_of(dy_TO).from(first),
             panel,
             first == 0 ? accumulate : Accumulate::kAdd,
             matrix_of(dx_TI));
  });
}

void matmul_backward_weight(Context& ctx,
                            ConstTensorView dy_TO,
                            ConstTensorView x_TI,
                            const ParamStorage& dw_OI) {
  const Index tokens = x_TI.shape[0], inputs = x_TI.shape[1];
  for_each_panel(dw_OI, [&](Index first, Index count, Matrix panel) {
    const Matrix x = matrix_of(x_TI), dy = matrix_of(dy_TO).from(first);
    if (panel.order == Order::kPlain) {
      multiply(ctx, count, inputs, tokens, dy.flipped(), x, Accumulate::kAdd, panel);
    } else {
      // Memory holds the transpose of the product, so its transpose is computed.
      panel.order = Order::kPlain;
      multiply(ctx, inputs, count, tokens, x.flipped(), dy, Accumulate::kAdd, panel);
    }
  });
}

// Each group by a product of its own: counts are the host's, and so the result of a group is the
// one that its rows have alone.

void grouped_matmul_forward(Context& ctx,
                            std::span<const Index> counts_E,
                            ConstTensorView x_RI,
                            std::span<const ParamStorage> w_EOI,
                            TensorView y_RO) {
  for_each_group(counts_E, [&](std::size_t group, Index first, Index count) {
    matmul_forward(ctx, x_RI.rows(first, count), w_EOI[group], y_RO.rows(first, count));
  });
}

void grouped_matmul_backward_input(Context& ctx,
                                   std::span<const Index> counts_E,
                                   ConstTensorView dy_RO,
                                   std::span<const ParamStorage> w_EOI,
                                   TensorView dx_RI,
                                   Accumulate accumulate) {
  for_each_group(counts_E, [&](std::size_t group, Index first, Index count) {
    matmul_backward_input(
        ctx, dy_RO.rows(first, count), w_EOI[group], dx_RI.rows(first, count), accumulate);
  });
}

void grouped_matmul_backward_weight(Context& ctx,
                                    std::span<const Index> counts_E,
                                    ConstTensorView dy_RO,
                                    ConstTensorView x_RI,
                                    std::span<const ParamStorage> dw_EOI) {
  for_each_group(counts_E, [&](std::size_t group, Index first, Index count) {
    if (dw_EOI[group].memory() == nullptr) return;
    matmul_backward_weight(ctx, dy_RO.rows(first, count), x_RI.rows(first, count), dw_EOI[group]);
  });
}

}  // namespace pecan::kernels
