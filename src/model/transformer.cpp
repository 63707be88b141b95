#include <algorithm>

#include <pecan/ops/attention.hpp>
#include <pecan/ops/cross_entropy.hpp>
#include <pecan/ops/elementwise.hpp>
#include <pecan/ops/embedding.hpp>
#include <pecan/ops/matmul.hpp>
#include <pecan/ops/reduce.hpp>
#include <pecan/ops/rope.hpp>

#include <pecan/model/transformer.hpp>

namespace pecan::model {

using config::PositionEmbedding;
using ops::Accumulate;

Activations Activations::plan(const ModelDims& dims, int ep_size, device::Arena& arena) {
  const std::int64_t tokens = dims.tokens();
  const auto allocate = [&](const Shape& shape) { return arena.allocate(dims.dtype, shape); };
  Activations memory;
  if (dims.position_embedding == PositionEmbedding::kRope) {
    memory.rope_table_SD = arena.allocate(dims.master_dtype(), {dims.sequence, dims.head_dim});
  }
  if (dims.position_embedding == PositionEmbedding::kLearnedAbsolute) {
    memory.positions_T = arena.allocate(DType::kI32, {tokens});
  }
  for (std::int64_t i = 0; i < 2 * dims.num_layers + 1; ++i)
    memory.stream_TH.push_back(allocate({tokens, dims.hidden}));
  for (std::int32_t i = 0; i < dims.num_layers; ++i) {
    memory.attention.push_back(AttentionActivations::plan(dims, arena));
    memory.ffn.push_back(FfnActivations::plan(dims, LayerId{i}, ep_size, arena));
  }
  memory.normed_TH = allocate({tokens, dims.hidden});
  memory.norm = NormStatistics::plan(dims, tokens, arena);
  memory.logits_TV = allocate({tokens, dims.padded_vocab});
  memory.loss_T = arena.allocate(DType::kF64, {tokens});
  memory.d_stream_TH = allocate({tokens, dims.hidden});
  memory.d_normed_TH = allocate({tokens, dims.hidden});
  const std::size_t shared = arena.mark();
  memory.attention_scratch = AttentionScratch::plan(dims, arena);
  arena.release(shared);
  memory.ffn_scratch = FfnScratch::plan(dims, ep_size, arena);
  return memory;
}

MemoryPlan plan_memory(const ModelDims& dims, int ep_size, int threads) {
  device::Arena activations, workspace;
  (void)Activations::plan(dims, ep_size, activations);
  device::Stream stream{device::cpu()};
  Context ctx{device::cpu(), stream, workspace, threads};
  ops::plan_attention(ctx,
                      {dims.micro_batch, dims.sequence, dims.heads, dims.kv_groups, dims.head_dim},
                      dims.dtype);
  ops::plan_matmul(ctx, dims.dtype);
  return {activations.high_water(), workspace.high_water()};
}

Transformer::Transformer(Context& ctx,
                         const ModelDims& dims,
                         parallel::ParamSet& params,
                         const parallel::MeshShape& mesh,
                         comm::Group& ep,
                         Rank rank,
                         Activations& activations)
    : dims_(dims),
      memory_(activations),
      embedding_(&params.at("model.embed_tokens.weight")),
      head_(dims.tied_embeddings ? embedding_ : &params.at("lm_head.weight")),
      norm_(dims, params, "model.norm") {
  for (std::int32_t i = 0; i < dims.num_layers; ++i) {
    const LayerId layer{i};
    attention_.emplace_back(dims, params, layer);
    if (dims.is_moe[std::size_t(i)]) {
      ffn_.push_back(std::make_unique<FfnLayer>(
          std::in_place_type<MoeLayer>, dims, params, layer, mesh, ep, rank));
      moe_layers_.push_back(std::size_t(i));
    } else {
      ffn_.push_back(
          std::make_unique<FfnLayer>(std::in_place_type<DenseFfnLayer>, dims, params, layer));
    }
  }
  if (dims.position_embedding == PositionEmbedding::kRope) {
    ops::rope_table(ctx, dims.rotary_base, memory_.rope_table_SD);
  }
  if (dims.position_embedding == PositionEmbedding::kLearnedAbsolute) {
    PECAN_EXPECTS(dims.sequence <= dims.max_positions);
    positions_ = &params.at("model.embed_positions.weight");
    std::int64_t t = 0;
    for (std::int32_t& position : memory_.positions_T.as<std::int32_t>()) {
      position = std::int32_t(t++ % dims.sequence);
    }
  }
}

ConstTensorView Transformer::positions_of(const Batch& batch) const {
  return batch.positions_T.data == nullptr ? ConstTensorView(memory_.positions_T)
                                           : batch.positions_T;
}

TokenPlaces Transformer::places_of(const Batch& batch) const {
  return {memory_.rope_table_SD, batch.positions_T, batch.document_start_T};
}

void Transformer::embed(Context& ctx, const Batch& batch) {
  const TensorView x_TH = memory_.stream_TH[0];
  ops::embedding_forward(ctx, batch.tokens_T, embedding_->weight, x_TH);
  if (positions_ == nullptr) return;
  ops::embedding_forward(ctx, positions_of(batch), positions_->weight, memory_.d_normed_TH);
  ops::add(ctx, memory_.d_normed_TH, x_TH, x_TH);
}

BatchResult Transformer::forward_to_logits(Context& ctx, const Batch& batch) {
  BatchResult result;
  embed(ctx, batch);
  const TokenPlaces places = places_of(batch);
  for (std::size_t i = 0; i < attention_.size(); ++i) {
    const TensorView before = memory_.stream_TH[2 * i];
    const TensorView between = memory_.stream_TH[2 * i + 1];
    const TensorView after = memory_.stream_TH[2 * i + 2];
    attention_[i].forward(ctx, before, places, memory_.attention[i], between);
    if (auto* moe = std::get_if<MoeLayer>(ffn_[i].get())) {
      result.routing.push_back(
          moe->forward(ctx, between, memory_.ffn[i], memory_.ffn_scratch, after));
    } else {
      std::get<DenseFfnLayer>(*ffn_[i]).forward(ctx, between, memory_.ffn[i], after);
    }
  }
  norm_.forward(ctx, memory_.stream_TH.back(), memory_.norm, memory_.normed_TH);
  ops::matmul_forward(ctx, memory_.normed_TH, head_->weight, memory_.logits_TV);
  return result;
}

double Transformer::sum_of_loss(Context& ctx) const {
  return ops::sum(ctx, memory_.loss_T);
}

BatchResult Transformer::forward(Context& ctx, const Batch& batch) {
  BatchResult result = forward_to_logits(ctx, batch);
  ops::cross_entropy_forward(
      ctx, memory_.logits_TV, dims_.vocab, batch.labels_T, batch.mask_T, memory_.loss_T);
  result.loss_sum = sum_of_loss(ctx);
  return result;
}

BatchResult Transformer::forward_backward(Context& ctx, const Batch& batch, double loss_scale) {
  BatchResult result = forward_to_logits(ctx, batch);
  ops::cross_entropy_forward_backward(ctx,
                                      memory_.logits_TV,
                                      dims_.vocab,
                                      batch.labels_T,
                                      batch.mask_T,
                                      loss_scale * batch.loss_weight / double(dims_.tokens()),
                                      memory_.loss_T);
  result.loss_sum = sum_of_loss(ctx);

  const TensorView d_TH = memory_.d_stream_TH;
  ops::matmul_backward_weight(ctx, memory_.logits_TV, memory_.normed_TH, head_->grad);
  ops::matmul_backward_input(
      ctx, memory_.logits_TV, head_->weight, memory_.d_normed_TH, Accumulate::kOverwrite);
  norm_.backward(ctx,
                 memory_.d_normed_TH,
                 memory_.stream_TH.back(),
                 memory_.norm,
                 d_TH,
                 Accumulate::kOverwrite);
  const TokenPlaces places = places_of(batch);
  for (std::size_t i = attention_.size(); i-- > 0;) {
    const TensorView between = memory_.stream_TH[2 * i + 1];
    if (auto* moe = std::get_if<MoeLayer>(ffn_[i].get())) {
      moe->backward(ctx, between, memory_.ffn[i], memory_.ffn_scratch, loss_scale, d_TH);
    } else {
      std::get<DenseFfnLayer>(*ffn_[i]).backward(
          ctx, between, memory_.ffn[i], memory_.ffn_scratch, d_TH);
    }
    attention_[i].backward(ctx,
                           memory_.stream_TH[2 * i],
                           places,
                           memory_.attention[i],
                           memory_.attention_scratch,
                           d_TH);
  }
  ops::embedding_backward(ctx, d_TH, batch.tokens_T, embedding_->grad);
  if (positions_ != nullptr) {
    ops::embedding_backward(ctx, d_TH, positions_of(batch), positions_->grad);
  }
  return result;
}

std::span<const std::int64_t> Transformer::expert_counts(int moe_layer) const {
  const TensorView& counts = memory_.ffn[moe_layers_.at(std::size_t(moe_layer))].counts_E;
  return counts.as<std::int64_t>();
}

std::span<const std::int64_t> Transformer::chosen_counts(int moe_layer) const {
  const TensorView& counts = memory_.ffn[moe_layers_.at(std::size_t(moe_layer))].chosen_counts_E;
  return counts.as<std::int64_t>();
}

std::int64_t Transformer::dispatch_growths() const {
  std::int64_t growths = 0;
  for (const FfnActivations& ffn : memory_.ffn) growths += ffn.dispatch.growths();
  return growths;
}

MoeLayer& Transformer::moe_layer(int moe_layer) {
  return std::get<MoeLayer>(*ffn_[moe_layers_.at(std::size_t(moe_layer))]);
}

}  // namespace pecan::model
