#pragma once
/// Every key of the configuration, once: name, member, rule and meaning. Reading, dumping, the list
/// of known keys and docs/configuration.md all come from these tables.

#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include <pecan/config/config.hpp>

namespace pecan::config::detail {

/// Numbers from `low` to `high`; an open end is excluded.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_open = false;
  bool high_open = false;
};
constexpr Range at_least(double low) {
  return {.low = low};
}
constexpr Range above(double low) {
  return {.low = low, .low_open = true};
}
constexpr Range from_to(double low, double high) {
  return {.low = low, .high = high};
}
constexpr Range below_one() {
  return {.low = 0, .high = 1, .high_open = true};
}

/// The one value that this version has; `instead` says what to do.
template <typename T>
struct Only {
  T value;
  std::string_view instead;
};
/// One of `here`; `absent` are values that users know from Megatron and that this version lacks.
struct Choice {
  std::vector<std::string_view> here;
  std::vector<std::string_view> absent = {};
};
template <typename Enum>
struct Named {
  std::vector<std::pair<std::string_view, Enum>> here;
  std::vector<std::string_view> absent = {};
};
/// Any value of the type.
struct Free {};
/// One prefix, or a list of weights and prefixes in turn.
struct Blend {};
/// Three numbers with commas between them.
struct Shares {};
/// A number of steps, or of seconds with the suffix s.
struct Every {};
/// A list of maps, of which visit() names the keys.
struct Maps {};
/// A list of texts.
struct Texts {};
/// A period N, kept as {-N} until the number of layers is known, or a list of 0 and 1.
struct LayerPattern {};

template <typename Field>
void visit(ModelConfig& c, Field&& field) {
  field("num_layers", c.num_layers, at_least(1), "decoder layers");
  field("hidden_size", c.hidden_size, at_least(1), "width of the residual stream");
  field("ffn_hidden_size",
        c.ffn_hidden_size,
        at_least(0),
        "FFN width of dense layers; 0: 4 * `hidden_size`");
  field("num_attention_heads", c.num_attention_heads, at_least(1), "query heads");
  field("num_query_groups",
        c.num_query_groups,
        at_least(0),
        "key and value heads, a divisor of `num_attention_heads`; 0: `num_attention_heads`");
  field("kv_channels",
        c.kv_channels,
        at_least(0),
        "size of a head, even; 0: `hidden_size` / `num_attention_heads`");
  field("max_position_embeddings",
        c.max_position_embeddings,
        at_least(0),
        "longest sequence that the model is made for; 0: `training.seq_length`");
  field("normalization",
        c.normalization,
        Named<Normalization>{
            {{"RMSNorm", Normalization::kRmsNorm}, {"LayerNorm", Normalization::kLayerNorm}}},
        "kind of norm; `LayerNorm` has a bias too");
  field("norm_epsilon", c.norm_epsilon, above(0), "added to the mean square inside the norm");
  field("position_embedding_type",
        c.position_embedding_type,
        Named<PositionEmbedding>{{{"rope", PositionEmbedding::kRope},
                                  {"learned_absolute", PositionEmbedding::kLearnedAbsolute},
                                  {"none", PositionEmbedding::kNone}},
                                 {"yarn", "mrope", "relative"}},
        "position embedding");
  field("rotary_base", c.rotary_base, above(0), "base of the rotary frequencies");
  field("swiglu",
        c.swiglu,
        Free{},
        "true: SwiGLU in dense and expert FFNs; false: GELU (tanh form) without a gate");
  field("disable_bias_linear",
        c.disable_bias_linear,
        Free{},
        "false: every linear layer but router and output head adds a bias");
  field("qk_layernorm",
        c.qk_layernorm,
        Free{},
        "norm of each query and key head, of the kind of `normalization`");
  field("qk_layernorm_across_heads",
        c.qk_layernorm_across_heads,
        Free{},
        "that norm spans all heads before they are split, as in OLMoE; needs `qk_layernorm`");
  field("untie_embeddings_and_output_weights",
        c.untie_embeddings_and_output_weights,
        Free{},
        "an output matrix of its own instead of the embedding's");
  field("make_vocab_size_divisible_by",
        c.make_vocab_size_divisible_by,
        at_least(1),
        "rows of embedding and head are padded to a multiple; padding never influences the result");
  field("init_method_std", c.init_method_std, above(0), "standard deviation of initial weights");
  field("vocab_size",
        c.vocab_size,
        at_least(0),
        "true vocabulary size; 0: that of `data.tokenizer_model`");
}

