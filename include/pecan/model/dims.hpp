#pragma once
/// Sizes of the model and its parameters, as pure functions of the configuration.

#include <cstdint>
#include <string>
#include <vector>

#include <pecan/config/config.hpp>

#include <pecan/device/context.hpp>

#include <pecan/parallel/params.hpp>
#include <pecan/parallel/stream_exchange.hpp>

namespace pecan::model {

/// Norm of queries and keys after their projections.
enum class QkNorm : std::uint8_t {
  kNone,
  kPerHead,  ///< of each head, one weight of D for all (Qwen3)
  kWhole,    ///< of all heads together, before they are split (OLMoE)
};

/// Over which tokens the auxiliary loss measures balance.
enum class Balance : std::uint8_t {
  kMicroBatch,   ///< those of a micro-batch
  kSequence,     ///< those of each sequence; the mean over the sequences of a micro-batch
  kGlobalBatch,  ///< choices of all ranks and of the step so far, scores of a micro-batch
};

/// Everything a layer needs to know. T = micro_batch * sequence tokens a micro-batch.
struct ModelDims {
  DType dtype = DType::kF32;
  int tp = 1;   ///< ranks that share each dense matrix and each micro-batch
  int ep = 1;   ///< ranks over which experts are spread
  int etp = 1;  ///< ranks that share each expert's matrices
  std::int64_t num_layers = 0;
  std::int64_t hidden = 0;         ///< H
  std::int64_t heads = 0;          ///< N
  std::int64_t kv_groups = 0;      ///< G
  std::int64_t head_dim = 0;       ///< D
  std::int64_t ffn = 0;            ///< F of dense layers
  std::int64_t expert_ffn = 0;     ///< F of routed experts
  std::int64_t shared_ffn = 0;     ///< F of the shared expert, 0: none
  std::int64_t num_experts = 0;    ///< E
  std::int64_t topk = 0;           ///< K
  std::int64_t vocab = 0;          ///< true vocabulary size
  std::int64_t padded_vocab = 0;   ///< V
  std::int64_t sequence = 0;       ///< S
  std::int64_t micro_batch = 0;    ///< B
  std::int64_t head_piece = 0;     ///< tokens at the head at once; 0: as suits a CPU
  std::int64_t max_positions = 0;  ///< rows of learned position embeddings
  std::int64_t num_groups = 0;     ///< of experts, 0: none
  std::int64_t group_topk = 0;     ///< groups that a token chooses from
  double norm_epsilon = 0;
  double rotary_base = 0;
  double init_std = 0;
  double aux_loss_coeff = 0;
  Balance balance = Balance::kMicroBatch;
  double z_loss_coeff = 0;
  double router_scaling = 1;
  double dispatch_buffer_factor = 2;
  double capacity_factor = 0;  ///< 0: no choice is dropped
  double default_beta = 0.9;   ///< of the default vectors' moving averages
  config::ExpertCompute expert_compute = config::ExpertCompute::kGrouped;
  config::TokenDropPolicy drop_policy = config::TokenDropPolicy::kProbs;
  config::ScoreFunction score_function = config::ScoreFunction::kSoftmax;
  config::Normalization normalization = config::Normalization::kRmsNorm;
  config::PositionEmbedding position_embedding = config::PositionEmbedding::kRope;
  QkNorm qk_norm = QkNorm::kNone;
  parallel::SequenceParallel sequence_parallel = parallel::SequenceParallel::kOff;
  config::RecomputeGranularity recompute = config::RecomputeGranularity::kNone;
  bool router_pre_softmax = false;
  bool expert_bias = false;      ///< added to sigmoid scores for the choice
  bool force_balance = false;    ///< experts in turn, for benchmarks
  bool default_vectors = false;  ///< stand for experts that a token is not sent to
  bool gated_ffn = true;         ///< SwiGLU; else GELU without a gate
  bool linear_bias = false;      ///< of every linear map but router and head
  bool tied_embeddings = true;
  std::vector<bool> is_moe;  ///< by layer
  /// Of masters, norms, router, softmax and statistics: f32 where dtype is bf16.
  [[nodiscard]] DType master_dtype() const { return master_of(dtype); }
  [[nodiscard]] std::int64_t tokens() const { return micro_batch * sequence; }
  /// Whether the residual stream of a micro-batch is shared out over tp.
  [[nodiscard]] bool shares_stream() const {
    return tp > 1 && sequence_parallel == parallel::SequenceParallel::kOn;
  }
  /// Tokens of the residual stream that a rank holds.
  [[nodiscard]] std::int64_t stream_tokens() const {
    return shares_stream() ? tokens() / tp : tokens();
  }
  /// One rank's part of what tp shares out.
  [[nodiscard]] std::int64_t local_heads() const { return heads / tp; }
  [[nodiscard]] std::int64_t local_kv_groups() const {
    return kv_groups / tp > 0 ? kv_groups / tp : 1;
  }
  [[nodiscard]] std::int64_t local_vocab() const { return padded_vocab / tp; }
  /// Tokens whose logits are in memory at once: few enough for a cache, enough for a product.
  [[nodiscard]] std::int64_t head_tokens() const;
  /// Ranks of tp that hold the same key-value group.
  [[nodiscard]] int kv_replicas() const { return kv_groups < tp ? int(tp / kv_groups) : 1; }
  [[nodiscard]] int num_moe_layers() const;
  /// Token-slots that an expert takes of a micro-batch; 0: any number.
  [[nodiscard]] std::int64_t capacity() const;
};

/// Tokens that pass the head at once on a CUDA device, for a rank's part of the vocabulary: enough
/// that the products are not bound by reading the head's weights and gradients once a piece, and
/// beyond that as many as whose logits stay in the cache. See docs/kernels.md.
[[nodiscard]] std::int64_t device_head_piece(std::int64_t vocab, DType dtype);

/// `vocab_size` is the tokenizer's true size. Pure.
[[nodiscard]] ModelDims plan_dims(const config::Config& config, std::int64_t vocab_size);
/// Every parameter in a fixed order, experts by (layer, expert). Pure.
[[nodiscard]] std::vector<parallel::ParamSpec> plan_parameters(const ModelDims& dims);
/// Draws every master that this rank holds by (seed, name, element): every layout starts from the
/// same model. Derives the weights that it owns; those of others are gathered (WeightGather).
void initialise(Context& ctx, parallel::ParamSet& params, std::uint64_t seed);
/// Rounds the weights that this rank owns from their masters, where the two differ: after the
/// masters were restored.
void derive_weights(Context& ctx, parallel::ParamSet& params);

/// Names of parameters: Hugging Face's Qwen3-MoE (docs/formats/checkpoint.md).
[[nodiscard]] std::string layer_name(LayerId layer);
[[nodiscard]] std::string expert_name(LayerId layer, ExpertId expert);

}  // namespace pecan::model
