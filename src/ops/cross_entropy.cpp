#include <pecan/ops/cross_entropy.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"

namespace pecan::ops {

using detail::Checks;
using device::DeviceKind;
namespace {

[[nodiscard]] bool is_masked(const ConstTensorView& mask_T, std::int64_t t) {
  if (mask_T.data == nullptr) return false;
  if (mask_T.dtype == DType::kBF16) return float(mask_T.as<BFloat16>()[std::size_t(t)]) == 0;
  if (mask_T.dtype == DType::kF64) return mask_T.as<double>()[std::size_t(t)] == 0;
  return mask_T.as<float>()[std::size_t(t)] == 0;
}

void check_loss(const Checks& check,
                const ConstTensorView& logits_TV,
                std::int64_t vocab_size,
                const ConstTensorView& labels_T,
                const ConstTensorView& mask_T,
                const TensorView& loss_T) {
  check.storable("logits", logits_TV.dtype);
  check.num_dims("logits", logits_TV.shape, 2);
  const std::int64_t tokens = logits_TV.shape[0];
  check.is_true(vocab_size >= 1 && vocab_size <= logits_TV.shape[1],
                "vocab_size must be at least 1 and at most the columns of logits");
  check.is("labels", labels_T, DType::kI32, {tokens});
  check.is("loss", loss_T, DType::kF64, {tokens});
  check.disjoint("loss", loss_T, "logits", logits_TV);
  check.disjoint("loss", loss_T, "labels", labels_T);
  if (mask_T.data != nullptr) {
    check.is("mask", mask_T, logits_TV.dtype, {tokens});
    check.disjoint("loss", loss_T, "mask", mask_T);
  }
  const auto labels = labels_T.as<std::int32_t>();
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t label = labels[std::size_t(t)];
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

}  // namespace

void cross_entropy_forward(Context& ctx,
                           ConstTensorView logits_TV,
                           std::int64_t vocab_size,
                           ConstTensorView labels_T,
                           ConstTensorView mask_T,
                           TensorView loss_T) {
  const Checks check("cross_entropy_forward");
  check_loss(check, logits_TV, vocab_size, labels_T, mask_T, loss_T);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::cross_entropy_forward(ctx, logits_TV, vocab_size, labels_T, mask_T, loss_T);
    case DeviceKind::kCuda:
      break;
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
  check_loss(check, logits_TV, vocab_size, labels_T, mask_T, loss_T);
  check.disjoint("logits", logits_TV, "labels", labels_T);
  if (mask_T.data != nullptr) check.disjoint("logits", logits_TV, "mask", mask_T);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::cross_entropy_forward_backward(
          ctx, logits_TV, vocab_size, labels_T, mask_T, scale, loss_T);
    case DeviceKind::kCuda:
      break;
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
