#include <pecan/ops/embedding.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::bytes_of;
using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;
namespace {

void check_lookup(const Checks& check,
                  const Context& ctx,
                  const ConstTensorView& tokens_T,
                  const ParamStorage& w_VH,
                  const VocabShard& shard,
                  DType table_type,
                  const ConstTensorView& y_TH) {
  check.storable("the rows", y_TH.dtype);
  check.is_true(w_VH.dtype() == table_type, "the table has another type than the rows ask for");
  check.num_dims("the table", w_VH.shape(), 2);
  check.holds("the table", w_VH.shape()[0], shard);
  check.num_dims("tokens", tokens_T.shape, 1);
  check.is("tokens", tokens_T, DType::kI32, tokens_T.shape);
  check.is("the rows", y_TH, y_TH.dtype, {tokens_T.shape[0], w_VH.shape()[1]});
  for (const std::int32_t token : detail::on_host<std::int32_t>(ctx, tokens_T)) {
    PECAN_VALIDATE(token >= 0 && token < shard.total,
                   ShapeError,
                   "embedding: token {} lies outside the vocabulary of {}; was the data made with "
                   "this tokenizer?",
                   token,
                   shard.total);
  }
}

}  // namespace

void embedding_forward(Context& ctx,
                       ConstTensorView tokens_T,
                       const ParamStorage& w_VH,
                       VocabShard shard,
                       TensorView y_TH) {
  const Checks check("embedding_forward");
  const Timed timed(ctx, check, [&] { return moves(tokens_T, y_TH, y_TH); });
  check_lookup(check, ctx, tokens_T, w_VH, shard, y_TH.dtype, y_TH);
  check.disjoint("y", y_TH, "w", bytes_of(w_VH));
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::embedding_forward(ctx, tokens_T, w_VH, shard, y_TH);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::embedding_forward)(
          ctx, tokens_T, w_VH, shard, y_TH);
  }
  check.refuse(ctx.device);
}

void embedding_backward(Context& ctx,
                        ConstTensorView dy_TH,
                        ConstTensorView tokens_T,
                        VocabShard shard,
                        const ParamStorage& dw_VH) {
  const Checks check("embedding_backward");
  const Timed timed(ctx, check, [&] { return moves(tokens_T, dy_TH, dy_TH, dy_TH); });
  check_lookup(check, ctx, tokens_T, dw_VH, shard, master_of(dy_TH.dtype), dy_TH);
  check.disjoint("dw", bytes_of(dw_VH), "dy", dy_TH);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::embedding_backward(ctx, dy_TH, tokens_T, shard, dw_VH);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::embedding_backward)(
          ctx, dy_TH, tokens_T, shard, dw_VH);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
