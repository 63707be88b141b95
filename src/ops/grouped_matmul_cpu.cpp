#include <algorithm>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"
#include "ops/products.hpp"

namespace pecan::ops::cpu {
namespace {

using detail::Matrix;
using detail::Product;
using detail::Transpose;
using Counts = std::span<const std::int64_t>;
using Weights = std::span<const ParamStorage>;

/// Rows [first, first + count) of a weight [O, I], as a matrix [count, I] in memory or its
/// transpose.
struct Panel {
  std::int64_t first;
  std::int64_t count;
  Matrix<void> matrix;  ///< kYes: memory holds the transpose
};

/// A row-major weight is one panel.
std::int64_t num_panels(const ParamStorage& w_OI) {
  if (w_OI.order() == device::StorageOrder::kRowMajor) return 1;
  return std::max<std::int64_t>(1, (w_OI.shape()[0] + w_OI.panel_rows() - 1) / w_OI.panel_rows());
}

Panel panel_of(const ParamStorage& w_OI, std::int64_t index) {
  const std::int64_t rows = w_OI.shape()[0], columns = w_OI.shape()[1];
  if (w_OI.order() == device::StorageOrder::kRowMajor)
    return {0, rows, {w_OI.memory(), std::max<std::int64_t>(columns, 1), Transpose::kNo}};
  const std::int64_t first = index * w_OI.panel_rows();
  const std::int64_t count = std::min(w_OI.panel_rows(), rows - first);
  std::byte* memory = w_OI.memory() + std::size_t(first * columns) * size_of(w_OI.dtype());
  return {first, count, {memory, std::max<std::int64_t>(count, 1), Transpose::kYes}};
}

Transpose flip(Transpose transpose) {
  return transpose == Transpose::kYes ? Transpose::kNo : Transpose::kYes;
}

Matrix<const void> read(const Matrix<void>& x) {
  return {x.data, x.stride, x.transpose};
}

/// Computes make(panel, index of the panel, first row, rows) for each group and each panel of its
/// weight; the groups side by side, panels in ascending order, with a moment for the background
/// between them.
template <typename Make>
void multiply_groups(
    Context& ctx, Counts counts_E, Weights w_EOI, DType factors, DType result, const Make& make) {
  PECAN_EXPECTS(!ctx.workspace.measuring());
  std::int64_t panels = 1, work = 0;
  for (std::size_t e = 0; e < w_EOI.size(); ++e) {
    if (w_EOI[e].shape().num_dims() == 0) continue;
    panels = std::max(panels, num_panels(w_EOI[e]));
    work += counts_E[e] * w_EOI[e].shape().num_elements();
  }
  for (std::int64_t index = 0; index < panels; ++index) {
    if (index > 0) ctx.advance();
    const auto product_of = [=, &make, first = std::int64_t{0}](std::int64_t e) mutable {
      const std::int64_t row = first, rows = counts_E[std::size_t(e)];
      first += rows;
      const ParamStorage& w_OI = w_EOI[std::size_t(e)];
      if (w_OI.shape().num_dims() == 0 || index >= num_panels(w_OI)) return Product{};
      return make(panel_of(w_OI, index), index, row, rows);
    };
    detail::multiply_all(
        ctx, factors, result, std::int64_t(counts_E.size()), work / panels, product_of);
  }
}

}  // namespace

void grouped_matmul_forward(
    Context& ctx, Counts counts_E, ConstTensorView x_RI, Weights w_EOI, TensorView y_RO) {
  multiply_groups(ctx,
                  counts_E,
                  w_EOI,
                  x_RI.dtype,
                  y_RO.dtype,
                  [&](const Panel& panel, std::int64_t, std::int64_t row, std::int64_t rows) {
                    Matrix<const void> w = read(panel.matrix);
                    w.transpose = flip(w.transpose);
                    return Product{rows,
                                   panel.count,
                                   x_RI.shape[1],
                                   detail::matrix_at(x_RI, row, 0),
                                   w,
                                   Accumulate::kOverwrite,
                                   detail::matrix_at(y_RO, row, panel.first)};
                  });
}

void grouped_matmul_backward_input(Context& ctx,
                                   Counts counts_E,
                                   ConstTensorView dy_RO,
                                   Weights w_EOI,
                                   TensorView dx_RI,
                                   Accumulate accumulate) {
  multiply_groups(ctx,
                  counts_E,
                  w_EOI,
                  dy_RO.dtype,
                  dx_RI.dtype,
                  [&](const Panel& panel, std::int64_t index, std::int64_t row, std::int64_t rows) {
                    return Product{rows,
                                   dx_RI.shape[1],
                                   panel.count,
                                   detail::matrix_at(dy_RO, row, panel.first),
                                   read(panel.matrix),
                                   index == 0 ? accumulate : Accumulate::kAdd,
                                   detail::matrix_at(dx_RI, row, 0)};
                  });
}

void grouped_matmul_backward_weight(
    Context& ctx, Counts counts_E, ConstTensorView dy_RO, ConstTensorView x_RI, Weights dw_EOI) {
  multiply_groups(ctx,
                  counts_E,
                  dw_EOI,
                  x_RI.dtype,
                  master_of(x_RI.dtype),
                  [&](const Panel& panel, std::int64_t, std::int64_t row, std::int64_t rows) {
                    Matrix<const void> dy = detail::matrix_at(dy_RO, row, panel.first);
                    Matrix<const void> x = detail::matrix_at(x_RI, row, 0);
                    Matrix<void> dw = panel.matrix;
                    const std::int64_t inputs = x_RI.shape[1];
                    if (dw.transpose == Transpose::kNo) {
                      dy.transpose = Transpose::kYes;
                      return Product{panel.count, inputs, rows, dy, x, Accumulate::kAdd, dw};
                    }
                    // Memory holds the transpose of the product, so its transpose is computed.
                    x.transpose = Transpose::kYes;
                    dw.transpose = Transpose::kNo;
                    return Product{inputs, panel.count, rows, x, dy, Accumulate::kAdd, dw};
                  });
}

}  // namespace pecan::ops::cpu
