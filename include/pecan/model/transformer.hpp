#pragma once
/// The whole decoder: embedding, layers, final norm, head and loss, with explicit forward and
/// backward.

#include <memory>
#include <span>
#include <variant>
#include <vector>

#include <pecan/comm/traffic.hpp>

#include <pecan/parallel/stage_listener.hpp>

#include <pecan/model/attention.hpp>
#include <pecan/model/moe.hpp>

namespace pecan::model {

/// All memory of forward and backward, planned before step 0.
struct Activations {
  TensorView rope_table_SD;  ///< of rotary embedding only
  TensorView positions_T;    ///< t mod S, of learned positions only
  std::vector<TensorView>
      stream_tH;  ///< residual stream before layer 0, after its attention, after its ffn, ...;
                  ///< with recompute all attention outputs share memory, and so do all that follow
  std::vector<AttentionActivations> attention;
  std::vector<FfnActivations> ffn;
  TensorView normed_tH, loss_T, d_stream_tH;
  TensorView d_normed_tH;  ///< in the forward: rows of learned positions
  TensorView logits_CV;    ///< of C = head_tokens() tokens and this rank's part of the vocabulary
  TensorView max_C;        ///< of softmax over a vocabulary that tp shares out
  TensorView sums_2C;
  NormStatistics norm;
  WholeStream whole;
  AttentionScratch attention_scratch;  ///< shares memory with ffn_scratch
  FfnScratch ffn_scratch;
  /// On a measuring arena the high water is the plan; on a real one of that size it is reached
  /// exactly.
  [[nodiscard]] static Activations plan(const ModelDims& dims, device::Arena& arena);
};

/// Bytes of memory that a rank's model takes besides parameters: where it computes on a CUDA
/// device, the most that kernels can ask for. Pure.
struct MemoryPlan {
  std::size_t activation_bytes = 0;
  std::size_t workspace_bytes = 0;
  std::size_t default_vector_bytes = 0;  ///< kept between steps
};
[[nodiscard]] MemoryPlan plan_memory(const ModelDims& dims,
                                     int threads,
                                     device::DeviceKind kind = device::DeviceKind::kCpu);

/// What the rank at `position` sends for the forward and backward of one micro-batch, by purpose,
/// if every expert is chosen equally often and so no micro-batch is cut into chunks. Pure.
[[nodiscard]] comm::SentBytes plan_traffic(const ModelDims& dims,
                                           const parallel::MeshShape& mesh,
                                           const parallel::MeshPosition& position);

/// One micro-batch, alike on all ranks of tp: T = B * S tokens each, i32; mask_T in the model's
/// dtype or empty for ones.
struct Batch {
  ConstTensorView tokens_T;
  ConstTensorView labels_T;
  ConstTensorView mask_T;
  ConstTensorView positions_T = {};       ///< i32, position of each token; empty: t mod S
  ConstTensorView document_start_T = {};  ///< i32, first position in its sequence that each token
                                          ///< attends to; empty: 0
  double loss_weight = 1;  ///< factor of the main loss alone: where tokens are masked, what makes
                           ///< it the mean over those that are not
};

/// What a micro-batch gave.
struct BatchResult {
  double loss_sum = 0;  ///< sum over unmasked tokens, nats; on the first rank of tp only, so that
                        ///< a sum over the world counts each token once
  std::vector<RoutingReport> routing;  ///< by MoE layer
};

class Transformer {
 public:
  /// `activations` holds memory planned with the same dims. Everything given outlives the object;
  /// `listeners` are told in their order.
  Transformer(Context& ctx,
              const ModelDims& dims,
              parallel::ParamSet& params,
              const parallel::MeshGroups& groups,
              Activations& activations,
              std::vector<parallel::StageListener*> listeners = {});
  /// Forgets what earlier micro-batches told about balance: before the first of a step.
  void begin_step(Context& ctx);
  /// Takes back what forward changed in the step: where its update is skipped.
  void undo_step(Context& ctx);
  /// After each rank restored the default vectors of its experts. Collective over the dispatch
  /// group.
  void gather_default_vectors(Context& ctx);
  /// Loss only; default vectors stay as they are. Collective over tp and the dispatch group
  /// (Balance::kGlobalBatch: the world).
  BatchResult forward(Context& ctx, const Batch& batch);
  /// Loss, and gradients of loss_scale * (loss_weight * sum of losses / T + balancing losses),
  /// added to the parameters': before they are summed over ranks. Default vectors follow.
  /// Collective as forward (default vectors: the world).
  BatchResult forward_backward(Context& ctx, const Batch& batch, double loss_scale);
  /// Token slots of this rank's last micro-batch that experts processed, by [MoE layer][expert].
  [[nodiscard]] std::span<const std::int64_t> expert_counts(int moe_layer) const;
  /// The same with choices that were dropped over capacity: what the router chose.
  [[nodiscard]] std::span<const std::int64_t> chosen_counts(int moe_layer) const;
  [[nodiscard]] MoeLayer& moe_layer(int moe_layer);

 private:
  using FfnLayer = std::variant<DenseFfnLayer, MoeLayer>;
  /// Tokens [first, first + C) of a micro-batch at the head.
  struct HeadPiece {
    std::int64_t first;
    TensorView logits_CV;
    ConstTensorView labels_C;
    ConstTensorView mask_C;
    TensorView loss_C;
    TensorView max_C, sums_2C;  ///< where tp shares out the vocabulary
  };
  /// All but the head.
  BatchResult forward_stream(Context& ctx, const Batch& batch, Averages averages);
  template <typename Body>
  void for_each_default_vectors(Body body) {
    for (const std::size_t layer : moe_layers_) {
      if (DefaultVectors* vectors = std::get<MoeLayer>(*ffn_[layer]).default_vectors())
        body(*vectors);
    }
  }
  /// What the head reads. Collective where ranks share the stream.
  [[nodiscard]] ConstTensorView head_input(Context& ctx);
  /// Calls body(HeadPiece) with the logits of a piece after the other: never are all in memory.
  template <typename Body>
  void for_each_piece(Context& ctx, const Batch& batch, ConstTensorView normed_TH, Body body);
  void embed(Context& ctx, const Batch& batch);
  [[nodiscard]] TokenPlaces places_of(const Batch& batch) const;
  [[nodiscard]] ConstTensorView positions_of(const Batch& batch) const;
  /// Logits, losses, and gradients of the head and of what it reads, scaled. Collective over tp.
  void pass_head(Context& ctx, const Batch& batch, double scale);
  [[nodiscard]] double sum_of_loss(Context& ctx) const;
  /// Statistics of the softmax over all ranks' parts of the vocabulary, and the losses of a piece.
  void measure_loss(Context& ctx, const HeadPiece& piece);
  /// What layer `i` kept in forward, from its input. Collective as the layer's forward.
  void recompute_layer(Context& ctx, std::size_t i, const TokenPlaces& places);
  void before_forward(Context& ctx, std::size_t stage);
  void before_backward(Context& ctx, std::size_t stage);
  void after_backward(Context& ctx, std::size_t stage);

  const ModelDims& dims_;
  Activations& memory_;
  parallel::StreamExchange stream_;
  ops::VocabShard vocab_;
  std::vector<parallel::StageListener*> listeners_;
  parallel::Param *embedding_, *head_;
  parallel::Param* positions_ = nullptr;  ///< learned ones
  Norm norm_;
  std::vector<AttentionLayer> attention_;
  std::vector<std::unique_ptr<FfnLayer>> ffn_;
  std::vector<std::size_t> moe_layers_;  ///< layer of each MoE layer
};

}  // namespace pecan::model
