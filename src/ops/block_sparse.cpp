#include <algorithm>
#include <limits>
#include <type_traits>

#include <pecan/ops/block_sparse.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::bytes_added_to;
using detail::bytes_in;
using detail::Checks;
using detail::products_of_groups;
using detail::Timed;
using device::DeviceKind;

BlockTopology::BlockTopology(std::span<const std::int64_t> counts_E, std::int64_t width)
    : counts_E_(counts_E.begin(), counts_E.end()), width_(width) {
  const Checks check("BlockTopology");
  check.is_true(width >= 0, "the width is negative");
  const auto cut =
      [](std::int32_t group, std::int64_t first, std::int64_t count, std::vector<Range>& blocks) {
        for (std::int64_t at = 0; at < count; at += kBlock)
          blocks.push_back({group, first + at, std::min(kBlock, count - at)});
      };
  row_offsets_.push_back(0);
  column_offsets_.push_back(0);
  for (std::int32_t group = 0; group < std::int32_t(counts_E.size()); ++group) {
    const std::int64_t count = counts_E[std::size_t(group)];
    check.is_true(count >= 0, "a count is negative");
    const std::size_t first_row = row_blocks_.size(), first_column = column_blocks_.size();
    cut(group, num_rows_, count, row_blocks_);
    cut(group, 0, width, column_blocks_);
    num_rows_ += count;
    const auto first_block = std::int64_t(row_indices_.size());
    for (std::size_t i = first_row; i < row_blocks_.size(); ++i) {
      for (std::size_t j = first_column; j < column_blocks_.size(); ++j) {
        row_indices_.push_back(std::int32_t(i));
        column_indices_.push_back(std::int32_t(j));
      }
      row_offsets_.push_back(std::int32_t(row_indices_.size()));
    }
    const auto columns = std::int64_t(column_blocks_.size() - first_column);
    for (std::int64_t j = 0; j < columns; ++j) {
      for (std::int64_t i = first_block + j; i < std::int64_t(row_indices_.size()); i += columns)
        transposed_.push_back(std::int32_t(i));
      column_offsets_.push_back(std::int32_t(transposed_.size()));
    }
    check.is_true(row_indices_.size() <= std::size_t(std::numeric_limits<std::int32_t>::max()),
                  "there are more blocks than 32 bits count");
  }
}

std::int64_t BlockTopology::max_device_bytes(std::int64_t rows,
                                             std::int64_t groups,
                                             std::int64_t width) {
  // No group has more than kBlock - 1 rows less than its blocks could hold.
  const std::int64_t row_blocks = (rows + groups * (kBlock - 1)) / kBlock;
  const std::int64_t across = (width + kBlock - 1) / kBlock;
  const std::int64_t ranges = row_blocks + groups * across;
  const std::int64_t numbers = 3 * row_blocks * across + ranges + 2;
  return ranges * std::int64_t(sizeof(Range)) + numbers * std::int64_t(sizeof(std::int32_t));
}

void BlockTopology::upload(Context& ctx, const TensorView& memory) {
  if (ctx.device.kind == DeviceKind::kCpu) return;
  std::vector<std::byte> image;
  std::vector<std::size_t> places;
  const auto append = [&](const auto& elements) {
    const auto bytes = std::as_bytes(std::span(elements));
    places.push_back(image.size());
    image.insert(image.end(), bytes.begin(), bytes.end());
  };
  append(row_blocks_);  // ranges first: numbers may lie behind them, but not the other way round
  append(column_blocks_);
  append(row_offsets_);
  append(row_indices_);
  append(column_indices_);
  append(column_offsets_);
  append(transposed_);
  Checks("BlockTopology")
      .is_true(memory.num_bytes() >= image.size(),
               "the memory is too small for a copy on the device");
  const Shape num_bytes{std::int64_t(image.size())};
  device::upload(ctx.stream,
                 ConstTensorView{image.data(), DType::kU8, num_bytes},
                 TensorView{memory.data, DType::kU8, num_bytes});
  std::size_t next = 0;
  const auto take = [&](auto& array) {
    using Array = std::remove_reference_t<decltype(array)>;
    array = reinterpret_cast<Array>(memory.data + places[next++]);
  };
  take(on_device_.row_blocks);
  take(on_device_.column_blocks);
  take(on_device_.row_offsets);
  take(on_device_.row_indices);
  take(on_device_.column_indices);
  take(on_device_.column_offsets);
  take(on_device_.transposed);
}

