#include <algorithm>

#include <pecan/device/copy.hpp>

#include <pecan/ops/attention.hpp>
#include <pecan/ops/cross_entropy.hpp>
#include <pecan/ops/elementwise.hpp>
#include <pecan/ops/embedding.hpp>
#include <pecan/ops/kernel_plan.hpp>
#include <pecan/ops/matmul.hpp>
#include <pecan/ops/reduce.hpp>
#include <pecan/ops/rope.hpp>

#include <pecan/model/transformer.hpp>

namespace pecan::model {

using config::PositionEmbedding;
using ops::Accumulate;
using parallel::Pass;

namespace {

ProfileSpan phase(const Context& ctx, std::string_view name, LayerId layer = kNoLayer) {
  return {ctx.profile, {.kind = SpanKind::kPhase, .name = name, .layer = layer}};
}

ops::VocabShard vocab_shard(const ModelDims& dims, Rank tp_rank) {
  const std::int64_t first = tp_rank.value * dims.local_vocab();
  return {first, std::clamp<std::int64_t>(dims.vocab - first, 0, dims.local_vocab()), dims.vocab};
}

/// Calls body(first, count) for the pieces in which tokens pass the head.
template <typename Body>
void for_each_head_piece(const ModelDims& dims, Body body) {
  for (std::int64_t first = 0; first < dims.tokens(); first += dims.head_tokens())
    body(first, std::min(dims.head_tokens(), dims.tokens() - first));
}

ops::KernelExtents kernel_extents(const ModelDims& dims) {
  return {.tokens = dims.tokens(),
          .width = std::max({dims.hidden,
                             dims.local_heads() * dims.head_dim,
                             dims.local_kv_groups() * dims.head_dim,
                             dims.ffn / dims.tp,
                             dims.shared_ffn / dims.tp,
                             dims.expert_ffn / dims.etp}),
          .heads = dims.local_heads(),
          .experts = dims.num_moe_layers() > 0 ? dims.num_experts : 0,
          .choices = dims.topk};
}

/// Whether layers take turns in one place, and backward computes again what they held.
bool recomputes(const ModelDims& dims) {
  return dims.recompute == config::RecomputeGranularity::kFull;
}

}  // namespace

Activations Activations::plan(const ModelDims& dims, device::Arena& arena) {
  const std::int64_t tokens = dims.tokens();
  const std::int64_t own_tokens = dims.stream_tokens();
  const auto allocate = [&](const Shape& shape) { return arena.allocate(dims.dtype, shape); };
  Activations memory;
  if (dims.position_embedding == PositionEmbedding::kRope) {
    memory.rope_table_SD = arena.allocate(dims.master_dtype(), {dims.sequence, dims.head_dim});
  }
  if (dims.position_embedding == PositionEmbedding::kLearnedAbsolute) {
    memory.positions_T = arena.allocate(DType::kI32, {tokens});
  }
  for (std::int64_t i = 0; i < 2 * dims.num_layers + 1; ++i) {
    const bool shared = recomputes(dims) && i % 2 == 1 && i > 1;
    memory.stream_tH.push_back(shared ? memory.stream_tH[1] : allocate({own_tokens, dims.hidden}));
  }
  std::vector<RoutingKept> routing(std::size_t(dims.num_layers));
  for (std::size_t i = 0; i < routing.size(); ++i) {
    if (dims.is_moe[i]) routing[i] = RoutingKept::plan(dims, arena);
  }
  const std::size_t first_layer = arena.mark();
  std::size_t end = first_layer;
  for (std::int32_t i = 0; i < dims.num_layers; ++i) {
    if (recomputes(dims)) arena.release(first_layer);
    memory.attention.push_back(AttentionActivations::plan(dims, arena));
    memory.ffn.push_back(FfnActivations::plan(dims, LayerId{i}, arena));
    memory.ffn.back().routing = routing[std::size_t(i)];
    end = std::max(end, arena.mark());
  }
  // What follows lies behind the largest layer.
  (void)arena.allocate(DType::kU8, {std::int64_t(end - arena.mark())});
  memory.normed_tH = allocate({own_tokens, dims.hidden});
  memory.norm = NormStatistics::plan(dims, own_tokens, arena);
  memory.logits_CV = allocate({dims.head_tokens(), dims.local_vocab()});
  memory.loss_T = arena.allocate(DType::kF64, {tokens});
  if (dims.tp > 1) {
    memory.max_C = arena.allocate(DType::kF64, {dims.head_tokens()});
    memory.sums_2C = arena.allocate(DType::kF64, {2 * dims.head_tokens()});
  }
  memory.d_stream_tH = allocate({own_tokens, dims.hidden});
  memory.d_normed_tH = allocate({own_tokens, dims.hidden});
  memory.whole = WholeStream::plan(dims, arena);
  const std::size_t shared = arena.mark();
  memory.attention_scratch = AttentionScratch::plan(dims, arena);
  arena.release(shared);
  memory.ffn_scratch = FfnScratch::plan(dims, arena);
  return memory;
}

MemoryPlan plan_memory(const ModelDims& dims, int threads, device::DeviceKind kind) {
  device::Arena activations, workspace;
  (void)Activations::plan(dims, activations);
  device::Stream stream{device::cpu()};
  Context ctx{device::cpu(), stream, workspace, threads};
  if (kind == device::DeviceKind::kCuda) {
    ops::plan_kernels(ctx, kernel_extents(dims), dims.dtype);
  } else {
    ops::plan_attention(ctx,
                        {dims.micro_batch,
                         dims.sequence,
                         dims.local_heads(),
                         dims.local_kv_groups(),
                         dims.head_dim},
                        dims.dtype);
    ops::plan_matmul(ctx, dims.dtype);
  }
  return {activations.high_water(),
          workspace.high_water(),
          std::size_t(dims.num_moe_layers()) * plan_default_vectors(dims)};
}

comm::SentBytes plan_traffic(const ModelDims& dims,
                             const parallel::MeshShape& mesh,
                             const parallel::MeshPosition& position) {
  using comm::Purpose;
  comm::SentBytes sent;
  const bool again = recomputes(dims);
  const std::vector<std::int64_t> rows(std::size_t(dims.tp), dims.stream_tokens() * dims.hidden);
  const std::int64_t gather =
      dims.shares_stream() ? comm::plan_all_gather_sent(rows, dims.dtype, position.tp) : 0;
  const std::int64_t reduce =
      dims.shares_stream() ? comm::plan_reduce_scatter_sent(rows, dims.dtype, position.tp)
                           : comm::plan_all_reduce_sent(
                                 dims.tokens() * dims.hidden, dims.dtype, dims.tp, position.tp);
  const auto exchange = [&](int forward_gathers, int backward_gathers, int forward_reduces) {
    sent[Purpose::kTensorGather] += forward_gathers * gather;
    sent[Purpose::kTensorGatherBackward] += backward_gathers * gather;
    sent[Purpose::kTensorReduce] += forward_reduces * reduce;
    sent[Purpose::kTensorReduceBackward] += reduce;
  };
  // Embedding and head together: rows go in at one end and come out at the other.
  exchange(1, 1, 1);
  if (dims.tp > 1) {
    for_each_head_piece(dims, [&](std::int64_t, std::int64_t count) {
      for (const std::int64_t numbers : {count, 2 * count})
        sent[Purpose::kLoss] +=
            comm::plan_all_reduce_sent(numbers, DType::kF64, dims.tp, position.tp);
    });
  }
  for (const bool is_moe : dims.is_moe) {
    exchange(again ? 2 : 1, 2, again ? 2 : 1);
    if (!is_moe) {
      exchange(again ? 2 : 1, 2, again ? 2 : 1);
      continue;
    }
    if (dims.shared_ffn > 0) exchange(1, again ? 3 : 2, 1);

    const std::int64_t groups = dims.balance == Balance::kSequence ? dims.micro_batch : 1;
    const std::int64_t counts = groups * dims.num_experts;
    if (dims.balance == Balance::kGlobalBatch) {
      const int rank = position.dp * mesh.tp + position.tp;
      sent[Purpose::kRouting] += comm::plan_all_reduce_sent(counts, DType::kI64, mesh.world, rank);
    } else if (dims.shares_stream()) {
      sent[Purpose::kRouting] +=
          comm::plan_all_reduce_sent(counts, DType::kI64, dims.tp, position.tp);
    }
    sent[Purpose::kDefaultVectors] += plan_default_vectors_sent(dims, mesh, position);
    const std::int64_t slots = dims.stream_tokens() * dims.topk;
    if (dims.capacity_factor > 0 && dims.shares_stream()) {
      const std::vector<std::int64_t> choices(std::size_t(dims.tp), slots);
      for (const DType dtype : {DType::kI32, dims.master_dtype()})
        sent[Purpose::kRouting] += comm::plan_all_gather_sent(choices, dtype, position.tp);
    }
    const int ranks = dims.ep * dims.etp;
    const std::vector<std::int64_t> plans(std::size_t(ranks), dims.num_experts);
    sent[Purpose::kDispatchPlan] += comm::plan_all_gather_sent(plans, DType::kI64, 0);
    // An equal share of the slots for each ep position, to all etp ranks there but itself.
    const std::int64_t rows_sent = slots / dims.ep * (ranks - 1);
    const std::int64_t bytes = rows_sent * dims.hidden * std::int64_t(size_of(dims.dtype));
    for (const Purpose purpose : {Purpose::kDispatch,
                                  Purpose::kCombine,
                                  Purpose::kCombineBackward,
                                  Purpose::kDispatchBackward})
      sent[purpose] += bytes;
    if (again) {
      sent[Purpose::kDispatchAgain] += bytes;
      sent[Purpose::kCombineAgain] += bytes;
    }
  }
  return sent;
}

Transformer::Transformer(Context& ctx,
                         const ModelDims& dims,
                         parallel::ParamSet& params,
                         const parallel::MeshGroups& groups,
                         Activations& activations,
                         std::vector<parallel::StageListener*> listeners)
    : dims_(dims),
      memory_(activations),
      stream_(*groups.tp, dims.sequence_parallel),
      vocab_(vocab_shard(dims, groups.tp->rank())),
      listeners_(std::move(listeners)),
      embedding_(&params.at("model.embed_tokens.weight")),
      head_(dims.tied_embeddings ? embedding_ : &params.at("lm_head.weight")),
      norm_(dims, params, "model.norm") {
  for (std::int32_t i = 0; i < dims.num_layers; ++i) {
    const LayerId layer{i};
    attention_.emplace_back(dims, params, stream_, layer);
    if (dims.is_moe[std::size_t(i)]) {
      ffn_.push_back(std::make_unique<FfnLayer>(std::in_place_type<MoeLayer>,
                                                dims,
                                                params,
                                                params.mesh(),
                                                groups,
                                                stream_,
                                                layer,
                                                ctx.device));
      moe_layers_.push_back(std::size_t(i));
    } else {
      ffn_.push_back(std::make_unique<FfnLayer>(
          std::in_place_type<DenseFfnLayer>, dims, params, stream_, layer));
    }
  }
  if (dims.position_embedding == PositionEmbedding::kRope) {
    ops::rope_table(ctx, dims.rotary_base, memory_.rope_table_SD);
  }
  if (dims.position_embedding == PositionEmbedding::kLearnedAbsolute) {
    PECAN_EXPECTS(dims.sequence <= dims.max_positions);
    positions_ = &params.at("model.embed_positions.weight");
    std::vector<std::int32_t> positions(std::size_t(dims.tokens()));
    for (std::size_t t = 0; t < positions.size(); ++t)
      positions[t] = std::int32_t(std::int64_t(t) % dims.sequence);
    device::upload(
        ctx.stream, const_view_of(std::span<const std::int32_t>(positions)), memory_.positions_T);
  }
}

void Transformer::before_forward(Context& ctx, std::size_t stage) {
  for (parallel::StageListener* listener : listeners_) listener->before_forward(ctx, int(stage));
}

void Transformer::before_backward(Context& ctx, std::size_t stage) {
  for (parallel::StageListener* listener : listeners_) listener->before_backward(ctx, int(stage));
}

void Transformer::after_backward(Context& ctx, std::size_t stage) {
  for (parallel::StageListener* listener : listeners_) listener->after_backward(ctx, int(stage));
}

void Transformer::begin_step(Context& ctx) {
  for (const std::size_t layer : moe_layers_) std::get<MoeLayer>(*ffn_[layer]).begin_step(ctx);
}

void Transformer::undo_step(Context& ctx) {
  for_each_default_vectors([&](DefaultVectors& vectors) { vectors.undo_step(ctx); });
}

void Transformer::gather_default_vectors(Context& ctx) {
  for_each_default_vectors([&](DefaultVectors& vectors) { vectors.gather(ctx); });
}

ConstTensorView Transformer::positions_of(const Batch& batch) const {
  const ConstTensorView positions_T =
      batch.positions_T.data == nullptr ? ConstTensorView(memory_.positions_T) : batch.positions_T;
  return stream_.own_rows(positions_T);
}

TokenPlaces Transformer::places_of(const Batch& batch) const {
  return {memory_.rope_table_SD, batch.positions_T, batch.document_start_T};
}

void Transformer::embed(Context& ctx, const Batch& batch) {
  before_forward(ctx, 0);
  const TensorView x_tH = memory_.stream_tH[0];
  const TensorView whole_TH = memory_.whole.first_TH;
  ops::embedding_forward(
      ctx, batch.tokens_T, embedding_->weight, vocab_, stream_.part(x_tH, whole_TH));
  stream_.reduce(ctx, x_tH, whole_TH, kNoLayer, Pass::kForward);
  if (positions_ == nullptr) return;
  ops::embedding_forward(ctx,
                         positions_of(batch),
                         positions_->weight,
                         ops::VocabShard::whole(dims_.max_positions),
                         memory_.d_normed_tH);
  ops::add(ctx, memory_.d_normed_tH, x_tH, x_tH);
}

BatchResult Transformer::forward_stream(Context& ctx, const Batch& batch, Averages averages) {
  const ProfileSpan forward = phase(ctx, "forward");
  BatchResult result;
  embed(ctx, batch);
  const TokenPlaces places = places_of(batch);
  for (std::size_t i = 0; i < attention_.size(); ++i) {
    const ProfileSpan layer = phase(ctx, "layer", LayerId{std::int32_t(i)});
    before_forward(ctx, i + 1);
    const TensorView before = memory_.stream_tH[2 * i];
    const TensorView between = memory_.stream_tH[2 * i + 1];
    const TensorView after = memory_.stream_tH[2 * i + 2];
    attention_[i].forward(ctx, before, places, memory_.attention[i], memory_.whole, between);
    if (auto* moe = std::get_if<MoeLayer>(ffn_[i].get())) {
      result.routing.push_back(moe->forward(
          ctx, between, memory_.ffn[i], memory_.ffn_scratch, memory_.whole, averages, after));
    } else {
      std::get<DenseFfnLayer>(*ffn_[i]).forward(ctx, between, memory_.ffn[i], memory_.whole, after);
    }
  }
  before_forward(ctx, attention_.size() + 1);
  norm_.forward(ctx, memory_.stream_tH.back(), memory_.norm, memory_.normed_tH);
  return result;
}

ConstTensorView Transformer::head_input(Context& ctx) {
  return stream_.gather(ctx, memory_.normed_tH, memory_.whole.first_TH, kNoLayer, Pass::kForward);
}

template <typename Body>
void Transformer::for_each_piece(Context& ctx,
                                 const Batch& batch,
                                 ConstTensorView normed_TH,
                                 Body body) {
  for_each_head_piece(dims_, [&](std::int64_t first, std::int64_t count) {
    HeadPiece piece{first,
                    memory_.logits_CV.rows(0, count),
                    batch.labels_T.rows(first, count),
                    batch.mask_T.data == nullptr ? batch.mask_T : batch.mask_T.rows(first, count),
                    memory_.loss_T.rows(first, count)};
    if (dims_.tp > 1) {
      piece.max_C = memory_.max_C.rows(0, count);
      piece.sums_2C = memory_.sums_2C.rows(0, 2 * count).reshaped({2, count});
    }
    ops::matmul_forward(ctx, normed_TH.rows(first, count), head_->weight, piece.logits_CV);
    body(piece);
  });
}

void Transformer::recompute_layer(Context& ctx, std::size_t i, const TokenPlaces& places) {
  const TensorView between = memory_.stream_tH[2 * i + 1];
  attention_[i].forward(
      ctx, memory_.stream_tH[2 * i], places, memory_.attention[i], memory_.whole, between);
  // A MoE layer routes no token anew: its backward does the rest by the routing it kept.
  if (auto* dense = std::get_if<DenseFfnLayer>(ffn_[i].get()))
    dense->forward(ctx, between, memory_.ffn[i], memory_.whole, memory_.stream_tH[2 * i + 2]);
}

double Transformer::sum_of_loss(Context& ctx) const {
  return stream_.tp().rank().value == 0 ? ops::sum(ctx, memory_.loss_T) : 0;
}

void Transformer::measure_loss(Context& ctx, const HeadPiece& piece) {
  const comm::Tag tag{comm::Purpose::kLoss};
  ops::cross_entropy_max(ctx, piece.logits_CV, vocab_, piece.max_C);
  stream_.tp().all_reduce(ctx, piece.max_C, comm::ReduceOp::kMax, tag).wait();
  ops::cross_entropy_sums(
      ctx, piece.logits_CV, vocab_, piece.labels_C, piece.mask_C, piece.max_C, piece.sums_2C);
  stream_.tp().all_reduce(ctx, piece.sums_2C, comm::ReduceOp::kSum, tag).wait();
  ops::cross_entropy_from_sums(ctx, piece.sums_2C, piece.mask_C, piece.loss_C);
}

BatchResult Transformer::forward(Context& ctx, const Batch& batch) {
  begin_step(ctx);
  BatchResult result = forward_stream(ctx, batch, Averages::kFrozen);
  for_each_piece(ctx, batch, head_input(ctx), [&](const HeadPiece& piece) {
    if (dims_.tp > 1) return measure_loss(ctx, piece);
    ops::cross_entropy_forward(
        ctx, piece.logits_CV, dims_.vocab, piece.labels_C, piece.mask_C, piece.loss_C);
  });
  result.loss_sum = sum_of_loss(ctx);
  return result;
}

void Transformer::pass_head(Context& ctx, const Batch& batch, double scale) {
  const ProfileSpan head = phase(ctx, "head");
  const ConstTensorView normed_TH = head_input(ctx);
  const TensorView d_normed_TH = stream_.part(memory_.d_normed_tH, memory_.whole.second_TH);
  for_each_piece(ctx, batch, normed_TH, [&](const HeadPiece& piece) {
    const std::int64_t count = piece.logits_CV.shape[0];
    if (dims_.tp > 1) {
      measure_loss(ctx, piece);
      ops::cross_entropy_backward(ctx,
                                  piece.logits_CV,
                                  vocab_,
                                  piece.labels_C,
                                  piece.mask_C,
                                  piece.max_C,
                                  piece.sums_2C,
                                  scale);
    } else {
      ops::cross_entropy_forward_backward(
          ctx, piece.logits_CV, dims_.vocab, piece.labels_C, piece.mask_C, scale, piece.loss_C);
    }
    ops::matmul_backward_weight(
        ctx, piece.logits_CV, normed_TH.rows(piece.first, count), head_->grad);
    ops::matmul_backward_input(ctx,
                               piece.logits_CV,
                               head_->weight,
                               d_normed_TH.rows(piece.first, count),
                               Accumulate::kOverwrite);
  });
}

BatchResult Transformer::forward_backward(Context& ctx, const Batch& batch, double loss_scale) {
  BatchResult result = forward_stream(ctx, batch, Averages::kFollow);
  const std::size_t last_stage = attention_.size() + 1;
  before_backward(ctx, last_stage);
  pass_head(ctx, batch, loss_scale * batch.loss_weight / double(dims_.tokens()));
  result.loss_sum = sum_of_loss(ctx);

  const ProfileSpan backward = phase(ctx, "backward");
  const WholeStream& whole = memory_.whole;
  const TensorView d_tH = memory_.d_stream_tH;
  stream_.reduce(ctx, memory_.d_normed_tH, whole.second_TH, kNoLayer, Pass::kBackward);
  norm_.backward(ctx,
                 memory_.d_normed_tH,
                 memory_.stream_tH.back(),
                 memory_.norm,
                 d_tH,
                 Accumulate::kOverwrite);
  after_backward(ctx, last_stage);
  const TokenPlaces places = places_of(batch);
  for (std::size_t i = attention_.size(); i-- > 0;) {
    const ProfileSpan layer = phase(ctx, "layer backward", LayerId{std::int32_t(i)});
    before_backward(ctx, i + 1);
    if (recomputes(dims_)) recompute_layer(ctx, i, places);
    const TensorView between = memory_.stream_tH[2 * i + 1];
    if (auto* moe = std::get_if<MoeLayer>(ffn_[i].get())) {
      moe->backward(ctx, between, memory_.ffn[i], memory_.ffn_scratch, whole, loss_scale, d_tH);
    } else {
      std::get<DenseFfnLayer>(*ffn_[i]).backward(
          ctx, between, memory_.ffn[i], memory_.ffn_scratch, whole, d_tH);
    }
    attention_[i].backward(ctx,
                           memory_.stream_tH[2 * i],
                           places,
                           memory_.attention[i],
                           memory_.attention_scratch,
                           whole,
                           d_tH);
    after_backward(ctx, i + 1);
  }
  before_backward(ctx, 0);
  if (positions_ != nullptr) {
    ops::embedding_backward(ctx,
                            d_tH,
                            positions_of(batch),
                            ops::VocabShard::whole(dims_.max_positions),
                            positions_->grad);
  }
  const ConstTensorView d_TH = stream_.gather(ctx, d_tH, whole.first_TH, kNoLayer, Pass::kBackward);
  ops::embedding_backward(ctx, d_TH, batch.tokens_T, vocab_, embedding_->grad);
  after_backward(ctx, 0);
  return result;
}

std::span<const std::int64_t> Transformer::expert_counts(int moe_layer) const {
  return std::get<MoeLayer>(*ffn_[moe_layers_.at(std::size_t(moe_layer))]).sent_counts();
}

std::span<const std::int64_t> Transformer::chosen_counts(int moe_layer) const {
  return std::get<MoeLayer>(*ffn_[moe_layers_.at(std::size_t(moe_layer))]).chosen_counts();
}

MoeLayer& Transformer::moe_layer(int moe_layer) {
  return std::get<MoeLayer>(*ffn_[moe_layers_.at(std::size_t(moe_layer))]);
}

}  // namespace pecan::model
