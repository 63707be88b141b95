#include <pecan/ops/attention.hpp>
#include <pecan/ops/elementwise.hpp>
#include <pecan/ops/matmul.hpp>
#include <pecan/ops/rms_norm.hpp>
#include <pecan/ops/rope.hpp>

#include <pecan/model/attention.hpp>

namespace pecan::model {
namespace {

using ops::Accumulate;

ops::AttentionShape shape_of(const ModelDims& dims) {
  return {dims.micro_batch, dims.sequence, dims.heads, dims.kv_groups, dims.head_dim};
}

/// [T, N, D] seen as [T, N*D].
TensorView merged(const TensorView& x) {
  return x.reshaped(Shape{x.shape[0], x.shape[1] * x.shape[2]});
}

}  // namespace

AttentionActivations AttentionActivations::plan(const ModelDims& dims, device::Arena& arena) {
  const std::int64_t tokens = dims.tokens();
  const auto allocate = [&](const Shape& shape) { return arena.allocate(dims.dtype, shape); };
  AttentionActivations kept;
  kept.normed_TH = allocate({tokens, dims.hidden});
  kept.rstd_T = allocate({tokens});
  kept.q_TND = allocate({tokens, dims.heads, dims.head_dim});
  kept.k_TGD = allocate({tokens, dims.kv_groups, dims.head_dim});
  kept.v_TGD = allocate({tokens, dims.kv_groups, dims.head_dim});
  if (dims.qk_norm) {
    kept.raw_q_TND = allocate({tokens, dims.heads, dims.head_dim});
    kept.raw_k_TGD = allocate({tokens, dims.kv_groups, dims.head_dim});
    kept.q_rstd = allocate({tokens * dims.heads});
    kept.k_rstd = allocate({tokens * dims.kv_groups});
  }
  kept.out_TND = allocate({tokens, dims.heads, dims.head_dim});
  kept.lse_BNS = allocate({dims.micro_batch, dims.heads, dims.sequence});
  return kept;
}

AttentionScratch AttentionScratch::plan(const ModelDims& dims, device::Arena& arena) {
  const std::int64_t tokens = dims.tokens();
  const auto allocate = [&](const Shape& shape) { return arena.allocate(dims.dtype, shape); };
  AttentionScratch scratch;
  scratch.d_normed_TH = allocate({tokens, dims.hidden});
  scratch.d_out_TND = allocate({tokens, dims.heads, dims.head_dim});
  scratch.d_q_TND = allocate({tokens, dims.heads, dims.head_dim});
  scratch.d_k_TGD = allocate({tokens, dims.kv_groups, dims.head_dim});
  scratch.d_v_TGD = allocate({tokens, dims.kv_groups, dims.head_dim});
  return scratch;
}

AttentionLayer::AttentionLayer(const ModelDims& dims, parallel::ParamSet& params, LayerId layer)
    : dims_(dims) {
  const std::string prefix = layer_name(layer);
  norm_ = &params.at(prefix + ".input_layernorm.weight");
  q_ = &params.at(prefix + ".self_attn.q_proj.weight");
  k_ = &params.at(prefix + ".self_attn.k_proj.weight");
  v_ = &params.at(prefix + ".self_attn.v_proj.weight");
  o_ = &params.at(prefix + ".self_attn.o_proj.weight");
  if (dims.qk_norm) {
    q_norm_ = &params.at(prefix + ".self_attn.q_norm.weight");
    k_norm_ = &params.at(prefix + ".self_attn.k_norm.weight");
  }
}

void AttentionLayer::forward(Context& ctx,
                             ConstTensorView x_TH,
                             ConstTensorView table_SD,
                             AttentionActivations& kept,
                             TensorView y_TH) const {
  ops::rms_norm_forward(
      ctx, x_TH, norm_->weight.row_major(), dims_.norm_epsilon, kept.normed_TH, kept.rstd_T);
  const TensorView projected_q = dims_.qk_norm ? kept.raw_q_TND : kept.q_TND;
  const TensorView projected_k = dims_.qk_norm ? kept.raw_k_TGD : kept.k_TGD;
  ops::matmul_forward(ctx, kept.normed_TH, q_->weight, merged(projected_q));
  ops::matmul_forward(ctx, kept.normed_TH, k_->weight, merged(projected_k));
  ops::matmul_forward(ctx, kept.normed_TH, v_->weight, merged(kept.v_TGD));
  if (dims_.qk_norm) {
    ops::rms_norm_forward(ctx,
                          kept.raw_q_TND,
                          q_norm_->weight.row_major(),
                          dims_.norm_epsilon,
                          kept.q_TND,
                          kept.q_rstd);
    ops::rms_norm_forward(ctx,
                          kept.raw_k_TGD,
                          k_norm_->weight.row_major(),
                          dims_.norm_epsilon,
                          kept.k_TGD,
                          kept.k_rstd);
  }
  ops::rope_forward(ctx, table_SD, {}, kept.q_TND);
  ops::rope_forward(ctx, table_SD, {}, kept.k_TGD);
  ops::attention_forward(
      ctx, shape_of(dims_), {}, kept.q_TND, kept.k_TGD, kept.v_TGD, kept.out_TND, kept.lse_BNS);
  ops::matmul_forward(ctx, merged(kept.out_TND), o_->weight, y_TH);
  ops::add(ctx, x_TH, y_TH, y_TH);
}

void AttentionLayer::backward(Context& ctx,
                              ConstTensorView x_TH,
                              ConstTensorView table_SD,
                              AttentionActivations& kept,
                              AttentionScratch& scratch,
                              TensorView d_TH) const {
  ops::matmul_backward_weight(ctx, d_TH, merged(kept.out_TND), o_->grad);
  ops::matmul_backward_input(
      ctx, d_TH, o_->weight, merged(scratch.d_out_TND), Accumulate::kOverwrite);
  ops::attention_backward(ctx,
                          shape_of(dims_),
                          {},
                          scratch.d_out_TND,
                          kept.q_TND,
                          kept.k_TGD,
                          kept.v_TGD,
                          kept.out_TND,
                          kept.lse_BNS,
                          scratch.d_q_TND,
                          scratch.d_k_TGD,
                          scratch.d_v_TGD);
  ops::rope_backward(ctx, table_SD, {}, scratch.d_q_TND);
  ops::rope_backward(ctx, table_SD, {}, scratch.d_k_TGD);
  if (dims_.qk_norm) {
    ops::rms_norm_backward(ctx,
                           scratch.d_q_TND,
                           kept.raw_q_TND,
                           q_norm_->weight.row_major(),
                           kept.q_rstd,
                           scratch.d_q_TND,
                           Accumulate::kOverwrite,
                           q_norm_->grad.row_major());
    ops::rms_norm_backward(ctx,
                           scratch.d_k_TGD,
                           kept.raw_k_TGD,
                           k_norm_->weight.row_major(),
                           kept.k_rstd,
                           scratch.d_k_TGD,
                           Accumulate::kOverwrite,
                           k_norm_->grad.row_major());
  }
  const struct {
    TensorView gradient;
    parallel::Param* param;
    Accumulate accumulate;
  } projections[] = {{merged(scratch.d_q_TND), q_, Accumulate::kOverwrite},
                     {merged(scratch.d_k_TGD), k_, Accumulate::kAdd},
                     {merged(scratch.d_v_TGD), v_, Accumulate::kAdd}};
  for (const auto& projection : projections) {
    ops::matmul_backward_weight(ctx, projection.gradient, kept.normed_TH, projection.param->grad);
    ops::matmul_backward_input(ctx,
                               projection.gradient,
                               projection.param->weight,
                               scratch.d_normed_TH,
                               projection.accumulate);
  }
  ops::rms_norm_backward(ctx,
                         scratch.d_normed_TH,
                         x_TH,
                         norm_->weight.row_major(),
                         kept.rstd_T,
                         d_TH,
                         Accumulate::kAdd,
                         norm_->grad.row_major());
}

}  // namespace pecan::model
