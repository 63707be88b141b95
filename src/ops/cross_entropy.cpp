#include <pecan/ops/cross_entropy.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;
namespace {

[[nodiscard]] bool is_masked(const ConstTensorView& mask_T, std::size_t t) {
  if (mask_T.data == nullptr) return false;
  if (mask_T.dtype == DType::kBF16) return float(mask_T.as<BFloat16>()[t]) == 0;
  if (mask_T.dtype == DType::kF64) return mask_T.as<double>()[t] == 0;
  return mask_T.as<float>()[t] == 0;
}

/// Labels and mask of `tokens` tokens; a label may lie outside the vocabulary where it is masked.
void check_targets(const Checks& check,
                   const Context& ctx,
                   const ConstTensorView& logits_TV,
                   std::int64_t vocab_size,
                   const ConstTensorView& labels_T,
                   const ConstTensorView& mask_T) {
  const std::int64_t tokens = logits_TV.shape[0];
  check.is("labels", labels_T, DType::kI32, {tokens});
  if (mask_T.data != nullptr) check.is("mask", mask_T, logits_TV.dtype, {tokens});
  const auto labels = detail::on_host<std::int32_t>(ctx, labels_T);
  for (std::size_t t = 0; t < labels.size(); ++t) {
    const std::int32_t label = labels[t];
    PECAN_VALIDATE((label >= 0 && label < vocab_size) || is_masked(mask_T, t),
                   ShapeError,
                   "cross_entropy: label {} of token {} lies outside the vocabulary of {}; was the "
                   "data made with "
                   "this tokenizer?",
                   label,
                   t,
                   vocab_size);
  }
}

void check_logits(const Checks& check, const ConstTensorView& logits_TV) {
  check.storable("logits", logits_TV.dtype);
  check.num_dims("logits", logits_TV.shape, 2);
}

/// What a loss or gradient is written to shares nothing with what says what it is of.
void check_apart(const Checks& check,
                 std::string_view name,
                 const ConstTensorView& output,
                 const ConstTensorView& labels_T,
                 const ConstTensorView& mask_T) {
  check.disjoint(name, output, "labels", labels_T);
  if (mask_T.data != nullptr) check.disjoint(name, output, "mask", mask_T);
}

void check_loss(const Checks& check,
                const Context& ctx,
                const ConstTensorView& logits_TV,
                std::int64_t vocab_size,
                const ConstTensorView& labels_T,
                const ConstTensorView& mask_T,
                const TensorView& loss_T) {
  check_logits(check, logits_TV);
  check.is_true(vocab_size >= 1 && vocab_size <= logits_TV.shape[1],
                "vocab_size must be at least 1 and at most the columns of logits");
  check_targets(check, ctx, logits_TV, vocab_size, labels_T, mask_T);
  check.is("loss", loss_T, DType::kF64, {logits_TV.shape[0]});
  check.disjoint("loss", loss_T, "logits", logits_TV);
  check_apart(check, "loss", loss_T, labels_T, mask_T);
}

/// What sums and gradient of a shard have in common.
void check_shard(const Checks& check,
                 const Context& ctx,
                 const ConstTensorView& logits_TV,
                 const VocabShard& shard,
                 const ConstTensorView& labels_T,
                 const ConstTensorView& mask_T,
                 const ConstTensorView& max_T,
                 const ConstTensorView& sums_2T) {
  check_logits(check, logits_TV);
  check.holds("logits", logits_TV.shape[1], shard);
  check_targets(check, ctx, logits_TV, shard.total, labels_T, mask_T);
  const std::int64_t tokens = logits_TV.shape[0];
  check.is("max", max_T, DType::kF64, {tokens});
  check.is("sums", sums_2T, DType::kF64, {2, tokens});
}

}  // namespace

void cross_entropy_forward(Context& ctx,
                           ConstTensorView logits_TV,
                           std::int64_t vocab_size,
                           ConstTensorView labels_T,
                           ConstTensorView mask_T,
                           TensorView loss_T) {
  const Checks check("cross_entropy_forward");
  const Timed timed(ctx, check, [&] { return moves(logits_TV, labels_T, mask_T, loss_T); });
  check_loss(check, ctx, logits_TV, vocab_size, labels_T, mask_T, loss_T);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::cross_entropy_forward(ctx, logits_TV, vocab_size, labels_T, mask_T, loss_T);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::cross_entropy_forward)(
          ctx, logits_TV, vocab_size, labels_T, mask_T, loss_T);
  }
  check.refuse(ctx.device);
}

