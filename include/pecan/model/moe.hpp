#pragma once
/// The feed-forward half of a decoder layer, dense or mixture of experts: y = x + ffn(norm(x)).
/// Legend: T tokens of a micro-batch, t those of the residual stream that this rank holds, K
/// choices, P = t*K slots, of which those not dropped are sent, R slots received, H hidden, E
/// experts, G groups of tokens whose balance is measured.

#include <optional>
#include <span>

#include <pecan/device/device.hpp>

#include <pecan/ops/router.hpp>

#include <pecan/parallel/mesh.hpp>
#include <pecan/parallel/token_exchange.hpp>

#include <pecan/model/default_vectors.hpp>
#include <pecan/model/mlp.hpp>

namespace pecan::model {

/// Memory for received slots that a layer keeps for its backward.
struct DispatchKept {
  TensorView x_RH;
  MlpActivations experts;
  TensorView topology;  ///< of block-sparse experts only, and read on devices alone
};

/// Rows that a rank can receive of a micro-batch at most: all slots of its dispatch group that may
/// go to its experts, or what their capacities let through.
[[nodiscard]] std::int64_t most_dispatch_rows(const ModelDims& dims);
/// Received rows that memory is planned for: dispatch_buffer_factor times an even share, at most
/// all there can be and at least one token of each rank. More are processed in chunks.
[[nodiscard]] std::int64_t planned_dispatch_rows(const ModelDims& dims);

/// What the router settled in forward.
struct RoutingKept {
  TensorView logits_tE, probs_tE, ids_tK, weights_tK;
  TensorView kept_ids_tK;        ///< -1 where a choice is dropped; without a capacity ids_tK itself
  TensorView for_host_N;         ///< counts_E and losses_2, which the host reads at once; i64, f64
  TensorView counts_E;           ///< slots that the last chunk sends
  TensorView chosen_counts_E;    ///< with those dropped, of all; only with a capacity
  TensorView losses_2;           ///< auxiliary and z-loss
  TensorView balance_counts_GE;  ///< those of the auxiliary loss, of all ranks it measures
  TensorView order_P, positions_tK;
  [[nodiscard]] static RoutingKept plan(const ModelDims& dims, device::Arena& arena);
};

struct FfnActivations {
  RoutingKept routing;  ///< of a MoE layer only
  TensorView normed_tH;
  NormStatistics norm;
  MlpActivations dense;    ///< of a dense layer or of the shared expert
  TensorView returned_PH;  ///< what experts made of the slots sent
  DispatchKept dispatch;
  /// All but the routing.
  [[nodiscard]] static FfnActivations plan(const ModelDims& dims,
                                           LayerId layer,
                                           device::Arena& arena);
};
struct FfnScratch {
  TensorView d_normed_tH, d_logits_tE, d_weights_tK, sent_PH;
  TensorView router_tH;  ///< bf16 only: the router's input, and its gradient, in the master type
  TensorView copies_PH;  ///< of slots sent to each of etp ranks
  TensorView staging_RH, y_RH;
  TensorView ids_TK, weights_TK, kept_ids_TK, counts_E;  ///< of whole micro-batches, for capacities
  DefaultVectorScratch defaults;
  [[nodiscard]] static FfnScratch plan(const ModelDims& dims, device::Arena& arena);
};

/// What a MoE layer reports of one micro-batch.
struct RoutingReport {
  double aux_loss = 0;  ///< this rank's term, before its coefficient; summed over tp 1 at balance
  double z_loss = 0;    ///< likewise
  std::int64_t dropped_slots = 0;  ///< choices of this rank's tokens over their expert's capacity
  int dispatch_chunks = 1;
};

/// One step of the router's bias: b_e += rate * sign(mean - n_e), where n_e = counts_E[e] are the
/// slots for which routers of all ranks and micro-batches of the step chose expert e, dropped ones
/// too. bias_E in f32 or f64. Every rank computes the same. Pure.
/// Source: Wang et al., "Auxiliary-Loss-Free Load Balancing" (arXiv 2408.15664), algorithm 1.
/// Differs from the paper: none.
void update_expert_bias(TensorView bias_E, std::span<const double> counts_E, double rate);

class DenseFfnLayer {
 public:
  /// Refers to `dims`, `params` and `stream`, which outlive it.
  DenseFfnLayer(const ModelDims& dims,
                parallel::ParamSet& params,
                const parallel::StreamExchange& stream,
                LayerId layer);
  /// Collective over tp.
  void forward(Context& ctx,
               ConstTensorView x_tH,
               FfnActivations& kept,
               const WholeStream& whole,
               TensorView y_tH) const;
  /// Turns d_tH, the gradient of y, into that of x. Collective over tp.
  void backward(Context& ctx,
                ConstTensorView x_tH,
                FfnActivations& kept,
                FfnScratch& scratch,
                const WholeStream& whole,
                TensorView d_tH) const;

