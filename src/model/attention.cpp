#include <pecan/ops/attention.hpp>
#include <pecan/ops/elementwise.hpp>
#include <pecan/ops/rope.hpp>

#include <pecan/model/attention.hpp>

namespace pecan::model {
namespace {

using ops::Accumulate;
using parallel::Pass;

ops::AttentionShape shape_of(const ModelDims& dims) {
  return {
      dims.micro_batch, dims.sequence, dims.local_heads(), dims.local_kv_groups(), dims.head_dim};
}

/// [T, N, D] seen as [T, N*D].
TensorView merged(const TensorView& x) {
  return x.reshaped(Shape{x.shape[0], x.shape[1] * x.shape[2]});
}

}  // namespace

AttentionActivations AttentionActivations::plan(const ModelDims& dims, device::Arena& arena) {
  const std::int64_t tokens = dims.tokens();
  const std::int64_t heads = dims.local_heads(), kv_groups = dims.local_kv_groups();
  const auto allocate = [&](const Shape& shape) { return arena.allocate(dims.dtype, shape); };
  AttentionActivations kept;
  kept.normed_tH = allocate({dims.stream_tokens(), dims.hidden});
  kept.norm = NormStatistics::plan(dims, dims.stream_tokens(), arena);
  kept.q_TND = allocate({tokens, heads, dims.head_dim});
  kept.k_TGD = allocate({tokens, kv_groups, dims.head_dim});
  kept.v_TGD = allocate({tokens, kv_groups, dims.head_dim});
  if (dims.qk_norm != QkNorm::kNone) {
    const bool per_head = dims.qk_norm == QkNorm::kPerHead;
    kept.raw_q_TND = allocate({tokens, heads, dims.head_dim});
    kept.raw_k_TGD = allocate({tokens, kv_groups, dims.head_dim});
    kept.q_norm = NormStatistics::plan(dims, per_head ? tokens * heads : tokens, arena);
    kept.k_norm = NormStatistics::plan(dims, per_head ? tokens * kv_groups : tokens, arena);
  }
  kept.out_TND = allocate({tokens, heads, dims.head_dim});
  kept.lse_BNS = arena.allocate(dims.master_dtype(), {dims.micro_batch, heads, dims.sequence});
  return kept;
}

AttentionScratch AttentionScratch::plan(const ModelDims& dims, device::Arena& arena) {
  const std::int64_t tokens = dims.tokens();
  const std::int64_t heads = dims.local_heads(), kv_groups = dims.local_kv_groups();
  const auto allocate = [&](const Shape& shape) { return arena.allocate(dims.dtype, shape); };
  AttentionScratch scratch;
  scratch.d_normed_tH = allocate({dims.stream_tokens(), dims.hidden});
  scratch.d_out_TND = allocate({tokens, heads, dims.head_dim});
  scratch.d_q_TND = allocate({tokens, heads, dims.head_dim});
  scratch.d_k_TGD = allocate({tokens, kv_groups, dims.head_dim});
  scratch.d_v_TGD = allocate({tokens, kv_groups, dims.head_dim});
  return scratch;
}

AttentionLayer::AttentionLayer(const ModelDims& dims,
                               parallel::ParamSet& params,
                               const parallel::StreamExchange& stream,
                               LayerId layer)
    : dims_(dims),
      stream_(stream),
      layer_(layer),
      norm_(dims, params, layer_name(layer) + ".input_layernorm"),
      q_(dims, params, layer_name(layer) + ".self_attn.q_proj"),
      k_(dims, params, layer_name(layer) + ".self_attn.k_proj"),
      v_(dims, params, layer_name(layer) + ".self_attn.v_proj"),
      o_(dims, params, layer_name(layer) + ".self_attn.o_proj") {
  if (dims.qk_norm != QkNorm::kNone) {
    q_norm_.emplace(dims, params, layer_name(layer) + ".self_attn.q_norm");
    k_norm_.emplace(dims, params, layer_name(layer) + ".self_attn.k_norm");
  }
}

void AttentionLayer::forward(Context& ctx,
                             ConstTensorView x_tH,
                             const TokenPlaces& places,
                             AttentionActivations& kept,
                             const WholeStream& whole,
                             TensorView y_tH) const {
  norm_.forward(ctx, x_tH, kept.norm, kept.normed_tH);
  const ConstTensorView normed_TH =
      stream_.gather(ctx, kept.normed_tH, whole.first_TH, layer_, Pass::kForward);
  q_.forward(ctx, normed_TH, merged(q_norm_ ? kept.raw_q_TND : kept.q_TND));
  k_.forward(ctx, normed_TH, merged(k_norm_ ? kept.raw_k_TGD : kept.k_TGD));
  v_.forward(ctx, normed_TH, merged(kept.v_TGD));
  if (q_norm_) {
    q_norm_->forward(ctx, kept.raw_q_TND, kept.q_norm, kept.q_TND);
    k_norm_->forward(ctx, kept.raw_k_TGD, kept.k_norm, kept.k_TGD);
  }
  if (dims_.position_embedding == config::PositionEmbedding::kRope) {
    ops::rope_forward(ctx, places.rope_table_SD, places.positions_T, kept.q_TND);
    ops::rope_forward(ctx, places.rope_table_SD, places.positions_T, kept.k_TGD);
  }
  ops::attention_forward(ctx,
                         shape_of(dims_),
                         places.document_start_T,
                         kept.q_TND,
                         kept.k_TGD,
                         kept.v_TGD,
                         kept.out_TND,
                         kept.lse_BNS);
  o_.forward_part(ctx, merged(kept.out_TND), stream_.part(y_tH, whole.first_TH));
  stream_.reduce(ctx, y_tH, whole.first_TH, layer_, Pass::kForward);
  o_.add_bias(ctx, y_tH);
  ops::add(ctx, x_tH, y_tH, y_tH);
}

void AttentionLayer::backward(Context& ctx,
                              ConstTensorView x_tH,
                              const TokenPlaces& places,
                              AttentionActivations& kept,
                              AttentionScratch& scratch,
                              const WholeStream& whole,
                              TensorView d_tH) const {
  const ConstTensorView d_TH = stream_.gather(ctx, d_tH, whole.first_TH, layer_, Pass::kBackward);
  o_.backward_weight(ctx, d_TH, merged(kept.out_TND));
  o_.backward_input(ctx, d_TH, merged(scratch.d_out_TND), Accumulate::kOverwrite);
  ops::attention_backward(ctx,
                          shape_of(dims_),
                          places.document_start_T,
                          scratch.d_out_TND,
                          kept.q_TND,
                          kept.k_TGD,
                          kept.v_TGD,
                          kept.out_TND,
                          kept.lse_BNS,
                          scratch.d_q_TND,
                          scratch.d_k_TGD,
                          scratch.d_v_TGD);
  if (dims_.position_embedding == config::PositionEmbedding::kRope) {
    ops::rope_backward(ctx, places.rope_table_SD, places.positions_T, scratch.d_q_TND);
    ops::rope_backward(ctx, places.rope_table_SD, places.positions_T, scratch.d_k_TGD);
  }
  if (q_norm_) {
    q_norm_->backward(
        ctx, scratch.d_q_TND, kept.raw_q_TND, kept.q_norm, scratch.d_q_TND, Accumulate::kOverwrite);
    k_norm_->backward(
        ctx, scratch.d_k_TGD, kept.raw_k_TGD, kept.k_norm, scratch.d_k_TGD, Accumulate::kOverwrite);
  }
  const ConstTensorView normed_TH =
      stream_.gather(ctx, kept.normed_tH, whole.second_TH, layer_, Pass::kBackward);
  // The gathered gradient of y is no longer needed: parts of that of the norm take its place.
  const TensorView d_normed_TH = stream_.part(scratch.d_normed_tH, whole.first_TH);
  const struct {
    TensorView gradient;
    const Linear& projection;
    Accumulate accumulate;
  } projections[] = {{merged(scratch.d_q_TND), q_, Accumulate::kOverwrite},
                     {merged(scratch.d_k_TGD), k_, Accumulate::kAdd},
                     {merged(scratch.d_v_TGD), v_, Accumulate::kAdd}};
  for (const auto& [gradient, projection, accumulate] : projections) {
    projection.backward_weight(ctx, gradient, normed_TH);
    projection.backward_input(ctx, gradient, d_normed_TH, accumulate);
  }
  stream_.reduce(ctx, scratch.d_normed_tH, whole.first_TH, layer_, Pass::kBackward);
  norm_.backward(ctx, scratch.d_normed_tH, x_tH, kept.norm, d_tH, Accumulate::kAdd);
}

}  // namespace pecan::model