void cross_entropy_forward_backward(Context& ctx,
                                    TensorView logits_TV,
                                    std::int64_t vocab_size,
                                    ConstTensorView labels_T,
                                    ConstTensorView mask_T,
                                    double scale,
                                    TensorView loss_T) {
  const Checks check("cross_entropy_forward_backward");
  const Timed timed(
      ctx, check, [&] { return moves(logits_TV, logits_TV, labels_T, mask_T, loss_T); });
  check_loss(check, ctx, logits_TV, vocab_size, labels_T, mask_T, loss_T);
  check_apart(check, "logits", logits_TV, labels_T, mask_T);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::cross_entropy_forward_backward(
          ctx, logits_TV, vocab_size, labels_T, mask_T, scale, loss_T);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::cross_entropy_forward_backward)(
          ctx, logits_TV, vocab_size, labels_T, mask_T, scale, loss_T);
  }
  check.refuse(ctx.device);
}

void cross_entropy_max(Context& ctx,
                       ConstTensorView logits_TV,
                       VocabShard shard,
                       TensorView max_T) {
  const Checks check("cross_entropy_max");
  const Timed timed(ctx, check, [&] { return moves(logits_TV, max_T); });
  check_logits(check, logits_TV);
  check.holds("logits", logits_TV.shape[1], shard);
  check.is("max", max_T, DType::kF64, {logits_TV.shape[0]});
  check.disjoint("max", max_T, "logits", logits_TV);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::cross_entropy_max(ctx, logits_TV, shard, max_T);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::cross_entropy_max)(
          ctx, logits_TV, shard, max_T);
  }
  check.refuse(ctx.device);
}

void cross_entropy_sums(Context& ctx,
                        ConstTensorView logits_TV,
                        VocabShard shard,
                        ConstTensorView labels_T,
                        ConstTensorView mask_T,
                        ConstTensorView max_T,
                        TensorView sums_2T) {
  const Checks check("cross_entropy_sums");
  const Timed timed(ctx, check, [&] { return moves(logits_TV, labels_T, mask_T, max_T, sums_2T); });
  check_shard(check, ctx, logits_TV, shard, labels_T, mask_T, max_T, sums_2T);
  check.disjoint("sums", sums_2T, "logits", logits_TV);
  check.disjoint("sums", sums_2T, "max", max_T);
  check_apart(check, "sums", sums_2T, labels_T, mask_T);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::cross_entropy_sums(ctx, logits_TV, shard, labels_T, mask_T, max_T, sums_2T);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::cross_entropy_sums)(
          ctx, logits_TV, shard, labels_T, mask_T, max_T, sums_2T);
  }
  check.refuse(ctx.device);
}

void cross_entropy_from_sums(Context& ctx,
                             ConstTensorView sums_2T,
                             ConstTensorView mask_T,
                             TensorView loss_T) {
  const Checks check("cross_entropy_from_sums");
  const Timed timed(ctx, check, [&] { return moves(sums_2T, mask_T, loss_T); });
  check.num_dims("loss", loss_T.shape, 1);
  const std::int64_t tokens = loss_T.shape[0];
  check.is("loss", loss_T, DType::kF64, {tokens});
  check.is("sums", sums_2T, DType::kF64, {2, tokens});
  check.disjoint("loss", loss_T, "sums", sums_2T);
  if (mask_T.data != nullptr) {
    check.storable("mask", mask_T.dtype);
    check.is("mask", mask_T, mask_T.dtype, {tokens});
    check.disjoint("loss", loss_T, "mask", mask_T);
  }
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::cross_entropy_from_sums(ctx, sums_2T, mask_T, loss_T);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::cross_entropy_from_sums)(
          ctx, sums_2T, mask_T, loss_T);
  }
  check.refuse(ctx.device);
}

void cross_entropy_backward(Context& ctx,
                            TensorView logits_TV,
                            VocabShard shard,
                            ConstTensorView labels_T,
                            ConstTensorView mask_T,
                            ConstTensorView max_T,
                            ConstTensorView sums_2T,
                            double scale) {
  const Checks check("cross_entropy_backward");
  const Timed timed(
      ctx, check, [&] { return moves(logits_TV, logits_TV, labels_T, mask_T, max_T, sums_2T); });
  check_shard(check, ctx, logits_TV, shard, labels_T, mask_T, max_T, sums_2T);
  check.disjoint("logits", logits_TV, "max", max_T);
  check.disjoint("logits", logits_TV, "sums", sums_2T);
  check_apart(check, "logits", logits_TV, labels_T, mask_T);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::cross_entropy_backward(
          ctx, logits_TV, shard, labels_T, mask_T, max_T, sums_2T, scale);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::cross_entropy_backward)(
          ctx, logits_TV, shard, labels_T, mask_T, max_T, sums_2T, scale);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