template <typename Field>
void visit(DefaultVectorsConfig& c, Field&& field) {
  field("enabled",
        c.enabled,
        Free{},
        "for each expert that a token is not sent to, add the moving average of that expert's "
        "outputs, weighted by its score, so that the router learns from all of them; needs "
        "`softmax` and `moe_router_pre_softmax`");
  field("beta",
        c.beta,
        below_one(),
        "share of its past that the moving average keeps in each micro-batch; 0.9 suits 8 experts");
}

template <typename Field>
void visit(MoeConfig& c, Field&& field) {
  field("num_experts", c.num_experts, at_least(0), "experts of each MoE layer; 0: a dense model");
  field("moe_ffn_hidden_size",
        c.moe_ffn_hidden_size,
        at_least(0),
        "FFN width of an expert; 0: `model.ffn_hidden_size`");
  field("moe_router_topk", c.moe_router_topk, at_least(1), "experts that each token is sent to");
  field("moe_router_score_function",
        c.moe_router_score_function,
        Named<ScoreFunction>{
            {{"softmax", ScoreFunction::kSoftmax}, {"sigmoid", ScoreFunction::kSigmoid}},
            {"sqrtsoftplus"}},
        "logits to scores; `sigmoid`: the chosen scores are divided by their sum");
  field("moe_router_pre_softmax",
        c.moe_router_pre_softmax,
        Free{},
        "true: softmax over all experts, then top-k; false: top-k, then softmax over the chosen");
  field("moe_router_topk_scaling_factor",
        c.moe_router_topk_scaling_factor,
        above(0),
        "factor of the chosen experts' weights");
  field("moe_router_num_groups",
        c.moe_router_num_groups,
        at_least(0),
        "groups of consecutive experts; a token chooses inside its best groups; 0: no groups");
  field("moe_router_group_topk",
        c.moe_router_group_topk,
        at_least(0),
        "groups that a token may use, by the sum of their best `moe_router_topk` / "
        "`moe_router_group_topk` scores");
  field("moe_router_enable_expert_bias",
        c.moe_router_enable_expert_bias,
        Free{},
        "balancing without a loss: a bias, added to the score for the choice alone, follows the "
        "load; needs `sigmoid`");
  field("moe_router_bias_update_rate",
        c.moe_router_bias_update_rate,
        above(0),
        "what a step adds to the bias of an expert below the mean load, and takes from one above");
  field("moe_router_force_load_balancing",
        c.moe_router_force_load_balancing,
        Free{},
        "for benchmarks: tokens take the experts in turn, whatever their scores");
  field("moe_expert_capacity_factor",
        c.moe_expert_capacity_factor,
        at_least(0),
        "an expert takes at most this multiple of an even share of a rank's micro-batch, the rest "
        "is dropped; 0: nothing is dropped");
  field("moe_token_drop_policy",
        c.moe_token_drop_policy,
        Named<TokenDropPolicy>{
            {{"probs", TokenDropPolicy::kProbs}, {"position", TokenDropPolicy::kPosition}}},
        "which tokens an expert over its capacity keeps: the most probable or the earliest");
  field("moe_pad_expert_input_to_capacity",
        c.moe_pad_expert_input_to_capacity,
        Only<bool>{false, "experts take the rows that they get"},
        "padding of each expert's input to its capacity");
  field("moe_router_load_balancing_type",
        c.moe_router_load_balancing_type,
        Choice{{"aux_loss", "seq_aux_loss", "global_aux_loss", "none"}, {"sinkhorn"}},
        "over which tokens the auxiliary loss measures load: a micro-batch, each sequence, or the "
        "global batch so far");
  field("moe_aux_loss_coeff",
        c.moe_aux_loss_coeff,
        at_least(0),
        "coefficient of the auxiliary loss; 0.01 is usual");
  field("moe_z_loss_coeff",
        c.moe_z_loss_coeff,
        at_least(0),
        "coefficient of the router z-loss; 0.001 is usual");
  field("moe_router_dtype",
        c.moe_router_dtype,
        Choice{{"fp32"}, {"fp64"}},
        "type of router logits and scores");
  field("moe_token_dispatcher_type",
        c.moe_token_dispatcher_type,
        Choice{{"alltoall"}, {"allgather", "flex"}},
        "how tokens reach their experts");
  field("moe_shared_expert_intermediate_size",
        c.moe_shared_expert_intermediate_size,
        at_least(0),
        "FFN width of the shared expert that sees every token; 0: none");
  field("moe_layer_freq",
        c.moe_layer_freq,
        LayerPattern{},
        "N: layers 0, N, 2N, ... are MoE layers; or a list with a 1 (MoE) or 0 (dense) for each "
        "layer");
  field("dispatch_buffer_factor",
        c.dispatch_buffer_factor,
        at_least(1),
        "dispatch memory as a multiple of perfectly balanced load; beyond it a micro-batch is "
        "processed in chunks, with a warning");
  field("expert_compute",
        c.expert_compute,
        Named<ExpertCompute>{{{"grouped", ExpertCompute::kGrouped},
                              {"block_sparse", ExpertCompute::kBlockSparse},
                              {"loop", ExpertCompute::kLoop}}},
        "products of a layer's experts: all in one, as blocks of a sparse matrix (MegaBlocks), or "
        "one expert after the other; the same but for rounding");
  field.section("default_vectors", c.default_vectors);
}

