#include <utility>

#include <pecan/ops/attention.hpp>

#include "ops/attention_tiles.hpp"
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

void check_extents(const Checks& check, const AttentionShape& shape) {
  check.is_true(shape.batch >= 0 && shape.sequence >= 0 && shape.heads >= 1 &&
                    shape.kv_groups >= 1 && shape.head_dim >= 1 &&
                    shape.heads % shape.kv_groups == 0,
                "heads must be a multiple of kv_groups, and both and the head dim positive");
}

void check_tensors(const Checks& check,
                   const AttentionShape& shape,
                   const ConstTensorView& q_TND,
                   const ConstTensorView& k_TGD,
                   const ConstTensorView& v_TGD,
                   const ConstTensorView& out_TND,
                   const ConstTensorView& lse_BNS) {
  check_extents(check, shape);
  const std::int64_t tokens = shape.batch * shape.sequence;
  const DType dtype = q_TND.dtype;
  check.storable("q", dtype);
  check.is("q", q_TND, dtype, {tokens, shape.heads, shape.head_dim});
  check.is("k", k_TGD, dtype, {tokens, shape.kv_groups, shape.head_dim});
  check.is("v", v_TGD, dtype, {tokens, shape.kv_groups, shape.head_dim});
  check.is("out", out_TND, dtype, q_TND.shape);
  check.is("lse", lse_BNS, master_of(dtype), {shape.batch, shape.heads, shape.sequence});
}

void check_documents(const Checks& check,
                     const Context& ctx,
                     const AttentionShape& shape,
                     const ConstTensorView& document_start_T) {
  if (document_start_T.data == nullptr) return;
  check.is("document_start", document_start_T, DType::kI32, {shape.batch * shape.sequence});
  const auto starts = detail::on_host<std::int32_t>(ctx, document_start_T);
  for (std::size_t t = 0; t < starts.size(); ++t) {
    check.is_true(starts[t] >= 0 && starts[t] <= std::int64_t(t) % shape.sequence,
                  "a document starts after the token that belongs to it");
  }
}

/// Of one product of queries and keys, over the pairs that attend to each other.
std::int64_t flops_of_product(const Context& ctx,
                              const AttentionShape& shape,
                              const ConstTensorView& document_start_T) {
  std::int64_t pairs = shape.batch * shape.sequence * (shape.sequence + 1) / 2;
  if (document_start_T.data != nullptr) {
    for (const std::int32_t start : detail::on_host<std::int32_t>(ctx, document_start_T))
      pairs -= start;
  }
  return 2 * pairs * shape.heads * shape.head_dim;
}

}  // namespace

void plan_attention(Context& ctx, const AttentionShape& shape, DType dtype) {
  const Checks check("plan_attention");
  check_extents(check, shape);
  check.storable("q", dtype);
  for (const auto& allocate : {detail::allocate_forward_tiles, detail::allocate_backward_tiles}) {
    const device::ArenaScope scope(ctx.workspace);
    static_cast<void>(allocate(ctx, shape, dtype));
  }
}

void attention_forward(Context& ctx,
                       const AttentionShape& shape,
                       ConstTensorView document_start_T,
                       ConstTensorView q_TND,
                       ConstTensorView k_TGD,
                       ConstTensorView v_TGD,
                       TensorView out_TND,
                       TensorView lse_BNS) {
  const Checks check("attention_forward");
  const Timed timed(ctx, check, [&] {
    constexpr std::int64_t kProducts = 2;  // scores, and the values that they weigh
    Work work = moves(q_TND, k_TGD, v_TGD, out_TND, lse_BNS);
    work.flops = kProducts * flops_of_product(ctx, shape, document_start_T);
    work.dtype = q_TND.dtype;
    return work;
  });
  check_tensors(check, shape, q_TND, k_TGD, v_TGD, out_TND, lse_BNS);
  check_documents(check, ctx, shape, document_start_T);
  check.disjoint("lse", lse_BNS, "out", out_TND);
  for (const auto& [name, input] : {std::pair{"q", q_TND}, {"k", k_TGD}, {"v", v_TGD}}) {
    check.disjoint("out", out_TND, name, input);
    check.disjoint("lse", lse_BNS, name, input);
  }
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      cpu::attention_forward(ctx, shape, document_start_T, q_TND, k_TGD, v_TGD, out_TND, lse_BNS);
      return ctx.advance();
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::attention_forward)(
          ctx, shape, document_start_T, q_TND, k_TGD, v_TGD, out_TND, lse_BNS);
  }
  check.refuse(ctx.device);
}

void attention_backward(Context& ctx,
                        const AttentionShape& shape,
                        ConstTensorView document_start_T,
                        ConstTensorView dout_TND,
                        ConstTensorView q_TND,
                        ConstTensorView k_TGD,
                        ConstTensorView v_TGD,
                        ConstTensorView out_TND,
                        ConstTensorView lse_BNS,
                        TensorView dq_TND,
                        TensorView dk_TGD,
                        TensorView dv_TGD) {
  const Checks check("attention_backward");
  const Timed timed(ctx, check, [&] {
    constexpr std::int64_t kProducts = 5;  // scores again, and gradients of weights, q, k and v
    Work work = moves(dout_TND, q_TND, k_TGD, v_TGD, out_TND, lse_BNS, dq_TND, dk_TGD, dv_TGD);
    work.flops = kProducts * flops_of_product(ctx, shape, document_start_T);
    work.dtype = q_TND.dtype;
    return work;
  });
  check_tensors(check, shape, q_TND, k_TGD, v_TGD, out_TND, lse_BNS);
  check_documents(check, ctx, shape, document_start_T);
  check.is("dout", dout_TND, q_TND.dtype, q_TND.shape);
  check.is("dq", dq_TND, q_TND.dtype, q_TND.shape);
  check.is("dk", dk_TGD, q_TND.dtype, k_TGD.shape);
  check.is("dv", dv_TGD, q_TND.dtype, k_TGD.shape);
  check.disjoint("dq", dq_TND, "dk", dk_TGD);
  check.disjoint("dq", dq_TND, "dv", dv_TGD);
  check.disjoint("dk", dk_TGD, "dv", dv_TGD);
  for (const auto& [out_name, output] : {std::pair{"dq", dq_TND}, {"dk", dk_TGD}, {"dv", dv_TGD}}) {
    for (const auto& [name, input] : {std::pair{"q", q_TND},
                                      {"k", k_TGD},
                                      {"v", v_TGD},
                                      {"out", out_TND},
                                      {"dout", dout_TND},
                                      {"lse", lse_BNS}}) {
      check.disjoint(out_name, output, name, input);
    }
  }
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      cpu::attention_backward(ctx,
                              shape,
                              document_start_T,
                              dout_TND,
                              q_TND,
                              k_TGD,
                              v_TGD,
                              out_TND,
                              lse_BNS,
                              dq_TND,
                              dk_TGD,
                              dv_TGD);
      return ctx.advance();
    case DeviceKind::kCuda:
      return cuda::kernel(check, ctx, &cuda::Table::attention_backward)(ctx,
                                                                        shape,
                                                                        document_start_T,
                                                                        dout_TND,
                                                                        q_TND,
                                                                        k_TGD,
                                                                        v_TGD,
                                                                        out_TND,
                                                                        lse_BNS,
                                                                        dq_TND,
                                                                        dk_TGD,
                                                                        dv_TGD);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
