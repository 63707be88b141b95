#pragma once
/// The run configuration: YAML files and command-line settings, merged, checked and frozen.
/// Keys and defaults are Megatron's where Megatron has them; see docs/configuration.md.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/error.hpp>

namespace pecan::config {

enum class ComputeDType : std::uint8_t { kF32, kF64 /*for tests*/ };
enum class DeviceChoice : std::uint8_t { kAuto, kCpu, kCuda };
enum class NanPolicy : std::uint8_t { kStop, kSkip };
enum class LrDecayStyle : std::uint8_t { kConstant, kLinear, kCosine, kInverseSquareRoot, kWsd };
enum class WsdDecayStyle : std::uint8_t { kExponential, kLinear, kCosine, kMinusSqrt };
enum class Normalization : std::uint8_t { kRmsNorm, kLayerNorm };
enum class PositionEmbedding : std::uint8_t { kRope, kLearnedAbsolute, kNone };
enum class ScoreFunction : std::uint8_t { kSoftmax, kSigmoid };
enum class ExpertCompute : std::uint8_t { kGrouped, kBlockSparse, kLoop };
enum class TokenDropPolicy : std::uint8_t { kProbs, kPosition };

struct ModelConfig {
  int num_layers = 2;
  int hidden_size = 128;
  int ffn_hidden_size = 512;  ///< of dense layers; default 4 * hidden_size
  int num_attention_heads = 4;
  int num_query_groups = 4;         ///< KV heads; default num_attention_heads
  int kv_channels = 32;             ///< head dim; default hidden_size / num_attention_heads
  int max_position_embeddings = 0;  ///< default seq_length
  Normalization normalization = Normalization::kRmsNorm;
  double norm_epsilon = 1e-5;
  PositionEmbedding position_embedding_type = PositionEmbedding::kRope;
  double rotary_base = 10000;
  bool swiglu = true;               ///< false: GELU without a gate
  bool disable_bias_linear = true;  ///< false: every linear layer but router and head has a bias
  bool qk_layernorm = false;
  bool qk_layernorm_across_heads = false;  ///< one norm over all heads (OLMoE)
  bool untie_embeddings_and_output_weights = false;
  int make_vocab_size_divisible_by = 128;
  double init_method_std = 0.02;
  int vocab_size = 0;  ///< true size; 0: taken from the tokenizer
  bool operator==(const ModelConfig&) const = default;
};

/// Default MoE: vectors that stand for the outputs of experts a token is not sent to.
struct DefaultVectorsConfig {
  bool enabled = false;
  double beta = 0.9;  ///< share of its past that a vector keeps in each micro-batch
  bool operator==(const DefaultVectorsConfig&) const = default;
};

struct MoeConfig {
  int num_experts = 0;          ///< 0: a dense model
  int moe_ffn_hidden_size = 0;  ///< default ffn_hidden_size
  int moe_router_topk = 2;
  ScoreFunction moe_router_score_function = ScoreFunction::kSoftmax;
  bool moe_router_pre_softmax = false;  ///< true: softmax over all experts, then top-k
  double moe_router_topk_scaling_factor = 1.0;
  int moe_router_num_groups = 0;  ///< 0: experts are not grouped
  int moe_router_group_topk = 0;  ///< groups that a token may choose experts from
  bool moe_router_enable_expert_bias = false;
  double moe_router_bias_update_rate = 1e-3;
  bool moe_router_force_load_balancing = false;  ///< for benchmarks: experts in turn, not by score
  double moe_expert_capacity_factor = 0;         ///< 0: no token is dropped
  TokenDropPolicy moe_token_drop_policy = TokenDropPolicy::kProbs;
  bool moe_pad_expert_input_to_capacity = false;
  std::string moe_router_load_balancing_type = "aux_loss";  ///< aux_loss | none
  double moe_aux_loss_coeff = 0.0;
  double moe_z_loss_coeff = 0.0;
  std::string moe_router_dtype = "fp32";
  std::string moe_token_dispatcher_type = "alltoall";
  int moe_shared_expert_intermediate_size = 0;
  std::vector<int> moe_layer_freq;  ///< resolved to one 0/1 a layer; YAML takes N or a list
  double dispatch_buffer_factor = 2.0;
  ExpertCompute expert_compute = ExpertCompute::kGrouped;
  DefaultVectorsConfig default_vectors;
  bool operator==(const MoeConfig&) const = default;
};

/// What data-parallel ranks share out: ZeRO stages 0 to 2.
enum class DataSharding : std::uint8_t { kNone, kOptimizer, kOptimizerAndGradients };

struct ParallelConfig {
  int tensor_model_parallel_size = 1;
  int pipeline_model_parallel_size = 1;
  int context_parallel_size = 1;
  int expert_model_parallel_size = 1;
  int expert_tensor_parallel_size = 1;
  bool sequence_parallel = false;
  bool use_distributed_optimizer = false;
  DataSharding data_parallel_sharding_strategy = DataSharding::kNone;
  bool overlap_grad_reduce = false;
  bool overlap_param_gather = false;
  bool operator==(const ParallelConfig&) const = default;
};

/// Which activations backward computes again instead of keeping them.
enum class RecomputeGranularity : std::uint8_t { kNone, kFull };

struct TrainingConfig {
  bool bf16 = false;
  ComputeDType compute_dtype = ComputeDType::kF32;
  std::int64_t seed = 1234;
  int seq_length = 256;
  int micro_batch_size = 1;
  int global_batch_size = 8;  ///< sequences a step, over all ranks
  std::int64_t train_iters = 100;
  std::int64_t eval_interval = 0;  ///< 0: only at the end
  std::int64_t exit_interval = 0;  ///< 0: never; else stop (exit 75) after a step divisible by it
  double exit_duration_in_mins = 0;
  DeviceChoice device = DeviceChoice::kAuto;
  NanPolicy check_for_nan_in_loss_and_grad = NanPolicy::kStop;
  double spiky_loss_sigmas = 0;  ///< 0: no loss counts as a spike
  int rollback_after_skips = 0;  ///< skipped steps in a row that lead to a rollback; 0: none does
  int max_rollbacks = 3;         ///< without passing the step that led to the first of them
  std::int64_t check_weight_hash_across_dp_replicas_interval = 0;  ///< steps; 0: never
  int threads = 0;  ///< CPU threads a rank; 0: chosen where it runs
  RecomputeGranularity recompute_granularity = RecomputeGranularity::kNone;
  bool operator==(const TrainingConfig&) const = default;
};

struct OptimizerConfig {
  double lr = 3e-4;
  double min_lr = 0;
  LrDecayStyle lr_decay_style = LrDecayStyle::kCosine;
  std::int64_t lr_warmup_iters = 0;
  double lr_warmup_init = 0;
  std::int64_t lr_decay_iters = 0;  ///< default train_iters
  WsdDecayStyle lr_wsd_decay_style = WsdDecayStyle::kExponential;
  std::int64_t lr_wsd_decay_iters = 0;  ///< steps of the decay that ends at lr_decay_iters
  double weight_decay = 0.01;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_eps = 1e-8;
  double clip_grad = 1.0;  ///< 0: no clipping
  bool operator==(const OptimizerConfig&) const = default;
};

/// One dataset of a blend.
struct WeightedDataset {
  double weight = 1;   ///< relative to the others'
  std::string prefix;  ///< of its .bin and .idx
  bool operator==(const WeightedDataset&) const = default;
};

struct DataConfig {
  std::vector<WeightedDataset> data_path;  ///< YAML: one prefix, or a list weight, prefix, ...
  std::string split;  ///< "99,1,0": shares of data_path; empty: all is for training
  std::string
      valid_data_path;  ///< prefix of the held-out set; empty: that of split, or no evaluation
  std::string tokenizer_model;        ///< SentencePiece model file
  bool reset_attention_mask = false;  ///< attention stays inside a document
  bool reset_position_ids = false;    ///< positions count from the start of a document
  bool eod_mask_loss = false;         ///< the token after an end of document is not learned
  bool operator==(const DataConfig&) const = default;
};

/// Which replica of a block writes it (papers on PEC, sharded checkpointing).
enum class WriteSharding : std::uint8_t { kRank0, kEqual, kAdaptive };

/// Once in so many steps, or in so many seconds; never if both are 0.
struct Interval {
  std::int64_t steps = 0;
  double seconds = 0;
  [[nodiscard]] bool never() const { return steps == 0 && seconds == 0; }
  bool operator==(const Interval&) const = default;
};
/// "10" or "2.5s", as the configuration writes it.
[[nodiscard]] std::string to_string(const Interval& interval);

struct PecConfig {
  int experts_per_checkpoint = 0;  ///< K_pec of each MoE layer; default num_experts (full)
  int experts_per_snapshot = 0;    ///< the same in host memory; default experts_per_checkpoint
  std::string selection = "sequential";
  int max_expert_age = 0;  ///< checkpoints; default by policy
  std::vector<std::string>
      always_saved;  ///< role groups of every expert in every checkpoint: weight, moments
  WriteSharding sharding = WriteSharding::kAdaptive;
  bool dynamic_k = false;
  double plt_budget = 0.0375;
  bool operator==(const PecConfig&) const = default;
};

struct CheckpointConfig {
  Interval save_interval;                 ///< between checkpoints in storage
  Interval non_persistent_save_interval;  ///< between snapshots in host memory
  std::string memory_dir = "/dev/shm";    ///< where these lie
  int keep_latest_k = 1;
  std::int64_t save_retain_interval = 0;  ///< 0: none; else steps divisible by it are kept for ever
  int fallback_copies = 1;
  int replication_factor = 1;  ///< nodes that hold each snapshot in memory, its own among them
  bool async_save = true;      ///< false: training waits for the files (for tests and comparisons)
  PecConfig pec;
  bool operator==(const CheckpointConfig&) const = default;
};

struct CommConfig {
  int timeout_s = 600;
  bool shared_memory = true;  ///< between ranks of one node
  bool operator==(const CommConfig&) const = default;
};

/// A layout that pecan-launch may restart the run in. 0: as in `parallel`.
struct ElasticLayout {
  int world_size = 0;
  int tensor_model_parallel_size = 0;
  int expert_model_parallel_size = 0;
  int expert_tensor_parallel_size = 0;
  bool operator==(const ElasticLayout&) const = default;
};

/// What pecan-launch does about failures.
struct ElasticConfig {
  std::vector<ElasticLayout> layouts;  ///< empty: `parallel` on all slots of the hosts
  int max_restarts = 3;                ///< in a row that save no new step
  double restart_backoff_s = 1;        ///< before the second restart in a row; doubles
  double restart_backoff_max_s = 60;
  double heartbeat_timeout_s = 300;  ///< without progress of any rank; 0: never
  double probe_timeout_s = 10;       ///< for a host to answer
  bool operator==(const ElasticConfig&) const = default;
};

/// Failures on purpose, for tests and demonstrations; grammar in pecan/config/fault.hpp.
struct FaultConfig {
  std::vector<std::string> inject;
  bool operator==(const FaultConfig&) const = default;
};

struct LoggingConfig {
  int log_interval = 1;
  std::int64_t content_hash_interval = 0;  ///< steps; 0: never
  std::string level = "info";
  bool operator==(const LoggingConfig&) const = default;
};

/// Everything a run depends on. Produced by load_config only; frozen afterwards.
struct Config {
  ModelConfig model;
  MoeConfig moe;
  ParallelConfig parallel;
  TrainingConfig training;
  OptimizerConfig optimizer;
  DataConfig data;
  CheckpointConfig checkpoint;
  CommConfig comm;
  ElasticConfig elastic;
  FaultConfig fault;
  LoggingConfig logging;
  bool operator==(const Config&) const = default;
};

/// Merges YAML files left to right, then "key.path=value" settings; fills defaults, checks every
/// value. Environment variables ${NAME} in string values are replaced. Throws ConfigError:
/// malformed YAML (file, line), unknown key (names the nearest), wrong type, value out of range, or
/// a feature that is not there.
[[nodiscard]] Config load_config(std::span<const std::string> files,
                                 std::span<const std::string> settings);
/// The same from YAML text, for tests.
[[nodiscard]] Config parse_config(std::string_view yaml,
                                  std::span<const std::string> settings = {});
/// The resolved configuration as YAML; parse_config(dump_config(c)) == c.
[[nodiscard]] std::string dump_config(const Config& config);
/// Every key with values, default and meaning as Markdown tables: the body of
/// docs/configuration.md.
[[nodiscard]] std::string config_reference();
/// The path of every key ("model.num_layers"), in the order of the sections.
[[nodiscard]] std::vector<std::string> config_keys();
/// The configuration in that layout, with its processes not yet checked. Pure.
[[nodiscard]] Config with_layout(const Config& config, const ElasticLayout& layout);
/// Checks what depends on the number of processes; ConfigError otherwise. Pure.
void validate_for_world(const Config& config, int world_size);

}  // namespace pecan::config