template <typename Field>
void visit(ParallelConfig& c, Field&& field) {
  field("tensor_model_parallel_size",
        c.tensor_model_parallel_size,
        at_least(1),
        "ranks that share each matrix; divides `num_attention_heads`, the FFN widths and the "
        "number of ranks; a divisor or a multiple of `num_query_groups`");
  field("pipeline_model_parallel_size",
        c.pipeline_model_parallel_size,
        Only<int>{1, "spread experts with expert_model_parallel_size"},
        "stages of layers");
  field("context_parallel_size",
        c.context_parallel_size,
        Only<int>{1, "choose a shorter training.seq_length"},
        "ranks that share each sequence");
  field("expert_model_parallel_size",
        c.expert_model_parallel_size,
        at_least(1),
        "ranks over which the experts of a layer are spread; divides `moe.num_experts` and the "
        "number of ranks");
  field("expert_tensor_parallel_size",
        c.expert_tensor_parallel_size,
        at_least(0),
        "ranks that share each expert's matrices; 0: `tensor_model_parallel_size`");
  field("sequence_parallel",
        c.sequence_parallel,
        Free{},
        "tensor-parallel ranks share out norms and residual stream too, by tokens; MoE layers "
        "need it");
  field("use_distributed_optimizer",
        c.use_distributed_optimizer,
        Free{},
        "optimizer state split over data-parallel ranks (ZeRO-1); the same as "
        "`data_parallel_sharding_strategy: optim`");
  field("data_parallel_sharding_strategy",
        c.data_parallel_sharding_strategy,
        Named<DataSharding>{{{"no_shard", DataSharding::kNone},
                             {"optim", DataSharding::kOptimizer},
                             {"optim_grads", DataSharding::kOptimizerAndGradients}},
                            {"optim_grads_params"}},
        "what data-parallel ranks split: nothing, the optimizer state (ZeRO-1), or the summed "
        "gradients too (ZeRO-2)");
  field("overlap_grad_reduce",
        c.overlap_grad_reduce,
        Free{},
        "gradients are summed over ranks while backward goes on; results are the same to the bit");
  field("overlap_param_gather",
        c.overlap_param_gather,
        Free{},
        "updated weights are gathered while the next forward goes on; results are the same to the "
        "bit; needs `use_distributed_optimizer`");
}

