#include <pecan/ops/default_vectors.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::bytes_added_to;
using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;
namespace {

void check_ids(const Checks& check,
               const Context& ctx,
               const ConstTensorView& ids_TK,
               std::int64_t num_experts) {
  for (const std::int32_t id : detail::on_host<std::int32_t>(ctx, ids_TK)) {
    PECAN_VALIDATE(id >= -1 && id < num_experts,
                   ShapeError,
                   "{}: expert {} is chosen of {}",
                   check.op(),
                   id,
                   num_experts);
  }
}

/// probs_TE, ids_TK and another tensor [T, E].
void check_scores(const Checks& check,
                  const Context& ctx,
                  const ConstTensorView& probs_TE,
                  const ConstTensorView& ids_TK,
                  std::string_view name,
                  const ConstTensorView& of_scores_TE) {
  check.floating("probs", probs_TE.dtype);
  check.num_dims("probs", probs_TE.shape, 2);
  check.num_dims("ids", ids_TK.shape, 2);
  check.is("probs", probs_TE, probs_TE.dtype, probs_TE.shape);
  check.is("ids", ids_TK, DType::kI32, {probs_TE.shape[0], ids_TK.shape[1]});
  check.is(name, of_scores_TE, probs_TE.dtype, probs_TE.shape);
  check_ids(check, ctx, ids_TK, probs_TE.shape[1]);
}

}  // namespace

void default_weights_forward(Context& ctx,
                             double scale,
                             ConstTensorView probs_TE,
                             ConstTensorView ids_TK,
                             TensorView weights_TE) {
  const Checks check("default_weights_forward");
  const Timed timed(ctx, check, [&] { return moves(probs_TE, ids_TK, weights_TE); });
  check_scores(check, ctx, probs_TE, ids_TK, "weights", weights_TE);
  check.disjoint("weights", weights_TE, "probs", probs_TE);
  check.disjoint("weights", weights_TE, "ids", ids_TK);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::default_weights_forward(ctx, scale, probs_TE, ids_TK, weights_TE);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::default_weights_forward)(
          ctx, scale, probs_TE, ids_TK, weights_TE);
  }
  check.refuse(ctx.device);
}

void default_weights_backward(Context& ctx,
                              double scale,
                              ConstTensorView probs_TE,
                              ConstTensorView ids_TK,
                              ConstTensorView dweights_TE,
                              TensorView dlogits_TE) {
  const Checks check("default_weights_backward");
  const Timed timed(
      ctx, check, [&] { return moves(probs_TE, ids_TK, dweights_TE, dlogits_TE, dlogits_TE); });
  check_scores(check, ctx, probs_TE, ids_TK, "dweights", dweights_TE);
  check.is("dlogits", dlogits_TE, probs_TE.dtype, probs_TE.shape);
  check.disjoint("dlogits", dlogits_TE, "probs", probs_TE);
  check.disjoint("dlogits", dlogits_TE, "ids", ids_TK);
  check.disjoint("dlogits", dlogits_TE, "dweights", dweights_TE);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::default_weights_backward(ctx, scale, probs_TE, ids_TK, dweights_TE, dlogits_TE);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::default_weights_backward)(
          ctx, scale, probs_TE, ids_TK, dweights_TE, dlogits_TE);
  }
  check.refuse(ctx.device);
}

void expert_output_sums(Context& ctx,
                        ConstTensorView rows_SH,
                        ConstTensorView order_P,
                        ConstTensorView ids_TK,
                        ConstTensorView weights_TK,
                        TensorView sums_EC,
                        Accumulate accumulate) {
  const Checks check("expert_output_sums");
  const Timed timed(ctx, check, [&] {
    Work work = moves(rows_SH, order_P, ids_TK, weights_TK, sums_EC);
    work.bytes += bytes_added_to(sums_EC, accumulate);
    return work;
  });
  check.storable("rows", rows_SH.dtype);
  const DType master = master_of(rows_SH.dtype);
  check.num_dims("rows", rows_SH.shape, 2);
  check.num_dims("ids", ids_TK.shape, 2);
  check.num_dims("sums", sums_EC.shape, 2);
  const std::int64_t slots = ids_TK.num_elements();
  check.is_true(rows_SH.shape[0] <= slots, "there are more rows than slots");
  check.is("rows", rows_SH, rows_SH.dtype, rows_SH.shape);
  check.is("order", order_P, DType::kI32, {slots});
  check.is("ids", ids_TK, DType::kI32, ids_TK.shape);
  check.is("weights", weights_TK, master, ids_TK.shape);
  check.is("sums", sums_EC, master, {sums_EC.shape[0], rows_SH.shape[1] + 1});
  check.disjoint("sums", sums_EC, "rows", rows_SH);
  check.disjoint("sums", sums_EC, "order", order_P);
  check.disjoint("sums", sums_EC, "ids", ids_TK);
  check.disjoint("sums", sums_EC, "weights", weights_TK);
  check_ids(check, ctx, ids_TK, sums_EC.shape[0]);
  std::int64_t last_expert = 0;
  for (const std::int32_t slot :
       detail::on_host<std::int32_t>(ctx, order_P.rows(0, rows_SH.shape[0]))) {
    PECAN_VALIDATE(slot >= 0 && slot < slots,
                   ShapeError,
                   "expert_output_sums: row of slot {} of {}",
                   slot,
                   slots);
    const std::int32_t expert = ids_TK.as<std::int32_t>()[std::size_t(slot)];
    check.is_true(expert >= last_expert, "rows are not in the order of their experts");
    last_expert = expert;
  }
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::expert_output_sums(
          ctx, rows_SH, order_P, ids_TK, weights_TK, sums_EC, accumulate);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::expert_output_sums)(
          ctx, rows_SH, order_P, ids_TK, weights_TK, sums_EC, accumulate);
  }
  check.refuse(ctx.device);
}

void default_vectors_update(Context& ctx,
                            double beta,
                            ConstTensorView sums_EC,
                            TensorView vectors_EH) {
  const Checks check("default_vectors_update");
  const Timed timed(ctx, check, [&] { return moves(sums_EC, vectors_EH, vectors_EH); });
  check.is_true(beta >= 0 && beta < 1, "beta does not lie in [0, 1)");
  check.floating("vectors", vectors_EH.dtype);
  check.num_dims("vectors", vectors_EH.shape, 2);
  check.is("vectors", vectors_EH, vectors_EH.dtype, vectors_EH.shape);
  check.is("sums", sums_EC, vectors_EH.dtype, {vectors_EH.shape[0], vectors_EH.shape[1] + 1});
  check.disjoint("vectors", vectors_EH, "sums", sums_EC);
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::default_vectors_update(ctx, beta, sums_EC, vectors_EH);
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::default_vectors_update)(
          ctx, beta, sums_EC, vectors_EH);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
