#include <algorithm>
#include <type_traits>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"
#include "ops/gemm.hpp"

namespace pecan::ops::cpu {
namespace {

using detail::gemm;
using detail::Matrix;
using detail::Transpose;

/// Rows [first, first + count) of a weight [O, I], as a matrix [count, I] in memory or its
/// transpose.
template <typename T>
struct Panel {
  std::int64_t first;
  std::int64_t count;
  Matrix<T> matrix;  ///< kYes: memory holds the transpose
};

/// Calls body(panel) for each panel in ascending order, with a moment for the background between
/// them; a row-major weight is one panel.
template <typename T, typename Body>
void for_each_panel(Context& ctx, const ParamStorage& w_OI, Body&& body) {
  const std::int64_t rows = w_OI.shape()[0];
  const std::int64_t columns = w_OI.shape()[1];
  T* memory = reinterpret_cast<T*>(w_OI.memory());
  if (w_OI.order() == device::StorageOrder::kRowMajor) {
    body(Panel<T>{0, rows, {memory, std::max<std::int64_t>(columns, 1), Transpose::kNo}});
    return;
  }
  for (std::int64_t first = 0; first < rows; first += w_OI.panel_rows()) {
    if (first > 0) ctx.advance();
    const std::int64_t count = std::min(w_OI.panel_rows(), rows - first);
    body(Panel<T>{first, count, {memory + first * columns, count, Transpose::kYes}});
  }
}

Transpose flip(Transpose transpose) {
  return transpose == Transpose::kYes ? Transpose::kNo : Transpose::kYes;
}

/// A row-major activation of at least one column.
template <typename T, typename View>
Matrix<T> matrix_of(const View& x) {
  return {reinterpret_cast<T*>(x.data), std::max<std::int64_t>(x.shape[1], 1)};
}

/// gemm for any storage type; bf16 products convert through memory of the workspace.
template <typename T>
class Gemm {
 public:
  explicit Gemm(Context& ctx) : threads_(ctx.threads), scope_(ctx.workspace) {
    if constexpr (std::is_same_v<T, BFloat16>) {
      PECAN_EXPECTS(!ctx.workspace.measuring());
      converted_ = detail::allocate_converted(ctx, DType::kBF16).template as<float>().data();
    }
  }
  template <typename C>
  void operator()(std::int64_t m,
                  std::int64_t n,
                  std::int64_t k,
                  Matrix<const T> a,
                  Matrix<const T> b,
                  Accumulate accumulate,
                  Matrix<C> c) const {
    if constexpr (std::is_same_v<T, BFloat16>) {
      gemm(detail::best_bf16_path(), threads_, m, n, k, a, b, accumulate, c, converted_);
    } else {
      gemm(threads_, m, n, k, a, b, accumulate, c);
    }
  }

 private:
  int threads_;
  device::ArenaScope scope_;
  float* converted_ = nullptr;
};

}  // namespace

void matmul_forward(Context& ctx, ConstTensorView x_TI, const ParamStorage& w_OI, TensorView y_TO) {
  with_storage_type(w_OI.dtype(), [&]<typename T>(T) {
    const Gemm<T> multiply(ctx);
    for_each_panel<const T>(ctx, w_OI, [&](const Panel<const T>& panel) {
      Matrix<T> y = matrix_of<T>(y_TO);
      y.data += panel.first;
      Matrix<const T> w = panel.matrix;
      w.transpose = flip(w.transpose);
      multiply(x_TI.shape[0],
               panel.count,
               x_TI.shape[1],
               matrix_of<const T>(x_TI),
               w,
               Accumulate::kOverwrite,
               y);
    });
  });
}

void matmul_backward_input(Context& ctx,
                           ConstTensorView dy_TO,
                           const ParamStorage& w_OI,
                           TensorView dx_TI,
                           Accumulate accumulate) {
  with_storage_type(w_OI.dtype(), [&]<typename T>(T) {
    const Gemm<T> multiply(ctx);
    if (w_OI.shape()[0] == 0 && accumulate == Accumulate::kOverwrite) {
      std::ranges::fill(dx_TI.as<T>(), T(MathOf<T>(0)));
    }
    for_each_panel<const T>(ctx, w_OI, [&](const Panel<const T>& panel) {
      Matrix<const T> dy = matrix_of<const T>(dy_TO);
      dy.data += panel.first;
      multiply(dy_TO.shape[0],
               dx_TI.shape[1],
               panel.count,
               dy,
               panel.matrix,
               panel.first == 0 ? accumulate : Accumulate::kAdd,
               matrix_of<T>(dx_TI));
    });
  });
}

void matmul_backward_weight(Context& ctx,
                            ConstTensorView dy_TO,
                            ConstTensorView x_TI,
                            const ParamStorage& dw_OI) {
  with_storage_type(x_TI.dtype, [&]<typename T>(T) {
    const Gemm<T> multiply(ctx);
    for_each_panel<MathOf<T>>(ctx, dw_OI, [&](Panel<MathOf<T>> panel) {
      Matrix<const T> dy = matrix_of<const T>(dy_TO);
      dy.data += panel.first;
      Matrix<const T> x = matrix_of<const T>(x_TI);
      const std::int64_t tokens = x_TI.shape[0];
      const std::int64_t inputs = x_TI.shape[1];
      if (panel.matrix.transpose == Transpose::kNo) {
        dy.transpose = Transpose::kYes;
        multiply(panel.count, inputs, tokens, dy, x, Accumulate::kAdd, panel.matrix);
      } else {
        // Memory holds the transpose of the product, so its transpose is computed.
        x.transpose = Transpose::kYes;
        panel.matrix.transpose = Transpose::kNo;
        multiply(inputs, panel.count, tokens, x, dy, Accumulate::kAdd, panel.matrix);
      }
    });
  });
}

}  // namespace pecan::ops::cpu