template <typename Field>
void visit(TrainingConfig& c, Field&& field) {
  field("bf16",
        c.bf16,
        Free{},
        "bfloat16 weights and activations, with fp32 master weights, gradients, norms, router and "
        "softmax");
  field("compute_dtype",
        c.compute_dtype,
        Named<ComputeDType>{{{"fp32", ComputeDType::kF32}, {"fp64", ComputeDType::kF64}},
                            {"bf16", "fp16", "fp8"}},
        "type of weights and activations where `bf16` is false; fp64 is for tests");
  field("seed",
        c.seed,
        from_to(0, std::numeric_limits<std::uint32_t>::max()),
        "seed of initial weights and of the data order");
  field("seq_length", c.seq_length, at_least(1), "tokens of a training sequence");
  field("micro_batch_size", c.micro_batch_size, at_least(1), "sequences a rank computes at once");
  field("global_batch_size",
        c.global_batch_size,
        at_least(1),
        "sequences a step, over all ranks; a multiple of `micro_batch_size` times the "
        "data-parallel ranks");
  field("train_iters", c.train_iters, at_least(1), "steps of the run");
  field("eval_interval",
        c.eval_interval,
        at_least(0),
        "steps between held-out evaluations; 0: only at the end");
  field("exit_interval",
        c.exit_interval,
        at_least(0),
        "stop (exit code 75, resumable) after each step that it divides; 0: never");
  field("exit_duration_in_mins",
        c.exit_duration_in_mins,
        at_least(0),
        "stop (exit code 75, resumable) after so many minutes; 0: never");
  field("device",
        c.device,
        Named<DeviceChoice>{{{"auto", DeviceChoice::kAuto},
                             {"cpu", DeviceChoice::kCpu},
                             {"cuda", DeviceChoice::kCuda}}},
        "where to compute, alike on all ranks; cuda: on a GPU a rank, of those that it sees by its "
        "place on the host; auto: on GPUs where every rank has one of its own, else on CPUs, and "
        "the log says why");
  field("check_for_nan_in_loss_and_grad",
        c.check_for_nan_in_loss_and_grad,
        Named<NanPolicy>{{{"stop", NanPolicy::kStop}, {"skip", NanPolicy::kSkip}}},
        "on a loss or gradient that is not finite, or a spike: stop the run (exit code 6) or skip "
        "the "
        "update");
  field(
      "spiky_loss_sigmas",
      c.spiky_loss_sigmas,
      at_least(0),
      "a loss that lies more than so many standard deviations above the mean of the last 64 counts "
      "as a spike; 0: none does");
  field("rollback_after_skips",
        c.rollback_after_skips,
        at_least(0),
        "after so many skipped steps in a row return to the newest checkpoint before them and pass "
        "over the data since; 0: never");
  field(
      "max_rollbacks",
      c.max_rollbacks,
      at_least(1),
      "rollbacks that do not get past the step that led to the first of them, before the run stops "
      "(exit code 6)");
  field(
      "check_weight_hash_across_dp_replicas_interval",
      c.check_weight_hash_across_dp_replicas_interval,
      at_least(0),
      "steps between comparisons of what several ranks hold of the parameters; a difference stops "
      "the run (exit code 6) and names the ranks; 0: never");
  field("threads",
        c.threads,
        from_to(0, 1024),
        "CPU threads a rank; 0: an equal share of the cores that the ranks of a host may use");
  field("recompute_granularity",
        c.recompute_granularity,
        Named<RecomputeGranularity>{
            {{"none", RecomputeGranularity::kNone}, {"full", RecomputeGranularity::kFull}},
            {"selective"}},
        "`full`: backward computes each layer's activations again from its input, which takes "
        "less memory and more time; results are the same to the bit");
}

template <typename Field>
void visit(OptimizerConfig& c, Field&& field) {
  field("lr", c.lr, at_least(0), "peak learning rate");
  field("min_lr", c.min_lr, at_least(0), "learning rate at the end of the decay");
  field("lr_decay_style",
        c.lr_decay_style,
        Named<LrDecayStyle>{{{"constant", LrDecayStyle::kConstant},
                             {"linear", LrDecayStyle::kLinear},
                             {"cosine", LrDecayStyle::kCosine},
                             {"inverse-square-root", LrDecayStyle::kInverseSquareRoot},
                             {"WSD", LrDecayStyle::kWsd}}},
        "schedule after the warm-up");
  field("lr_warmup_iters", c.lr_warmup_iters, at_least(0), "steps of linear warm-up");
  field(
      "lr_warmup_init", c.lr_warmup_init, at_least(0), "learning rate at the start of the warm-up");
  field("lr_decay_iters",
        c.lr_decay_iters,
        at_least(0),
        "step at which `min_lr` is reached; 0: `training.train_iters`");
  field("lr_wsd_decay_style",
        c.lr_wsd_decay_style,
        Named<WsdDecayStyle>{{{"exponential", WsdDecayStyle::kExponential},
                              {"linear", WsdDecayStyle::kLinear},
                              {"cosine", WsdDecayStyle::kCosine},
                              {"minus_sqrt", WsdDecayStyle::kMinusSqrt}}},
        "shape of the decay at the end of a `WSD` schedule");
  field("lr_wsd_decay_iters",
        c.lr_wsd_decay_iters,
        at_least(0),
        "steps of that decay, which ends at `lr_decay_iters`; `WSD` needs it");
  field("weight_decay",
        c.weight_decay,
        at_least(0),
        "decoupled decay of tensors with two or more dimensions");
  field("adam_beta1", c.adam_beta1, below_one(), "decay of the first moment");
  field("adam_beta2",
        c.adam_beta2,
        below_one(),
        "decay of the second moment; 0.95 is usual for language models");
  field("adam_eps", c.adam_eps, above(0), "added to the root of the second moment");
  field("clip_grad",
        c.clip_grad,
        at_least(0),
        "largest norm of all gradients together; 0: no clipping");
}