 private:
  const parallel::StreamExchange& stream_;
  LayerId layer_;
  Norm norm_;
  Mlp mlp_;
};

class MoeLayer {
 public:
  /// Refers to `dims`, `params`, `groups` and `stream`, which outlive it. With tp > 1 the stream is
  /// shared out, so that no token is routed twice.
  MoeLayer(const ModelDims& dims,
           parallel::ParamSet& params,
           const parallel::MeshShape& mesh,
           const parallel::MeshGroups& groups,
           const parallel::StreamExchange& stream,
           LayerId layer,
           device::Device device);
  /// Forgets the choices of earlier micro-batches (Balance::kGlobalBatch), and takes the router's
  /// bias as it is now.
  void begin_step(Context& ctx);
  /// Collective over tp and the dispatch group, with Balance::kGlobalBatch, and where default
  /// vectors follow, over the world.
  RoutingReport forward(Context& ctx,
                        ConstTensorView x_tH,
                        FfnActivations& kept,
                        FfnScratch& scratch,
                        const WholeStream& whole,
                        Averages averages,
                        TensorView y_tH);
  /// `loss_scale` is the factor of the main loss, and so of the balancing losses. Collective over
  /// tp and the dispatch group.
  void backward(Context& ctx,
                ConstTensorView x_tH,
                FfnActivations& kept,
                FfnScratch& scratch,
                const WholeStream& whole,
                double loss_scale,
                TensorView d_tH);
  [[nodiscard]] Experts& experts() { return experts_; }
  /// Slots of this rank's tokens in the last forward, by expert: those that were sent, and with
  /// those dropped.
  [[nodiscard]] std::span<const std::int64_t> sent_counts() const {
    return exchange_.sent_counts();
  }
  [[nodiscard]] std::span<const std::int64_t> chosen_counts() const {
    return dims_.capacity_factor > 0 ? std::span(chosen_counts_E_) : exchange_.sent_counts();
  }
  /// The router's bias in memory of the host, E numbers in the master type, 0 at first; the trainer
  /// reads and writes it between steps, alike on all ranks. Without dims.expert_bias its data is
  /// null.
  [[nodiscard]] TensorView expert_bias() const;
  /// Null without dims.default_vectors.
  [[nodiscard]] DefaultVectors* default_vectors() { return defaults_ ? &*defaults_ : nullptr; }

 private:
  [[nodiscard]] ops::RouterOptions router_options() const;
  [[nodiscard]] TensorView bias_in(const device::Buffer& memory) const;
  /// The normed tokens in the master type, which the router computes in.
  [[nodiscard]] ConstTensorView router_input(Context& ctx,
                                             const FfnActivations& kept,
                                             const FfnScratch& scratch) const;
  [[nodiscard]] ops::BalanceGroups balance_groups() const;
  /// Settles choices, drops and the order of slots.
  RoutingReport route(Context& ctx, FfnActivations& kept, FfnScratch& scratch);
  /// Has the losses computed.
  void measure_balance(Context& ctx, RoutingKept& routing);
  /// Adds the choices of this micro-batch to those of the step so far.
  void sum_over_step(Context& ctx, TensorView counts_1E);
  std::int64_t drop(Context& ctx, RoutingKept& routing, FfnScratch& scratch);
  /// What forward kept of x but for the routing and what experts received and returned. Collective
  /// over tp.
  void recompute_inputs(Context& ctx,
                        ConstTensorView x_tH,
                        FfnActivations& kept,
                        FfnScratch& scratch,
                        const WholeStream& whole);
  void warn_of_chunks(std::int64_t max_rows);
  /// The chunk's tokens to their experts, and through them: scratch.y_RH.
  void run_experts(
      Context& ctx, int chunk, FfnActivations& kept, FfnScratch& scratch, comm::Purpose purpose);

  const ModelDims& dims_;
  const parallel::MeshGroups& groups_;
  const parallel::StreamExchange& stream_;
  LayerId layer_;
  Norm norm_;
  parallel::Param* router_;
  std::optional<Mlp> shared_;
  Experts experts_;
  parallel::TokenExchange exchange_;
  device::Buffer expert_bias_;  ///< on the host
  device::Buffer bias_here_;    ///< as of the step's begin, where forward runs on a device
  std::optional<DefaultVectors> defaults_;
  std::int64_t first_in_turn_;
  std::int64_t max_rows_;
  std::vector<std::int64_t> step_counts_E_;  ///< choices of all ranks in the step so far
  std::vector<std::int64_t> chosen_counts_E_;
  std::int64_t step_tokens_ = 0;
  ops::BalanceScales balance_scales_;  ///< of the last forward
  int most_chunks_ = 1;
};

}  // namespace pecan::model
