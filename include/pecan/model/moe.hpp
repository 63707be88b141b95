#pragma once
/// The feed-forward half of a decoder layer, dense or mixture of experts: y = x + ffn(norm(x)).
/// Legend: T tokens, K choices, P = T*K slots, of which those not dropped are sent, R slots
/// received, H hidden, E experts.

#include <algorithm>
#include <optional>
#include <span>

#include <pecan/device/device.hpp>

#include <pecan/ops/router.hpp>

#include <pecan/parallel/token_exchange.hpp>

#include <pecan/model/mlp.hpp>

namespace pecan::model {

/// Memory for received slots: what each layer keeps and what layers share.
struct DispatchKept {
  TensorView x_RH;
  MlpActivations experts;
  [[nodiscard]] static DispatchKept plan(const ModelDims& dims,
                                         std::int64_t rows,
                                         device::Arena& arena);
};
struct DispatchScratch {
  TensorView staging_RH, y_RH;
  [[nodiscard]] static DispatchScratch plan(const ModelDims& dims,
                                            std::int64_t rows,
                                            device::Arena& arena);
};

/// Dispatch memory of `planned` rows that grows when routing sends more: counted and warned about,
/// never fatal.
template <typename Memory>
class Growable {
 public:
  Growable() = default;
  Growable(const ModelDims& dims, std::int64_t planned, device::Arena& arena)
      : capacity_(planned), memory_(Memory::plan(dims, planned, arena)) {}
  /// Memory for at least `rows`, of which there are never more than `most`; former content is lost
  /// when it grows.
  Memory& at_least(Context& ctx, const ModelDims& dims, std::int64_t rows, std::int64_t most) {
    if (rows > capacity_) {
      capacity_ = std::min(rows + rows / 2, most);
      device::Arena measure;
      (void)Memory::plan(dims, capacity_, measure);
      own_ = device::Arena(ctx.device, measure.high_water());
      memory_ = Memory::plan(dims, capacity_, *own_);
      ++growths_;
    }
    return memory_;
  }
  [[nodiscard]] Memory& memory() { return memory_; }
  [[nodiscard]] std::int64_t growths() const { return growths_; }
  [[nodiscard]] std::int64_t capacity() const { return capacity_; }

 private:
  std::int64_t capacity_ = 0;
  Memory memory_;
  std::optional<device::Arena> own_;
  std::int64_t growths_ = 0;
};

/// Rows that a rank can receive at most: all slots of its expert-parallel group, or what its
/// experts' capacities let through.
[[nodiscard]] std::int64_t most_dispatch_rows(const ModelDims& dims, int ep_size);
/// Received rows that memory is planned for: dispatch_buffer_factor times an even share, at most
/// all there can be.
[[nodiscard]] std::int64_t planned_dispatch_rows(const ModelDims& dims, int ep_size);

struct FfnActivations {
  TensorView normed_TH;
  NormStatistics norm;
  MlpActivations dense;  ///< of a dense layer or of the shared expert
  TensorView logits_TE, probs_TE, ids_TK, weights_TK;
  TensorView kept_ids_TK;       ///< -1 where a choice is dropped; without a capacity ids_TK itself
  TensorView counts_E;          ///< slots that are sent
  TensorView chosen_counts_E;   ///< with those dropped; without a capacity counts_E itself
  TensorView balance_counts_E;  ///< those of the auxiliary loss
  TensorView order_P, positions_TK, returned_PH;
  Growable<DispatchKept> dispatch;
  [[nodiscard]] static FfnActivations plan(const ModelDims& dims,
                                           LayerId layer,
                                           int ep_size,
                                           device::Arena& arena);
};
struct FfnScratch {
  TensorView d_normed_TH, d_logits_TE, d_weights_TK, sent_PH;
  TensorView router_TH;  ///< bf16 only: the router's input, and its gradient, in the master type
  Growable<DispatchScratch> dispatch;
  [[nodiscard]] static FfnScratch plan(const ModelDims& dims, int ep_size, device::Arena& arena);
};

/// What a MoE layer reports of one micro-batch.
struct RoutingReport {
  double aux_loss = 0;  ///< before its coefficient; 1 at balance
  double z_loss = 0;
  std::int64_t dropped_slots = 0;  ///< choices of this rank's tokens over their expert's capacity
};

/// One step of the router's bias: b_e += rate * sign(mean - n_e), where n_e = counts_E[e] are the
/// slots for which routers of all ranks and micro-batches of the step chose expert e, dropped ones
/// too. bias_E in f32 or f64. Every rank computes the same. Pure.
/// Source: Wang et al., "Auxiliary-Loss-Free Load Balancing" (arXiv 2408.15664), algorithm 1.
/// Differs from the paper: none.
void update_expert_bias(TensorView bias_E, std::span<const double> counts_E, double rate);

class DenseFfnLayer {
 public:
  DenseFfnLayer(const ModelDims& dims, parallel::ParamSet& params, LayerId layer);
  void forward(Context& ctx, ConstTensorView x_TH, FfnActivations& kept, TensorView y_TH) const;
  /// Turns d_TH, the gradient of y, into that of x.
  void backward(Context& ctx,
                ConstTensorView x_TH,
                FfnActivations& kept,
                FfnScratch& scratch,
                TensorView d_TH) const;

 private:
  Norm norm_;
  Mlp mlp_;
};

class MoeLayer {
 public:
  MoeLayer(const ModelDims& dims,
           parallel::ParamSet& params,
           LayerId layer,
           const parallel::MeshShape& mesh,
           comm::Group& ep,
           Rank rank);
  /// Collective over ep. The counts in `kept` are of this rank's tokens, by expert.
  RoutingReport forward(Context& ctx,
                        ConstTensorView x_TH,
                        FfnActivations& kept,
                        FfnScratch& scratch,
                        TensorView y_TH);
  /// `loss_scale` is the factor of the main loss, and so of the balancing losses. Collective over
  /// ep.
  void backward(Context& ctx,
                ConstTensorView x_TH,
                FfnActivations& kept,
                FfnScratch& scratch,
                double loss_scale,
                TensorView d_TH);
  [[nodiscard]] Experts& experts() { return experts_; }
  /// The router's bias, E numbers in the master type, 0 at first; the trainer reads and writes
  /// it between steps, alike on all ranks. Without dims.expert_bias its data is null.
  [[nodiscard]] TensorView expert_bias() const;

 private:
  [[nodiscard]] ops::RouterOptions router_options() const;
  void dispatch(Context& ctx, FfnActivations& kept, FfnScratch& scratch);
  /// The normed tokens in the master type, which the router computes in.
  [[nodiscard]] ConstTensorView router_input(Context& ctx,
                                             const FfnActivations& kept,
                                             const FfnScratch& scratch) const;

  const ModelDims& dims_;
  LayerId layer_;
  Norm norm_;
  parallel::Param* router_;
  std::optional<Mlp> shared_;
  Experts experts_;
  parallel::TokenExchange exchange_;
  device::Buffer expert_bias_;
  std::int64_t first_in_turn_;
  std::int64_t num_sent_ = 0;  ///< in the last forward
};

}  // namespace pecan::model