template <typename Field>
void visit(DataConfig& c, Field&& field) {
  field("data_path",
        c.data_path,
        Blend{},
        "training set: path of its .bin and .idx without extension; or a blend, weights and paths "
        "in turn");
  field("split",
        c.split,
        Shares{},
        "shares of `data_path` for training, evaluation and test, like `99,1,0`; empty: all of it "
        "is for training");
  field("valid_data_path",
        c.valid_data_path,
        Free{},
        "held-out set of its own; empty: the second share of `split`, or no evaluation");
  field("tokenizer_model", c.tokenizer_model, Free{}, "SentencePiece model file");
  field("reset_attention_mask",
        c.reset_attention_mask,
        Free{},
        "attention does not cross the end of a document");
  field("reset_position_ids",
        c.reset_position_ids,
        Free{},
        "positions count from the start of each document");
  field("eod_mask_loss",
        c.eod_mask_loss,
        Free{},
        "no loss where the input is the end of a document, as what follows is unrelated");
}

template <typename Field>
void visit(PecConfig& c, Field&& field) {
  field("experts_per_checkpoint",
        c.experts_per_checkpoint,
        at_least(0),
        "experts of each MoE layer in one checkpoint; 0: all (full checkpoints)");
  field("experts_per_snapshot",
        c.experts_per_snapshot,
        at_least(0),
        "experts of each MoE layer in one snapshot in host memory, at least "
        "`experts_per_checkpoint`; 0: as many");
  field("selection",
        c.selection,
        Choice{{"sequential", "load_aware", "full", "auto"}, {"random"}},
        "which experts come next: those saved longest ago, those with most tokens since their last "
        "save, all, or as many as copying hides under forward and backward");
  field("max_expert_age",
        c.max_expert_age,
        at_least(0),
        "checkpoints that an expert may miss in a row, whatever `load_aware` and `auto` prefer; "
        "larger ones keep more files; 0: as many as keep the files below 1.25 times all experts");
  field(
      "always_saved",
      c.always_saved,
      Choice{{"weight", "master", "moments"}},
      "role groups of every expert that each checkpoint holds; with `bf16` the parameter itself is "
      "`master`, and `weight` its bf16 rounding; without, it is `weight`");
  field(
      "sharding",
      c.sharding,
      Named<WriteSharding>{{{"rank0", WriteSharding::kRank0},
                            {"equal", WriteSharding::kEqual},
                            {"adaptive", WriteSharding::kAdaptive}}},
      "who writes what several ranks hold: the lowest of them, each an equal share, or non-expert "
      "state where fewest experts are written");
  field("dynamic_k",
        c.dynamic_k,
        Free{},
        "double the experts of both levels after a recovery where `plt_budget` asks for it");
  field("plt_budget",
        c.plt_budget,
        Range{.low = 0, .high = 1, .low_open = true},
        "proportion of lost tokens (PLT) that all failures together may reach, by `dynamic_k`");
}