namespace {

using Weights = std::span<const ParamStorage>;

void check_uploaded(const Checks& check, const BlockTopology& topology) {
  check.is_true(topology.on_device().row_offsets != nullptr,
                "the topology is not on the device; BlockTopology::upload copies it");
}

/// H, the dense matrix beside it and the weights between them.
void check_products(const Checks& check,
                    const BlockTopology& topology,
                    const ConstTensorView& h_RF,
                    const ConstTensorView& x_RI,
                    Weights w_E,
                    DType weight_type,
                    WeightForm form) {
  check.storable("the sparse matrix", h_RF.dtype);
  check.num_dims("the dense matrix", x_RI.shape, 2);
  check.is("the sparse matrix", h_RF, h_RF.dtype, {topology.num_rows(), topology.width()});
  check.is("the dense matrix", x_RI, h_RF.dtype, {topology.num_rows(), x_RI.shape[1]});
  check.is_true(w_E.size() == topology.counts().size(), "as many weights as groups are needed");
  const Shape shape = form == WeightForm::kFirstIsF ? Shape{topology.width(), x_RI.shape[1]}
                                                    : Shape{x_RI.shape[1], topology.width()};
  for (const ParamStorage& w : w_E) {
    if (w.shape().num_dims() == 0) continue;
    check.is_true(w.dtype() == weight_type, "a weight has another type than the tensors");
    check.is_true(w.shape() == shape, "a weight does not fit between the matrices");
    check.is_true(w.order() == device::StorageOrder::kRowMajor, "a weight is not row-major");
  }
}

}  // namespace

void block_sparse_sdd(Context& ctx,
                      const BlockTopology& topology,
                      ConstTensorView x_RI,
                      Weights w_E,
                      WeightForm form,
                      TensorView h_RF) {
  const Checks check("block_sparse_sdd");
  const Timed timed(
      ctx, check, [&] { return products_of_groups(topology.counts(), h_RF, w_E, x_RI); });
  check_products(check, topology, h_RF, x_RI, w_E, h_RF.dtype, form);
  check.complete(w_E);
  check.disjoint("h", h_RF, "x", x_RI);
  check.disjoint("h", h_RF, w_E);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      cpu::block_sparse_sdd(ctx, topology, x_RI, w_E, form, h_RF);
      return ctx.advance();
    case DeviceKind::kCuda:
      check_uploaded(check, topology);
      return cuda::kernel(check, ctx, &cuda::Table::block_sparse_sdd)(
          ctx, topology, x_RI, w_E, form, h_RF);
  }
  check.refuse(ctx.device);
}

void block_sparse_dsd(Context& ctx,
                      const BlockTopology& topology,
                      ConstTensorView h_RF,
                      Weights w_E,
                      WeightForm form,
                      TensorView y_RI,
                      Accumulate accumulate) {
  const Checks check("block_sparse_dsd");
  const Timed timed(ctx, check, [&] {
    Work work = products_of_groups(topology.counts(), h_RF, w_E, y_RI);
    work.bytes += bytes_added_to(y_RI, accumulate);
    return work;
  });
  check_products(check, topology, h_RF, y_RI, w_E, h_RF.dtype, form);
  check.complete(w_E);
  check.disjoint("y", y_RI, "h", h_RF);
  check.disjoint("y", y_RI, w_E);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      cpu::block_sparse_dsd(ctx, topology, h_RF, w_E, form, y_RI, accumulate);
      return ctx.advance();
    case DeviceKind::kCuda:
      check_uploaded(check, topology);
      return cuda::kernel(check, ctx, &cuda::Table::block_sparse_dsd)(
          ctx, topology, h_RF, w_E, form, y_RI, accumulate);
  }
  check.refuse(ctx.device);
}

void block_sparse_backward_weight(Context& ctx,
                                  const BlockTopology& topology,
                                  ConstTensorView h_RF,
                                  ConstTensorView x_RI,
                                  Weights dw_E,
                                  WeightForm form) {
  const Checks check("block_sparse_backward_weight");
  const Timed timed(ctx, check, [&] {
    Work work = products_of_groups(topology.counts(), h_RF, dw_E, x_RI);
    for (const ParamStorage& dw : dw_E) work.bytes += bytes_in(dw);
    return work;
  });
  check_products(check, topology, h_RF, x_RI, dw_E, master_of(h_RF.dtype), form);
  check.disjoint("h", h_RF, dw_E);
  check.disjoint("x", x_RI, dw_E);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      cpu::block_sparse_backward_weight(ctx, topology, h_RF, x_RI, dw_E, form);
      return ctx.advance();
    case DeviceKind::kCuda:
      check_uploaded(check, topology);
      return cuda::kernel(check, ctx, &cuda::Table::block_sparse_backward_weight)(
          ctx, topology, h_RF, x_RI, dw_E, form);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
