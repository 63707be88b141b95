#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include <pecan/core/log.hpp>

#include <pecan/device/copy.hpp>

#include <pecan/ops/capacity.hpp>
#include <pecan/ops/elementwise.hpp>
#include <pecan/ops/matmul.hpp>
#include <pecan/ops/permute.hpp>

#include <pecan/model/moe.hpp>

namespace pecan::model {
namespace {

using comm::Purpose;
using ops::Accumulate;
using parallel::Pass;

std::string norm_name(LayerId layer) {
  return layer_name(layer) + ".post_attention_layernorm";
}

ops::RouterScores scores_of(const ModelDims& dims) {
  if (dims.score_function == config::ScoreFunction::kSigmoid) return ops::RouterScores::kSigmoid;
  return dims.router_pre_softmax ? ops::RouterScores::kSoftmaxThenTopk
                                 : ops::RouterScores::kTopkThenSoftmax;
}

ops::DropPolicy drop_policy_of(const ModelDims& dims) {
  return dims.drop_policy == config::TokenDropPolicy::kProbs ? ops::DropPolicy::kProbs
                                                             : ops::DropPolicy::kPosition;
}

}  // namespace

void update_expert_bias(TensorView bias_E, std::span<const double> counts_E, double rate) {
  PECAN_VALIDATE(bias_E.num_elements() == std::int64_t(counts_E.size()),
                 ShapeError,
                 "update_expert_bias: {} counts for {} experts",
                 counts_E.size(),
                 bias_E.num_elements());
  const double mean = std::accumulate(counts_E.begin(), counts_E.end(), 0.0) /
                      double(std::max<std::size_t>(1, counts_E.size()));
  const auto update = [&](auto bias) {
    using T = typename decltype(bias)::value_type;
    for (std::size_t e = 0; e < bias.size(); ++e) {
      const double sign = double(counts_E[e] < mean) - double(counts_E[e] > mean);
      bias[e] = T(double(bias[e]) + rate * sign);
    }
  };
  if (bias_E.dtype == DType::kF64) {
    update(bias_E.as<double>());
  } else {
    update(bias_E.as<float>());
  }
}

std::int64_t most_dispatch_rows(const ModelDims& dims) {
  const std::int64_t ranks = std::int64_t(dims.ep) * dims.etp;
  const std::int64_t local_experts = dims.num_experts / dims.ep;
  const std::int64_t all = ranks * dims.stream_tokens() * std::min(dims.topk, local_experts);
  if (dims.capacity_factor <= 0) return all;
  // A dispatch group may begin and end inside a tensor-parallel group.
  const std::int64_t micro_batches =
      std::min(ranks, dims.shares_stream() ? (ranks + 2 * dims.tp - 2) / dims.tp : ranks);
  return std::min(all, local_experts * dims.capacity() * micro_batches);
}

std::int64_t planned_dispatch_rows(const ModelDims& dims) {
  const std::int64_t ranks = std::int64_t(dims.ep) * dims.etp;
  const std::int64_t one_token = ranks * std::min(dims.topk, dims.num_experts / dims.ep);
  const double even = double(dims.stream_tokens() * dims.topk * dims.etp);
  return std::min(most_dispatch_rows(dims),
                  std::max(one_token, std::int64_t(std::ceil(dims.dispatch_buffer_factor * even))));
}

RoutingKept RoutingKept::plan(const ModelDims& dims, device::Arena& arena) {
  const std::int64_t tokens = dims.stream_tokens();
  const std::int64_t groups = dims.balance == Balance::kSequence ? dims.micro_batch : 1;
  RoutingKept kept;
  kept.logits_tE = arena.allocate(dims.master_dtype(), {tokens, dims.num_experts});
  kept.probs_tE = arena.allocate(dims.master_dtype(), {tokens, dims.num_experts});
  kept.ids_tK = arena.allocate(DType::kI32, {tokens, dims.topk});
  kept.weights_tK = arena.allocate(dims.master_dtype(), {tokens, dims.topk});
  kept.for_host_N = arena.allocate(DType::kI64, {dims.num_experts + 2});
  kept.counts_E = kept.for_host_N.rows(0, dims.num_experts);
  kept.losses_2 = kept.for_host_N.rows(dims.num_experts, 2);
  kept.losses_2.dtype = DType::kF64;
  kept.balance_counts_GE = arena.allocate(DType::kI64, {groups, dims.num_experts});
  kept.kept_ids_tK = kept.ids_tK;
  if (dims.capacity_factor > 0) {
    kept.kept_ids_tK = arena.allocate(DType::kI32, {tokens, dims.topk});
    kept.chosen_counts_E = arena.allocate(DType::kI64, {dims.num_experts});
  }
  kept.order_P = arena.allocate(DType::kI32, {tokens * dims.topk});
  kept.positions_tK = arena.allocate(DType::kI32, {tokens, dims.topk});
  return kept;
}

FfnActivations FfnActivations::plan(const ModelDims& dims, LayerId layer, device::Arena& arena) {
  const std::int64_t tokens = dims.stream_tokens();
  FfnActivations kept;
  kept.normed_tH = arena.allocate(dims.dtype, {tokens, dims.hidden});
  kept.norm = NormStatistics::plan(dims, tokens, arena);
  if (!dims.is_moe[std::size_t(layer.value)]) {
    kept.dense = MlpActivations::plan(dims, dims.tokens(), dims.ffn / dims.tp, arena);
    return kept;
  }
  if (dims.shared_ffn > 0)
    kept.dense = MlpActivations::plan(dims, dims.tokens(), dims.shared_ffn / dims.tp, arena);
  kept.returned_PH = arena.allocate(dims.dtype, {tokens * dims.topk, dims.hidden});
  const std::int64_t rows = planned_dispatch_rows(dims);
  kept.dispatch.x_RH = arena.allocate(dims.dtype, {rows, dims.hidden});
  const std::int64_t ffn = dims.expert_ffn / dims.etp;
  kept.dispatch.experts = MlpActivations::plan(dims, rows, ffn, arena);
  if (dims.expert_compute == config::ExpertCompute::kBlockSparse) {
    const std::int64_t num_bytes =
        ops::BlockTopology::max_device_bytes(rows, dims.num_experts / dims.ep, ffn);
    kept.dispatch.topology = arena.allocate(DType::kU8, {num_bytes});
  }
  return kept;
}

FfnScratch FfnScratch::plan(const ModelDims& dims, device::Arena& arena) {
  const std::int64_t tokens = dims.stream_tokens();
  const std::int64_t slots = tokens * dims.topk;
  FfnScratch scratch;
  scratch.d_normed_tH = arena.allocate(dims.dtype, {tokens, dims.hidden});
  if (dims.num_moe_layers() == 0) return scratch;
  scratch.d_logits_tE = arena.allocate(dims.master_dtype(), {tokens, dims.num_experts});
  scratch.d_weights_tK = arena.allocate(dims.master_dtype(), {tokens, dims.topk});
  if (dims.dtype != dims.master_dtype())
    scratch.router_tH = arena.allocate(dims.master_dtype(), {tokens, dims.hidden});
  scratch.sent_PH = arena.allocate(dims.dtype, {slots, dims.hidden});
  if (dims.etp > 1) scratch.copies_PH = arena.allocate(dims.dtype, {slots * dims.etp, dims.hidden});
  const std::int64_t rows = planned_dispatch_rows(dims);
  scratch.staging_RH = arena.allocate(dims.dtype, {rows, dims.hidden});
  scratch.y_RH = arena.allocate(dims.dtype, {rows, dims.hidden});
  if (dims.capacity_factor > 0 && dims.shares_stream()) {
    scratch.ids_TK = arena.allocate(DType::kI32, {dims.tokens(), dims.topk});
    scratch.weights_TK = arena.allocate(dims.master_dtype(), {dims.tokens(), dims.topk});
    scratch.kept_ids_TK = arena.allocate(DType::kI32, {dims.tokens(), dims.topk});
    scratch.counts_E = arena.allocate(DType::kI64, {dims.num_experts});
  }
  scratch.defaults = DefaultVectorScratch::plan(dims, arena);
  return scratch;
}

DenseFfnLayer::DenseFfnLayer(const ModelDims& dims,
                             parallel::ParamSet& params,
                             const parallel::StreamExchange& stream,
                             LayerId layer)
    : stream_(stream),
      layer_(layer),
      norm_(dims, params, norm_name(layer)),
      mlp_(dims, params, layer_name(layer) + ".mlp") {}

void DenseFfnLayer::forward(Context& ctx,
                            ConstTensorView x_tH,
                            FfnActivations& kept,
                            const WholeStream& whole,
                            TensorView y_tH) const {
  norm_.forward(ctx, x_tH, kept.norm, kept.normed_tH);
  const ConstTensorView normed_TH =
      stream_.gather(ctx, kept.normed_tH, whole.first_TH, layer_, Pass::kForward);
  mlp_.forward_part(ctx, normed_TH, kept.dense, stream_.part(y_tH, whole.second_TH));
  stream_.reduce(ctx, y_tH, whole.second_TH, layer_, Pass::kForward);
  mlp_.add_bias(ctx, y_tH);
  ops::add(ctx, x_tH, y_tH, y_tH);
}

void DenseFfnLayer::backward(Context& ctx,
                             ConstTensorView x_tH,
                             FfnActivations& kept,
                             FfnScratch& scratch,
                             const WholeStream& whole,
                             TensorView d_tH) const {
  const ConstTensorView d_TH = stream_.gather(ctx, d_tH, whole.first_TH, layer_, Pass::kBackward);
  const ConstTensorView normed_TH =
      stream_.gather(ctx, kept.normed_tH, whole.second_TH, layer_, Pass::kBackward);
  mlp_.backward(ctx,
                d_TH,
                normed_TH,
                kept.dense,
                stream_.part(scratch.d_normed_tH, whole.first_TH),
                Accumulate::kOverwrite,
                WeightGradient::kOn);
  stream_.reduce(ctx, scratch.d_normed_tH, whole.first_TH, layer_, Pass::kBackward);
  norm_.backward(ctx, scratch.d_normed_tH, x_tH, kept.norm, d_tH, Accumulate::kAdd);
}

MoeLayer::MoeLayer(const ModelDims& dims,
                   parallel::ParamSet& params,
                   const parallel::MeshShape& mesh,
                   const parallel::MeshGroups& groups,
                   const parallel::StreamExchange& stream,
                   LayerId layer,
                   device::Device device)
    : dims_(dims),
      groups_(groups),
      stream_(stream),
      layer_(layer),
      norm_(dims, params, norm_name(layer)),
      router_(&params.at(layer_name(layer) + ".mlp.gate.weight")),
      experts_(dims, params, layer, mesh, groups.world->rank()),
      exchange_(*groups.dispatch, {mesh.ep, mesh.etp, int(dims.num_experts)}, layer),
      max_rows_(planned_dispatch_rows(dims)),
      step_counts_E_(std::size_t(dims.num_experts)) {
  PECAN_EXPECTS(dims.tp == 1 || dims.shares_stream());
  // Ranks go on where others stop, and layers start at different experts, so that what is left
  // over does not always fall to the first ones.
  const parallel::MeshPosition at = parallel::position_of(mesh, groups.world->rank());
  first_in_turn_ = (at.dp * dims.tokens() + at.tp * dims.stream_tokens()) * dims.topk + layer.value;
  if (dims.shared_ffn > 0) shared_.emplace(dims, params, layer_name(layer) + ".mlp.shared_expert");
  if (dims.capacity_factor > 0) chosen_counts_E_.resize(std::size_t(dims.num_experts));
  if (dims.expert_bias) {
    const std::size_t num_bytes = std::size_t(dims.num_experts) * size_of(dims.master_dtype());
    expert_bias_ = device::Buffer(device::cpu(), num_bytes);
    if (device.kind != device::DeviceKind::kCpu) bias_here_ = device::Buffer(device, num_bytes);
  }
  if (dims.default_vectors) defaults_.emplace(device, dims, groups, layer);
}

void MoeLayer::begin_step(Context& ctx) {
  std::ranges::fill(step_counts_E_, 0);
  step_tokens_ = 0;
  if (bias_here_.size() > 0) device::upload(ctx.stream, expert_bias(), bias_in(bias_here_));
  if (defaults_) defaults_->begin_step();
}

ops::RouterOptions MoeLayer::router_options() const {
  return {.scores = scores_of(dims_),
          .scaling_factor = dims_.router_scaling,
          .num_groups = dims_.num_groups,
          .group_topk = dims_.group_topk,
          .choice = dims_.force_balance ? ops::RouterChoice::kInTurn : ops::RouterChoice::kBest,
          .first_in_turn = first_in_turn_};
}

TensorView MoeLayer::expert_bias() const {
  if (!dims_.expert_bias) return {};
  return bias_in(expert_bias_);
}

TensorView MoeLayer::bias_in(const device::Buffer& memory) const {
  return {memory.data(), dims_.master_dtype(), Shape{dims_.num_experts}};
}

void MoeLayer::sum_over_step(Context& ctx, TensorView counts_1E) {
  {
    const device::HostCopy<std::int64_t> counts(ctx, counts_1E);
    std::ranges::transform(step_counts_E_, counts.values(), step_counts_E_.begin(), std::plus<>());
  }
  device::upload(
      ctx.stream,
      const_view_of(std::span<const std::int64_t>(step_counts_E_)).reshaped(counts_1E.shape),
      counts_1E);
}

ConstTensorView MoeLayer::router_input(Context& ctx,
                                       const FfnActivations& kept,
                                       const FfnScratch& scratch) const {
  if (dims_.dtype == dims_.master_dtype()) return kept.normed_tH;
  ops::cast(ctx, kept.normed_tH, scratch.router_tH);
  return scratch.router_tH;
}

ops::BalanceGroups MoeLayer::balance_groups() const {
  const std::int64_t own_first =
      dims_.shares_stream() ? stream_.tp().rank().value * dims_.stream_tokens() : 0;
  return {own_first, dims_.balance == Balance::kSequence ? dims_.sequence : dims_.tokens()};
}

void MoeLayer::measure_balance(Context& ctx, RoutingKept& routing) {
  ops::router_counts(ctx,
                     router_options(),
                     routing.logits_tE,
                     routing.probs_tE,
                     routing.ids_tK,
                     balance_groups(),
                     routing.balance_counts_GE);
  const comm::Tag tag{Purpose::kRouting, layer_};
  double counted_tokens = double(dims_.tokens()), num_groups = 1, mean_tokens = counted_tokens;
  if (dims_.balance == Balance::kGlobalBatch) {
    groups_.world->all_reduce(ctx, routing.balance_counts_GE, comm::ReduceOp::kSum, tag).wait();
    sum_over_step(ctx, routing.balance_counts_GE);
    step_tokens_ += dims_.tokens() * groups_.dp->size();
    counted_tokens = double(step_tokens_);
  } else {
    if (dims_.shares_stream()) {
      stream_.tp().all_reduce(ctx, routing.balance_counts_GE, comm::ReduceOp::kSum, tag).wait();
    }
    if (dims_.balance == Balance::kSequence) {
      num_groups = double(dims_.micro_batch);
      counted_tokens = mean_tokens = double(dims_.sequence);
    }
  }
  balance_scales_ = {.aux = double(dims_.num_experts) /
                            (double(dims_.topk) * counted_tokens * mean_tokens * num_groups),
                     .z = 1.0 / double(dims_.tokens())};
  ops::router_losses(ctx,
                     routing.logits_tE,
                     routing.probs_tE,
                     routing.balance_counts_GE,
                     balance_groups(),
                     balance_scales_,
                     routing.losses_2);
}

std::int64_t MoeLayer::drop(Context& ctx, RoutingKept& routing, FfnScratch& scratch) {
  if (dims_.capacity_factor <= 0) return 0;
  if (!dims_.shares_stream()) {
    const std::int64_t dropped = ops::drop_over_capacity(ctx,
                                                         drop_policy_of(dims_),
                                                         dims_.capacity(),
                                                         routing.ids_tK,
                                                         routing.weights_tK,
                                                         routing.chosen_counts_E,
                                                         routing.kept_ids_tK);
    const device::HostCopy<std::int64_t> chosen(ctx, routing.chosen_counts_E);
    std::ranges::copy(chosen.values(), chosen_counts_E_.begin());
    return dropped;
  }
  comm::Group& tp = stream_.tp();
  const std::vector<std::int64_t> counts(std::size_t(tp.size()), routing.ids_tK.num_elements());
  const comm::Tag tag{Purpose::kRouting, layer_};
  tp.all_gather_v(ctx, routing.ids_tK, counts, scratch.ids_TK, tag).wait();
  tp.all_gather_v(ctx, routing.weights_tK, counts, scratch.weights_TK, tag).wait();
  (void)ops::drop_over_capacity(ctx,
                                drop_policy_of(dims_),
                                dims_.capacity(),
                                scratch.ids_TK,
                                scratch.weights_TK,
                                scratch.counts_E,
                                scratch.kept_ids_TK);
  ops::copy(ctx, stream_.own_rows(scratch.kept_ids_TK), routing.kept_ids_tK);
  const device::HostCopy<std::int32_t> ids(ctx, routing.ids_tK), kept(ctx, routing.kept_ids_tK);
  std::ranges::fill(chosen_counts_E_, 0);
  for (const std::int32_t id : ids.values()) ++chosen_counts_E_[std::size_t(id)];
  return std::ranges::count(kept.values(), -1);
}

void MoeLayer::warn_of_chunks(std::int64_t max_rows) {
  if (exchange_.num_chunks() <= most_chunks_) return;
  most_chunks_ = exchange_.num_chunks();
  const auto loads = exchange_.loads();
  const auto busiest = std::ranges::max_element(loads);
  const std::int64_t sum = std::accumulate(loads.begin(), loads.end(), std::int64_t{0});
  const int own = groups_.dispatch->rank().value;
  // One of the ranks that are most loaded tells.
  if (own != int(busiest - loads.begin()) * dims_.etp) return;
  PECAN_LOG(kWarn,
            "[model] layer {}: rank {} would receive {} token slots ({:.2f} times the mean), more "
            "than the {} that memory is planned for: the micro-batch is processed in {} chunks; "
            "raise moe.dispatch_buffer_factor (now {}) or strengthen moe.moe_aux_loss_coeff",
            layer_,
            groups_.world->rank(),
            *busiest,
            double(*busiest) * double(loads.size()) / double(std::max<std::int64_t>(1, sum)),
            max_rows,
            exchange_.num_chunks(),
            dims_.dispatch_buffer_factor);
}

RoutingReport MoeLayer::route(Context& ctx, FfnActivations& kept, FfnScratch& scratch) {
  RoutingKept& routing = kept.routing;
  ops::matmul_forward(ctx, router_input(ctx, kept, scratch), router_->weight, routing.logits_tE);
  ops::router_forward(ctx,
                      router_options(),
                      routing.logits_tE,
                      bias_here_.size() > 0 ? bias_in(bias_here_) : expert_bias(),
                      routing.ids_tK,
                      routing.weights_tK,
                      routing.probs_tE);
  measure_balance(ctx, routing);
  const std::int64_t dropped = drop(ctx, routing, scratch);
  std::array<double, 2> losses{};
  const auto order_slots = [&](parallel::TokenRange tokens, std::span<std::int64_t> counts_E) {
    const auto [first, count] = tokens;
    ops::permute_plan(ctx,
                      routing.kept_ids_tK.rows(first, count),
                      routing.counts_E,
                      routing.order_P.rows(first * dims_.topk, count * dims_.topk),
                      routing.positions_tK.rows(first, count));
    const TensorView& numbers = routing.for_host_N;
    const Shape num_bytes{std::int64_t(numbers.num_bytes())};
    const device::HostCopy<std::uint8_t> bytes(ctx, {numbers.data, DType::kU8, num_bytes});
    std::memcpy(counts_E.data(), bytes.values().data(), counts_E.size_bytes());
    std::memcpy(losses.data(), bytes.values().data() + counts_E.size_bytes(), sizeof losses);
  };
  exchange_.plan(ctx, dims_.stream_tokens(), max_rows_, order_slots);
  warn_of_chunks(max_rows_);
  return {losses[0], losses[1], dropped, exchange_.num_chunks()};
}

void MoeLayer::run_experts(
    Context& ctx, int chunk, FfnActivations& kept, FfnScratch& scratch, Purpose purpose) {
  const auto [first, count] = exchange_.tokens_of(chunk);
  const std::int64_t rows = exchange_.num_received(chunk);
  const TensorView sent_SH = scratch.sent_PH.rows(0, exchange_.num_sent(chunk));
  ops::permute_forward(ctx,
                       kept.normed_tH.rows(first, count),
                       kept.routing.order_P.rows(first * dims_.topk, count * dims_.topk),
                       sent_SH);
  exchange_.to_experts(ctx,
                       chunk,
                       sent_SH,
                       kept.dispatch.x_RH.rows(0, rows),
                       scratch.staging_RH.rows(0, rows),
                       scratch.copies_PH,
                       purpose);
  experts_.forward(ctx,
                   exchange_.received_counts(chunk),
                   kept.dispatch.x_RH.rows(0, rows),
                   kept.dispatch.experts,
                   kept.dispatch.topology,
                   scratch.y_RH.rows(0, rows));
}

RoutingReport MoeLayer::forward(Context& ctx,
                                ConstTensorView x_tH,
                                FfnActivations& kept,
                                FfnScratch& scratch,
                                const WholeStream& whole,
                                Averages averages,
                                TensorView y_tH) {
  norm_.forward(ctx, x_tH, kept.norm, kept.normed_tH);
  const RoutingReport report = route(ctx, kept, scratch);
  if (shared_) {
    const ConstTensorView normed_TH =
        stream_.gather(ctx, kept.normed_tH, whole.first_TH, layer_, Pass::kForward);
    shared_->forward_part(ctx, normed_TH, kept.dense, stream_.part(y_tH, whole.second_TH));
    stream_.reduce(ctx, y_tH, whole.second_TH, layer_, Pass::kForward);
    shared_->add_bias(ctx, y_tH);
    ops::add(ctx, x_tH, y_tH, y_tH);
  } else {
    ops::copy(ctx, x_tH, y_tH);
  }
  for (int chunk = 0; chunk < exchange_.num_chunks(); ++chunk) {
    run_experts(ctx, chunk, kept, scratch, Purpose::kDispatch);
    const auto [first, count] = exchange_.tokens_of(chunk);
    const std::int64_t rows = exchange_.num_received(chunk);
    const TensorView returned_SH =
        kept.returned_PH.rows(first * dims_.topk, exchange_.num_sent(chunk));
    exchange_.from_experts(ctx,
                           chunk,
                           scratch.y_RH.rows(0, rows),
                           returned_SH,
                           scratch.staging_RH.rows(0, rows),
                           scratch.copies_PH,
                           Purpose::kCombine);
    if (defaults_ && averages == Averages::kFollow) {
      defaults_->sum_outputs(ctx,
                             returned_SH,
                             kept.routing.order_P.rows(first * dims_.topk, count * dims_.topk),
                             kept.routing.kept_ids_tK.rows(first, count),
                             kept.routing.weights_tK.rows(first, count),
                             scratch.defaults,
                             chunk == 0 ? Accumulate::kOverwrite : Accumulate::kAdd);
    }
    ops::unpermute_forward(ctx,
                           returned_SH,
                           kept.routing.positions_tK.rows(first, count),
                           kept.routing.weights_tK.rows(first, count),
                           y_tH.rows(first, count),
                           Accumulate::kAdd);
  }
  if (defaults_) {
    if (averages == Averages::kFollow) defaults_->update(ctx, scratch.defaults);
    defaults_->forward(ctx,
                       kept.routing.probs_tE,
                       kept.routing.kept_ids_tK,
                       scratch.defaults,
                       scratch.router_tH,
                       y_tH);
  }
  return report;
}

void MoeLayer::recompute_inputs(Context& ctx,
                                ConstTensorView x_tH,
                                FfnActivations& kept,
                                FfnScratch& scratch,
                                const WholeStream& whole) {
  norm_.forward(ctx, x_tH, kept.norm, kept.normed_tH);
  if (!shared_) return;
  const ConstTensorView normed_TH =
      stream_.gather(ctx, kept.normed_tH, whole.first_TH, layer_, Pass::kBackward);
  shared_->forward_part(
      ctx, normed_TH, kept.dense, stream_.part(scratch.d_normed_tH, whole.second_TH));
}

void MoeLayer::backward(Context& ctx,
                        ConstTensorView x_tH,
                        FfnActivations& kept,
                        FfnScratch& scratch,
                        const WholeStream& whole,
                        double loss_scale,
                        TensorView d_tH) {
  RoutingKept& routing = kept.routing;
  const bool recompute = dims_.recompute == config::RecomputeGranularity::kFull;
  if (recompute) recompute_inputs(ctx, x_tH, kept, scratch, whole);
  for (int chunk = 0; chunk < exchange_.num_chunks(); ++chunk) {
    // The memory of received rows holds the last chunk of the forward, or another layer's.
    if (recompute || exchange_.num_chunks() > 1) {
      run_experts(ctx, chunk, kept, scratch, Purpose::kDispatchAgain);
    }
    const auto [first, count] = exchange_.tokens_of(chunk);
    const std::int64_t rows = exchange_.num_received(chunk);
    const TensorView staging_RH = scratch.staging_RH.rows(0, rows);
    const TensorView d_rows_RH = scratch.y_RH.rows(0, rows);
    const TensorView d_sent_SH = scratch.sent_PH.rows(0, exchange_.num_sent(chunk));
    const TensorView returned_SH =
        kept.returned_PH.rows(first * dims_.topk, exchange_.num_sent(chunk));
    if (recompute) {
      exchange_.from_experts(ctx,
                             chunk,
                             d_rows_RH,
                             returned_SH,
                             staging_RH,
                             scratch.copies_PH,
                             Purpose::kCombineAgain);
    }
    ops::unpermute_backward(ctx,
                            d_tH.rows(first, count),
                            returned_SH,
                            routing.positions_tK.rows(first, count),
                            routing.weights_tK.rows(first, count),
                            d_sent_SH,
                            scratch.d_weights_tK.rows(first, count));
    exchange_.to_experts(
        ctx, chunk, d_sent_SH, d_rows_RH, staging_RH, scratch.copies_PH, Purpose::kCombineBackward);
    // The input's gradient may not overwrite the input while weight gradients read it: it goes to
    // the staging rows.
    experts_.backward(ctx,
                      exchange_.received_counts(chunk),
                      d_rows_RH,
                      kept.dispatch.x_RH.rows(0, rows),
                      kept.dispatch.experts,
                      staging_RH);
    exchange_.from_experts(ctx,
                           chunk,
                           staging_RH,
                           d_sent_SH,
                           d_rows_RH,
                           scratch.copies_PH,
                           Purpose::kDispatchBackward);
    ops::permute_backward(ctx,
                          d_sent_SH,
                          routing.positions_tK.rows(first, count),
                          scratch.d_normed_tH.rows(first, count),
                          Accumulate::kOverwrite);
  }

  ops::router_backward(ctx,
                       router_options(),
                       routing.logits_tE,
                       routing.probs_tE,
                       routing.ids_tK,
                       routing.weights_tK,
                       scratch.d_weights_tK,
                       routing.balance_counts_GE,
                       balance_groups(),
                       dims_.aux_loss_coeff * loss_scale * balance_scales_.aux,
                       dims_.z_loss_coeff * loss_scale * balance_scales_.z,
                       scratch.d_logits_tE);
  if (defaults_) {
    defaults_->backward(ctx,
                        d_tH,
                        routing.probs_tE,
                        routing.kept_ids_tK,
                        scratch.defaults,
                        scratch.router_tH,
                        scratch.d_logits_tE);
  }
  ops::matmul_backward_weight(
      ctx, scratch.d_logits_tE, router_input(ctx, kept, scratch), router_->grad);
  if (dims_.dtype == dims_.master_dtype()) {
    ops::matmul_backward_input(
        ctx, scratch.d_logits_tE, router_->weight, scratch.d_normed_tH, Accumulate::kAdd);
  } else {
    ops::matmul_backward_input(
        ctx, scratch.d_logits_tE, router_->weight, scratch.router_tH, Accumulate::kOverwrite);
    ops::axpy(ctx, 1, scratch.router_tH, scratch.d_normed_tH);
  }
  if (shared_) {
    const ConstTensorView d_TH = stream_.gather(ctx, d_tH, whole.first_TH, layer_, Pass::kBackward);
    const ConstTensorView normed_TH =
        stream_.gather(ctx, kept.normed_tH, whole.second_TH, layer_, Pass::kBackward);
    const TensorView d_normed_TH = stream_.part(scratch.d_normed_tH, whole.first_TH);
    shared_->backward(ctx,
                      d_TH,
                      normed_TH,
                      kept.dense,
                      d_normed_TH,
                      stream_.shares() ? Accumulate::kOverwrite : Accumulate::kAdd,
                      WeightGradient::kOn);
    if (stream_.shares()) {
      const TensorView own_tH = stream_.own_rows(whole.first_TH);
      stream_.reduce(ctx, own_tH, whole.first_TH, layer_, Pass::kBackward);
      ops::axpy(ctx, 1, own_tH, scratch.d_normed_tH);
    }
  }
  norm_.backward(ctx, scratch.d_normed_tH, x_tH, kept.norm, d_tH, Accumulate::kAdd);
}

}  // namespace pecan::model