template <typename Field>
void visit(CheckpointConfig& c, Field&& field) {
  field("save_interval",
        c.save_interval,
        Every{},
        "steps (`10`) or seconds (`30s`) between checkpoints in storage; 0: none");
  field("non_persistent_save_interval",
        c.non_persistent_save_interval,
        Every{},
        "steps or seconds between snapshots in host memory, which survive the process but not the "
        "node; 0: none");
  field("memory_dir",
        c.memory_dir,
        Free{},
        "directory in memory (tmpfs) of these snapshots, on every node");
  field("keep_latest_k", c.keep_latest_k, at_least(1), "newest checkpoints that are kept");
  field("save_retain_interval",
        c.save_retain_interval,
        at_least(0),
        "checkpoints of steps that it divides are kept for ever; 0: none");
  field("fallback_copies",
        c.fallback_copies,
        at_least(0),
        "older copies kept of each item of a kept checkpoint");
  field(
      "replication_factor",
      c.replication_factor,
      at_least(1),
      "nodes that hold each snapshot in host memory, its own included: all but one of them may be "
      "lost; 1: only its own");
  field("async_save",
        c.async_save,
        Free{},
        "write files while training goes on; false: training waits");
  field.section("pec", c.pec);
}

template <typename Field>
void visit(CommConfig& c, Field&& field) {
  field("timeout_s",
        c.timeout_s,
        at_least(0),
        "seconds until a collective gives up on its peers (exit code 5); 0: never");
  field("shared_memory",
        c.shared_memory,
        Free{},
        "collectives of ranks of one node go through memory that they share; false: by messages, "
        "with the same results");
}

template <typename Field>
void visit(ElasticLayout& c, Field&& field) {
  field("world_size", c.world_size, at_least(1), "processes");
  field("tensor_model_parallel_size",
        c.tensor_model_parallel_size,
        at_least(0),
        "as in `parallel`; 0: its value");
  field("expert_model_parallel_size",
        c.expert_model_parallel_size,
        at_least(0),
        "as in `parallel`; 0: its value");
  field("expert_tensor_parallel_size",
        c.expert_tensor_parallel_size,
        at_least(0),
        "as in `parallel`; 0: its value");
}

template <typename Field>
void visit(ElasticConfig& c, Field&& field) {
  field("layouts",
        c.layouts,
        Maps{},
        "what pecan-launch may run on, the largest that fits first, like `[{world_size: 8}, "
        "{world_size: 4, expert_model_parallel_size: 2}]`; empty: `parallel` on all slots of the "
        "hosts");
  field("max_restarts",
        c.max_restarts,
        at_least(0),
        "restarts by pecan-launch in a row that bring the run no further");
  field("restart_backoff_s",
        c.restart_backoff_s,
        at_least(0),
        "seconds before the second restart in a row, doubled for each further one");
  field("restart_backoff_max_s", c.restart_backoff_max_s, at_least(0), "at most so many seconds");
  field("heartbeat_timeout_s",
        c.heartbeat_timeout_s,
        at_least(0),
        "seconds without progress of any rank after which pecan-launch ends a start; 0: never");
  field("probe_timeout_s",
        c.probe_timeout_s,
        above(0),
        "seconds in which a host must answer pecan-launch, or it counts as lost");
}

template <typename Field>
void visit(FaultConfig& c, Field&& field) {
  field(
      "inject",
      c.inject,
      Texts{},
      "for tests and demonstrations: failures on purpose, like `[\"kill step=4 rank=1\"]` "
      "(docs/how-to/inject-faults.md); the variable `PECAN_FAULT` adds more, with ; between them");
}

template <typename Field>
void visit(LoggingConfig& c, Field&& field) {
  field("log_interval", c.log_interval, at_least(1), "steps between progress lines");
  field("content_hash_interval",
        c.content_hash_interval,
        at_least(0),
        "steps between records of a hash of each item's content, and one after a recovery: for "
        "tests, "
        "as training waits for it; 0: never");
  field("level",
        c.level,
        Choice{{"debug", "info", "warn", "error"}},
        "least important messages that are shown");
}

template <typename Field>
void visit(Config& c, Field&& field) {
  field.section("model", c.model);
  field.section("moe", c.moe);
  field.section("parallel", c.parallel);
  field.section("training", c.training);
  field.section("optimizer", c.optimizer);
  field.section("data", c.data);
  field.section("checkpoint", c.checkpoint);
  field.section("comm", c.comm);
  field.section("elastic", c.elastic);
  field.section("fault", c.fault);
  field.section("logging", c.logging);
}

}  // namespace pecan::config::detail
