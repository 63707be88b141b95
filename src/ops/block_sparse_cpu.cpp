#include "ops/backends.hpp"
#include "ops/cpu.hpp"
#include "ops/products.hpp"

namespace pecan::ops::cpu {
namespace {

using detail::Product;
using detail::Transpose;
using Range = BlockTopology::Range;
using Weights = std::span<const ParamStorage>;

/// Multiplications of a product with H.
std::int64_t work_of(const BlockTopology& topology, const ConstTensorView& x_RI) {
  return topology.num_rows() * topology.width() * x_RI.shape[1];
}

}  // namespace

void block_sparse_sdd(Context& ctx,
                      const BlockTopology& topology,
                      ConstTensorView x_RI,
                      Weights w_E,
                      WeightForm form,
                      TensorView h_RF) {
  const auto blocks = std::int64_t(topology.row_indices().size());
  const auto product_of = [&](std::int64_t block) {
    const Range& rows =
        topology.row_blocks()[std::size_t(topology.row_indices()[std::size_t(block)])];
    const Range& columns =
        topology.column_blocks()[std::size_t(topology.column_indices()[std::size_t(block)])];
    const ConstTensorView w = w_E[std::size_t(columns.group)].row_major();
    return Product{rows.count,
                   columns.count,
                   x_RI.shape[1],
                   detail::matrix_at(x_RI, rows.first, 0),
                   form == WeightForm::kFirstIsF
                       ? detail::matrix_at(w, columns.first, 0, Transpose::kYes)
                       : detail::matrix_at(w, 0, columns.first),
                   Accumulate::kOverwrite,
                   detail::matrix_at(h_RF, rows.first, columns.first)};
  };
  detail::multiply_all(ctx, x_RI.dtype, h_RF.dtype, blocks, work_of(topology, x_RI), product_of);
}

void block_sparse_dsd(Context& ctx,
                      const BlockTopology& topology,
                      ConstTensorView h_RF,
                      Weights w_E,
                      WeightForm form,
                      TensorView y_RI,
                      Accumulate accumulate) {
  // The blocks of a row lie side by side, in H and in the weight: they are summed as one.
  const auto product_of = [&](std::int64_t row_block) {
    const Range& rows = topology.row_blocks()[std::size_t(row_block)];
    const std::int32_t begin = topology.row_offsets()[std::size_t(row_block)];
    const std::int32_t end = topology.row_offsets()[std::size_t(row_block) + 1];
    std::int64_t depth = 0;
    for (std::int32_t block = begin; block < end; ++block)
      depth += topology.column_blocks()[std::size_t(topology.column_indices()[std::size_t(block)])]
                   .count;
    const ConstTensorView w = w_E[std::size_t(rows.group)].row_major();
    return Product{rows.count,
                   y_RI.shape[1],
                   depth,
                   detail::matrix_at(h_RF, rows.first, 0),
                   detail::matrix_at(
                       w, 0, 0, form == WeightForm::kFirstIsF ? Transpose::kNo : Transpose::kYes),
                   accumulate,
                   detail::matrix_at(y_RI, rows.first, 0)};
  };
  detail::multiply_all(ctx,
                       h_RF.dtype,
                       y_RI.dtype,
                       std::int64_t(topology.row_blocks().size()),
                       work_of(topology, y_RI),
                       product_of);
}

void block_sparse_backward_weight(Context& ctx,
                                  const BlockTopology& topology,
                                  ConstTensorView h_RF,
                                  ConstTensorView x_RI,
                                  Weights dw_E,
                                  WeightForm form) {
  // The blocks of a column stand one below the other: they are summed as one.
  const auto product_of = [&](std::int64_t column_block) {
    const Range& columns = topology.column_blocks()[std::size_t(column_block)];
    const ParamStorage& dw_storage = dw_E[std::size_t(columns.group)];
    const std::int32_t begin = topology.column_offsets()[std::size_t(column_block)];
    const std::int32_t end = topology.column_offsets()[std::size_t(column_block) + 1];
    if (begin == end || dw_storage.shape().num_dims() == 0) return Product{};
    const auto rows_of = [&](std::int32_t at) {
      const std::int32_t block = topology.transposed()[std::size_t(at)];
      return topology.row_blocks()[std::size_t(topology.row_indices()[std::size_t(block)])];
    };
    const std::int64_t first = rows_of(begin).first;
    const std::int64_t depth = rows_of(end - 1).first + rows_of(end - 1).count - first;
    const TensorView dw = dw_storage.row_major();
    if (form == WeightForm::kFirstIsF) {
      return Product{columns.count,
                     x_RI.shape[1],
                     depth,
                     detail::matrix_at(h_RF, first, columns.first, Transpose::kYes),
                     detail::matrix_at(x_RI, first, 0),
                     Accumulate::kAdd,
                     detail::matrix_at(dw, columns.first, 0)};
    }
    return Product{x_RI.shape[1],
                   columns.count,
                   depth,
                   detail::matrix_at(x_RI, first, 0, Transpose::kYes),
                   detail::matrix_at(h_RF, first, columns.first),
                   Accumulate::kAdd,
                   detail::matrix_at(dw, 0, columns.first)};
  };
  detail::multiply_all(ctx,
                       x_RI.dtype,
                       master_of(x_RI.dtype),
                       std::int64_t(topology.column_blocks().size()),
                       work_of(topology, x_RI),
                       product_of);
}

}  // namespace pecan::ops::cpu
