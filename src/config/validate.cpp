#include "config/validate.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include <fmt/ranges.h>

#include <pecan/config/fault.hpp>

namespace pecan::config {
namespace {

template <typename Int>
void default_to(Int& value, Int derived) {
  if (value == 0) value = derived;
}

/// "56 or 64": the multiples of `step` next to `value`.
std::string multiples_near(std::int64_t value, std::int64_t step) {
  const std::int64_t lower = value / step * step;
  return lower > 0 ? fmt::format("{} or {}", lower, lower + step) : fmt::format("{}", step);
}

/// "1, 2 or 4": the divisors of `value`.
std::string divisors(std::int64_t value) {
  std::vector<std::int64_t> all;
  for (std::int64_t d = 1; d <= value; ++d) {
    if (value % d == 0) all.push_back(d);
  }
  std::string text;
  for (std::size_t i = 0; i < all.size(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : i + 1 == all.size() ? " or " : ", ", all[i]);
  }
  return text;
}

/// Turns a period {-N} (empty: 1) into a list, and checks a list against the number of layers.
void resolve_layers(MoeConfig& moe, int num_layers) {
  std::vector<int>& pattern = moe.moe_layer_freq;
  if (pattern.empty()) pattern = {-1};
  if (pattern[0] < 0) {
    const int period = -pattern[0];
    pattern.assign(static_cast<std::size_t>(num_layers), 0);
    for (std::size_t i = 0; moe.num_experts > 0 && i < pattern.size();
         i += static_cast<std::size_t>(period)) {
      pattern[i] = 1;
    }
  }
  PECAN_VALIDATE(pattern.size() == static_cast<std::size_t>(num_layers),
                 ConfigError,
                 "moe.moe_layer_freq has {} entries but model.num_layers={}: each layer needs one; "
                 "give {} entries, or "
                 "one number N for an MoE layer in every N",
                 pattern.size(),
                 num_layers,
                 num_layers);
  const bool any = std::find(pattern.begin(), pattern.end(), 1) != pattern.end();
  PECAN_VALIDATE(
      moe.num_experts > 0 || !any,
      ConfigError,
      "moe.moe_layer_freq asks for MoE layers but moe.num_experts=0 makes a dense model; set "
      "moe.num_experts, or leave moe_layer_freq out");
  PECAN_VALIDATE(moe.num_experts == 0 || any,
                 ConfigError,
                 "moe.num_experts={} but moe.moe_layer_freq marks no layer as MoE; put a 1 in the "
                 "list, or set "
                 "moe.num_experts to 0",
                 moe.num_experts);
}

void check_model(const Config& config) {
  const ModelConfig& model = config.model;
  PECAN_VALIDATE(
      model.qk_layernorm || !model.qk_layernorm_across_heads,
      ConfigError,
      "model.qk_layernorm_across_heads=true has no effect without model.qk_layernorm=true; "
      "set that too, or leave it out");
  PECAN_VALIDATE(model.num_attention_heads % model.num_query_groups == 0,
                 ConfigError,
                 "model.num_query_groups={} does not divide model.num_attention_heads={} (each key "
                 "head serves an equal "
                 "share of the query heads); use {}",
                 model.num_query_groups,
                 model.num_attention_heads,
                 divisors(model.num_attention_heads));
  PECAN_VALIDATE(
      model.kv_channels % 2 == 0 || model.position_embedding_type != PositionEmbedding::kRope,
      ConfigError,
      "model.kv_channels={} is odd, but rotary embedding turns pairs of channels; use {}",
      model.kv_channels,
      multiples_near(model.kv_channels, 2));
  PECAN_VALIDATE(model.max_position_embeddings >= config.training.seq_length,
                 ConfigError,
                 "model.max_position_embeddings={} is less than training.seq_length={}; use {} or "
                 "leave it out",
                 model.max_position_embeddings,
                 config.training.seq_length,
                 config.training.seq_length);
}

void check_groups(const MoeConfig& moe) {
  const int groups = moe.moe_router_num_groups;
  const int chosen = moe.moe_router_group_topk;
  if (groups == 0) {
    PECAN_VALIDATE(
        chosen == 0,
        ConfigError,
        "moe.moe_router_group_topk={} but moe.moe_router_num_groups=0: there are no "
        "groups to choose; set moe_router_num_groups, or leave moe_router_group_topk out",
        chosen);
    return;
  }
  PECAN_VALIDATE(moe.num_experts % groups == 0,
                 ConfigError,
                 "moe.moe_router_num_groups={} does not divide moe.num_experts={} (groups are "
                 "equal); use {}",
                 groups,
                 moe.num_experts,
                 divisors(moe.num_experts));
  PECAN_VALIDATE(chosen >= 1 && chosen <= groups,
                 ConfigError,
                 "moe.moe_router_group_topk={} is not one of the {} groups "
                 "(moe.moe_router_num_groups); use 1 to {}",
                 chosen,
                 groups,
                 groups);
  PECAN_VALIDATE(
      moe.moe_router_topk <= chosen * (moe.num_experts / groups),
      ConfigError,
      "moe.moe_router_topk={} is more than the {} experts of moe.moe_router_group_topk={} "
      "groups; choose more groups or fewer experts",
      moe.moe_router_topk,
      chosen * (moe.num_experts / groups),
      chosen);
  PECAN_VALIDATE(moe.moe_router_topk % chosen == 0,
                 ConfigError,
                 "moe.moe_router_topk={} is not divisible by moe.moe_router_group_topk={} (a group "
                 "is judged by its best topk / group_topk scores); use {}",
                 moe.moe_router_topk,
                 chosen,
                 multiples_near(moe.moe_router_topk, chosen));
}

void check_capacity(const MoeConfig& moe) {
  PECAN_VALIDATE(
      moe.moe_expert_capacity_factor > 0 || moe.moe_token_drop_policy == TokenDropPolicy::kProbs,
      ConfigError,
      "moe.moe_token_drop_policy=position has no effect without "
      "moe.moe_expert_capacity_factor; set the factor, or leave the policy out");
}

void check_default_vectors(const MoeConfig& moe) {
  if (!moe.default_vectors.enabled) {
    PECAN_VALIDATE(moe.default_vectors.beta == DefaultVectorsConfig{}.beta,
                   ConfigError,
                   "moe.default_vectors.beta={} has no effect without "
                   "moe.default_vectors.enabled=true; set it, or leave beta out",
                   moe.default_vectors.beta);
    return;
  }
  PECAN_VALIDATE(moe.num_experts > 0,
                 ConfigError,
                 "moe.default_vectors.enabled=true but moe.num_experts=0: a dense model has no "
                 "experts to stand for; leave it out, or set moe.num_experts");
  PECAN_VALIDATE(moe.moe_router_score_function == ScoreFunction::kSoftmax,
                 ConfigError,
                 "moe.default_vectors.enabled=true needs moe.moe_router_score_function=softmax: "
                 "default vectors are weighed by shares that sum to 1 over all experts; set it "
                 "(with moe.moe_router_pre_softmax=true), or leave the default vectors out");
  PECAN_VALIDATE(moe.moe_router_pre_softmax,
                 ConfigError,
                 "moe.default_vectors.enabled=true needs moe.moe_router_pre_softmax=true: experts "
                 "that are not chosen have a score only where the softmax is over all of them; set "
                 "it, or leave the default vectors out");
  PECAN_VALIDATE(moe.moe_router_topk < moe.num_experts,
                 ConfigError,
                 "moe.default_vectors.enabled=true has no effect with moe.moe_router_topk={} of "
                 "moe.num_experts={}: no expert is left to stand for; leave it out, or use a "
                 "smaller moe_router_topk",
                 moe.moe_router_topk,
                 moe.num_experts);
}

void check_moe(const Config& config) {
  const MoeConfig& moe = config.moe;
  check_default_vectors(moe);
  if (moe.num_experts == 0) {
    PECAN_VALIDATE(moe.expert_compute == ExpertCompute::kGrouped,
                   ConfigError,
                   "moe.expert_compute is set but moe.num_experts=0: a dense model has no experts "
                   "to compute; leave it out, or set moe.num_experts");
    PECAN_VALIDATE(config.parallel.expert_model_parallel_size == 1,
                   ConfigError,
                   "parallel.expert_model_parallel_size={} but moe.num_experts=0: a dense model "
                   "has no experts to "
                   "spread; use 1, or set moe.num_experts",
                   config.parallel.expert_model_parallel_size);
    PECAN_VALIDATE(config.checkpoint.pec.experts_per_checkpoint == 0,
                   ConfigError,
                   "checkpoint.pec.experts_per_checkpoint={} but moe.num_experts=0: a dense model "
                   "has no experts to "
                   "choose from; leave it out, or set moe.num_experts",
                   config.checkpoint.pec.experts_per_checkpoint);
    return;
  }
  PECAN_VALIDATE(moe.moe_router_topk <= moe.num_experts,
                 ConfigError,
                 "moe.moe_router_topk={} is more than moe.num_experts={} (a token chooses "
                 "different experts); use at "
                 "most {}",
                 moe.moe_router_topk,
                 moe.num_experts,
                 moe.num_experts);
  PECAN_VALIDATE(config.checkpoint.pec.experts_per_checkpoint <= moe.num_experts,
                 ConfigError,
                 "checkpoint.pec.experts_per_checkpoint={} is more than moe.num_experts={}; use at "
                 "most {}, which makes "
                 "every checkpoint full",
                 config.checkpoint.pec.experts_per_checkpoint,
                 moe.num_experts,
                 moe.num_experts);
  PECAN_VALIDATE(
      moe.moe_router_score_function == ScoreFunction::kSoftmax || !moe.moe_router_pre_softmax,
      ConfigError,
      "moe.moe_router_pre_softmax=true has no meaning with moe.moe_router_score_function=sigmoid "
      "(the chosen scores are divided by their sum); leave it out, or use softmax");
  PECAN_VALIDATE(
      !moe.moe_router_enable_expert_bias ||
          moe.moe_router_score_function == ScoreFunction::kSigmoid,
      ConfigError,
      "moe.moe_router_enable_expert_bias=true needs "
      "moe.moe_router_score_function=sigmoid (a bias of fixed steps suits scores between "
      "0 and 1); use sigmoid, or balance with moe.moe_aux_loss_coeff");
  check_groups(moe);
  check_capacity(moe);
  PECAN_VALIDATE(moe.moe_router_load_balancing_type != "none" || moe.moe_aux_loss_coeff == 0,
                 ConfigError,
                 "moe.moe_aux_loss_coeff={} has no effect with "
                 "moe.moe_router_load_balancing_type=none; set it to 0, or "
                 "use aux_loss",
                 moe.moe_aux_loss_coeff);
}

void check_tensor_parallel(const Config& config) {
  const ParallelConfig& parallel = config.parallel;
  PECAN_VALIDATE(!parallel.overlap_param_gather || parallel.use_distributed_optimizer,
                 ConfigError,
                 "parallel.overlap_param_gather=true but no rank lacks weights to gather; set "
                 "parallel.use_distributed_optimizer=true, or leave it out");
  const int tp = parallel.tensor_model_parallel_size;
  if (tp == 1) return;
  const ModelConfig& model = config.model;
  const auto must_share = [&](const char* key, int size, const char* why) {
    PECAN_VALIDATE(size % tp == 0,
                   ConfigError,
                   "{}={} is not divisible by parallel.tensor_model_parallel_size={} ({}); use "
                   "{}, or a tensor_model_parallel_size of {}",
                   key,
                   size,
                   tp,
                   why,
                   multiples_near(size, tp),
                   divisors(size));
  };
  must_share("model.num_attention_heads",
             model.num_attention_heads,
             "each rank computes an equal share of the heads");
  const int groups = model.num_query_groups;
  PECAN_VALIDATE(groups % tp == 0 || tp % groups == 0,
                 ConfigError,
                 "model.num_query_groups={} is neither a divisor nor a multiple of "
                 "parallel.tensor_model_parallel_size={} (a rank holds whole key-value heads, or "
                 "equally many ranks hold each); use {} or a divisor of {}",
                 groups,
                 tp,
                 multiples_near(groups, tp),
                 tp);
  const std::vector<int>& pattern = config.moe.moe_layer_freq;
  const bool has_dense = std::ranges::find(pattern, 0) != pattern.end();
  if (has_dense) {
    must_share("model.ffn_hidden_size",
               model.ffn_hidden_size,
               "each rank computes an equal share of an FFN");
  }
  must_share("moe.moe_shared_expert_intermediate_size",
             config.moe.moe_shared_expert_intermediate_size,
             "each rank computes an equal share of the shared expert");
  PECAN_VALIDATE(
      !model.qk_layernorm_across_heads,
      ConfigError,
      "model.qk_layernorm_across_heads=true with parallel.tensor_model_parallel_size={}: no rank "
      "has all heads that this norm spans; use a tensor_model_parallel_size of 1, or the norm of "
      "each head",
      tp);
  PECAN_VALIDATE(config.moe.num_experts == 0 || parallel.sequence_parallel,
                 ConfigError,
                 "parallel.tensor_model_parallel_size={} with MoE layers needs "
                 "parallel.sequence_parallel=true (otherwise all {} ranks would dispatch the same "
                 "tokens); set it, or use a tensor_model_parallel_size of 1",
                 tp,
                 tp);
  const std::int64_t tokens =
      std::int64_t{config.training.micro_batch_size} * config.training.seq_length;
  PECAN_VALIDATE(
      !parallel.sequence_parallel || tokens % tp == 0,
      ConfigError,
      "training.micro_batch_size={} x training.seq_length={} = {} tokens are not divisible by "
      "parallel.tensor_model_parallel_size={}, which parallel.sequence_parallel shares them out "
      "over; use a seq_length of {}",
      config.training.micro_batch_size,
      config.training.seq_length,
      tokens,
      tp,
      multiples_near(config.training.seq_length, tp));
}

void check_experts_divide(const Config& config) {
  const int ep = config.parallel.expert_model_parallel_size;
  PECAN_VALIDATE(config.moe.num_experts % ep == 0,
                 ConfigError,
                 "moe.num_experts={} is not divisible by parallel.expert_model_parallel_size={} "
                 "(each rank owns an equal share); use {}",
                 config.moe.num_experts,
                 ep,
                 multiples_near(config.moe.num_experts, ep));
}

void check_expert_parallel(const Config& config) {
  const ParallelConfig& parallel = config.parallel;
  const MoeConfig& moe = config.moe;
  const int etp = parallel.expert_tensor_parallel_size;
  if (moe.num_experts == 0) {
    PECAN_VALIDATE(etp == 1 || etp == parallel.tensor_model_parallel_size,
                   ConfigError,
                   "parallel.expert_tensor_parallel_size={} but moe.num_experts=0: a dense model "
                   "has no experts to share out; leave it out, or set moe.num_experts",
                   etp);
    return;
  }
  check_experts_divide(config);
  PECAN_VALIDATE(moe.moe_ffn_hidden_size % etp == 0,
                 ConfigError,
                 "moe.moe_ffn_hidden_size={} is not divisible by "
                 "parallel.expert_tensor_parallel_size={} (each rank computes an equal share of "
                 "an expert); use {}, or an expert_tensor_parallel_size of {}",
                 moe.moe_ffn_hidden_size,
                 etp,
                 multiples_near(moe.moe_ffn_hidden_size, etp),
                 divisors(moe.moe_ffn_hidden_size));
}

void check_training(const Config& config) {
  const TrainingConfig& training = config.training;
  PECAN_VALIDATE(training.global_batch_size % training.micro_batch_size == 0,
                 ConfigError,
                 "training.global_batch_size={} is not divisible by training.micro_batch_size={} "
                 "(a step is whole "
                 "micro-batches); use {}",
                 training.global_batch_size,
                 training.micro_batch_size,
                 multiples_near(training.global_batch_size, training.micro_batch_size));
  PECAN_VALIDATE(!training.bf16 || training.compute_dtype == ComputeDType::kF32,
                 ConfigError,
                 "training.bf16=true contradicts training.compute_dtype=fp64; keep one of them");
  const OptimizerConfig& optimizer = config.optimizer;
  PECAN_VALIDATE(optimizer.min_lr <= optimizer.lr,
                 ConfigError,
                 "optimizer.min_lr={} is more than optimizer.lr={}; the rate decays from lr to "
                 "min_lr, use at most {}",
                 optimizer.min_lr,
                 optimizer.lr,
                 optimizer.lr);
  PECAN_VALIDATE(optimizer.lr_warmup_init <= optimizer.lr,
                 ConfigError,
                 "optimizer.lr_warmup_init={} is more than optimizer.lr={}; the rate rises from "
                 "lr_warmup_init to lr, "
                 "use at most {}",
                 optimizer.lr_warmup_init,
                 optimizer.lr,
                 optimizer.lr);
  PECAN_VALIDATE(optimizer.lr_decay_style == LrDecayStyle::kConstant ||
                     optimizer.lr_warmup_iters < optimizer.lr_decay_iters,
                 ConfigError,
                 "optimizer.lr_warmup_iters={} leaves no step for the decay, which ends at step {} "
                 "(optimizer.lr_decay_iters); use at most {}",
                 optimizer.lr_warmup_iters,
                 optimizer.lr_decay_iters,
                 optimizer.lr_decay_iters - 1);
  const bool wsd = optimizer.lr_decay_style == LrDecayStyle::kWsd;
  PECAN_VALIDATE(wsd == (optimizer.lr_wsd_decay_iters > 0),
                 ConfigError,
                 "optimizer.lr_wsd_decay_iters={} {}",
                 optimizer.lr_wsd_decay_iters,
                 wsd ? "leaves out how long the decay of lr_decay_style=WSD lasts; set it to the "
                       "number of its steps"
                     : "has no effect without optimizer.lr_decay_style=WSD; leave it out");
  PECAN_VALIDATE(
      !wsd || optimizer.lr_warmup_iters + optimizer.lr_wsd_decay_iters <= optimizer.lr_decay_iters,
      ConfigError,
      "optimizer.lr_wsd_decay_iters={} and lr_warmup_iters={} do not fit into the {} steps of the "
      "schedule (optimizer.lr_decay_iters); use at most {} for the decay",
      optimizer.lr_wsd_decay_iters,
      optimizer.lr_warmup_iters,
      optimizer.lr_decay_iters,
      optimizer.lr_decay_iters - optimizer.lr_warmup_iters);
}

void check_checkpoint(const Config& config) {
  const std::vector<std::string>& groups = config.checkpoint.pec.always_saved;
  const auto has = [&](std::string_view group) {
    return std::find(groups.begin(), groups.end(), group) != groups.end();
  };
  PECAN_VALIDATE(config.training.bf16 || !has("master"),
                 ConfigError,
                 "checkpoint.pec.always_saved=[master] needs training.bf16=true: without bf16 the "
                 "weight is the master; use weight");
  PECAN_VALIDATE(!has("weight") || !has("master"),
                 ConfigError,
                 "checkpoint.pec.always_saved holds both weight and master, but the bf16 weight is "
                 "the rounded master and would be written twice; keep one");
  const bool parameter = has(config.training.bf16 ? "master" : "weight");
  PECAN_VALIDATE(!parameter || !has("moments"),
                 ConfigError,
                 "checkpoint.pec.always_saved=[{}] leaves nothing of an expert that could be "
                 "partial; leave out moments, or make every checkpoint full with "
                 "experts_per_checkpoint={}",
                 fmt::join(groups, ", "),
                 config.moe.num_experts);
}

void check_selection(const Config& config) {
  const PecConfig& pec = config.checkpoint.pec;
  const int experts = config.moe.num_experts;
  const bool by_tokens = pec.selection == "load_aware" || pec.selection == "auto";
  PECAN_VALIDATE(pec.selection != "full" || pec.experts_per_checkpoint == experts,
                 ConfigError,
                 "checkpoint.pec.selection=full saves all {} experts, but "
                 "experts_per_checkpoint={}; leave one of them out",
                 experts,
                 pec.experts_per_checkpoint);
  PECAN_VALIDATE(pec.max_expert_age == 0 || by_tokens,
                 ConfigError,
                 "checkpoint.pec.max_expert_age={} has no effect with selection={}, which reaches "
                 "every expert in turn; leave it out, or choose load_aware or auto",
                 pec.max_expert_age,
                 pec.selection);
  const int rotation =
      experts > 0 ? (experts + pec.experts_per_checkpoint - 1) / pec.experts_per_checkpoint : 0;
  PECAN_VALIDATE(
      pec.max_expert_age == 0 || pec.max_expert_age >= rotation - 1,
      ConfigError,
      "checkpoint.pec.max_expert_age={} cannot be kept: {} experts, {} a checkpoint, take "
      "{} checkpoints; use at least {}",
      pec.max_expert_age,
      experts,
      pec.experts_per_checkpoint,
      rotation,
      rotation - 1);
  PECAN_VALIDATE(!pec.dynamic_k || pec.experts_per_checkpoint < experts,
                 ConfigError,
                 "checkpoint.pec.dynamic_k=true cannot raise experts_per_checkpoint={} of {} "
                 "experts; start with fewer, or leave it out",
                 pec.experts_per_checkpoint,
                 experts);
  PECAN_VALIDATE(!pec.dynamic_k || pec.selection != "auto",
                 ConfigError,
                 "checkpoint.pec.dynamic_k=true sets the number of experts, which selection=auto "
                 "chooses by itself; use sequential or load_aware");
}

void check_fault(const Config& config) {
  for (const std::string& text : config.fault.inject) (void)parse_fault(text);
}

void check_elastic(const Config& config) {
  for (const ElasticLayout& layout : config.elastic.layouts) {
    PECAN_VALIDATE(layout.world_size > 0,
                   ConfigError,
                   "elastic.layouts has a layout without world_size; give the number of processes");
    const Config changed = with_layout(config, layout);
    check_tensor_parallel(changed);
    check_expert_parallel(changed);
    validate_for_world(changed, layout.world_size);
  }
}

void check_rollback(const Config& config) {
  const TrainingConfig& training = config.training;
  if (training.rollback_after_skips == 0) return;
  PECAN_VALIDATE(training.check_for_nan_in_loss_and_grad == NanPolicy::kSkip,
                 ConfigError,
                 "training.rollback_after_skips={} counts skipped steps, but "
                 "check_for_nan_in_loss_and_grad=stop skips none; set that to skip",
                 training.rollback_after_skips);
  PECAN_VALIDATE(!config.checkpoint.save_interval.never(),
                 ConfigError,
                 "training.rollback_after_skips={} returns to a checkpoint, but "
                 "checkpoint.save_interval=0 writes none; set an interval",
                 training.rollback_after_skips);
}

void check_memory_level(const Config& config) {
  const CheckpointConfig& checkpoint = config.checkpoint;
  const PecConfig& pec = checkpoint.pec;
  const bool memory = !checkpoint.non_persistent_save_interval.never();
  PECAN_VALIDATE(memory || checkpoint.replication_factor == 1,
                 ConfigError,
                 "checkpoint.replication_factor={} copies snapshots in host memory to other nodes, "
                 "but checkpoint.non_persistent_save_interval=0 takes none; set an interval, or a "
                 "replication_factor of 1",
                 checkpoint.replication_factor);
  PECAN_VALIDATE(
      !memory || !checkpoint.save_interval.never(),
      ConfigError,
      "checkpoint.non_persistent_save_interval={} without save_interval: memory does not "
      "survive its node, so checkpoints in storage are needed too; set save_interval",
      to_string(checkpoint.non_persistent_save_interval));
  PECAN_VALIDATE(!memory || checkpoint.async_save,
                 ConfigError,
                 "checkpoint.non_persistent_save_interval={} needs async_save=true: snapshots are "
                 "copied while training goes on",
                 to_string(checkpoint.non_persistent_save_interval));
  PECAN_VALIDATE(memory || pec.experts_per_snapshot == pec.experts_per_checkpoint,
                 ConfigError,
                 "checkpoint.pec.experts_per_snapshot={} needs snapshots in memory; set "
                 "checkpoint.non_persistent_save_interval",
                 pec.experts_per_snapshot);
  PECAN_VALIDATE(
      pec.experts_per_snapshot >= pec.experts_per_checkpoint &&
          pec.experts_per_snapshot <= config.moe.num_experts,
      ConfigError,
      "checkpoint.pec.experts_per_snapshot={} must lie between experts_per_checkpoint={}, "
      "which are taken from the snapshot, and moe.num_experts={}",
      pec.experts_per_snapshot,
      pec.experts_per_checkpoint,
      config.moe.num_experts);
  PECAN_VALIDATE(!checkpoint.memory_dir.empty(),
                 ConfigError,
                 "checkpoint.memory_dir is empty; give a directory in memory, as a rule /dev/shm");
}

void check_data(const Config& config) {
  const DataConfig& data = config.data;
  PECAN_VALIDATE(data.split.empty() || data.valid_data_path.empty(),
                 ConfigError,
                 "data.split={} and data.valid_data_path={} both name the held-out text; keep one",
                 data.split,
                 data.valid_data_path);
  PECAN_VALIDATE(
      !data.reset_position_ids || config.model.position_embedding_type != PositionEmbedding::kNone,
      ConfigError,
      "data.reset_position_ids=true has no effect with model.position_embedding_type=none; leave "
      "it "
      "out, or choose rope or learned_absolute");
  const bool documents = data.reset_attention_mask || data.reset_position_ids || data.eod_mask_loss;
  PECAN_VALIDATE(!documents || !data.tokenizer_model.empty(),
                 ConfigError,
                 "data.reset_attention_mask, reset_position_ids and eod_mask_loss need to know the "
                 "end-of-document token; set data.tokenizer_model");
}

}  // namespace

namespace detail {

Config unresolved_defaults() {
  Config config;
  config.model.ffn_hidden_size = 0;
  config.model.num_query_groups = 0;
  config.model.kv_channels = 0;
  config.parallel.expert_tensor_parallel_size = 0;
  return config;
}

void resolve(Config& config) {
  ModelConfig& model = config.model;
  if (model.kv_channels == 0) {
    PECAN_VALIDATE(model.hidden_size % model.num_attention_heads == 0,
                   ConfigError,
                   "model.hidden_size={} is not divisible by model.num_attention_heads={} (each "
                   "head gets an equal "
                   "share); use {}, or set model.kv_channels",
                   model.hidden_size,
                   model.num_attention_heads,
                   multiples_near(model.hidden_size, model.num_attention_heads));
    model.kv_channels = model.hidden_size / model.num_attention_heads;
  }
  PECAN_VALIDATE(model.hidden_size <= std::numeric_limits<int>::max() / 4,
                 ConfigError,
                 "model.hidden_size={} is beyond any model; use a smaller one",
                 model.hidden_size);
  default_to(model.ffn_hidden_size, 4 * model.hidden_size);
  default_to(model.num_query_groups, model.num_attention_heads);
  default_to(model.max_position_embeddings, config.training.seq_length);
  default_to(config.moe.moe_ffn_hidden_size, model.ffn_hidden_size);
  default_to(config.optimizer.lr_decay_iters, config.training.train_iters);
  ParallelConfig& parallel = config.parallel;
  default_to(parallel.expert_tensor_parallel_size, parallel.tensor_model_parallel_size);
  if (parallel.data_parallel_sharding_strategy != DataSharding::kNone) {
    parallel.use_distributed_optimizer = true;
  } else if (parallel.use_distributed_optimizer) {
    parallel.data_parallel_sharding_strategy = DataSharding::kOptimizer;
  }
  resolve_layers(config.moe, model.num_layers);
  PecConfig& pec = config.checkpoint.pec;
  default_to(pec.experts_per_checkpoint, config.moe.num_experts);
  default_to(pec.experts_per_snapshot, pec.experts_per_checkpoint);
  check_model(config);
  check_moe(config);
  check_tensor_parallel(config);
  check_expert_parallel(config);
  check_training(config);
  check_data(config);
  check_checkpoint(config);
  check_selection(config);
  check_memory_level(config);
  check_rollback(config);
  check_elastic(config);
  check_fault(config);
}

}  // namespace detail

Config with_layout(const Config& config, const ElasticLayout& layout) {
  Config changed = config;
  const auto set = [](int& value, int wanted) {
    if (wanted > 0) value = wanted;
  };
  ParallelConfig& parallel = changed.parallel;
  // Unless it is given, the tensor parallelism of experts follows that of the rest, as it does in
  // `parallel`.
  if (layout.expert_tensor_parallel_size == 0 && layout.tensor_model_parallel_size > 0 &&
      parallel.expert_tensor_parallel_size == parallel.tensor_model_parallel_size)
    parallel.expert_tensor_parallel_size = layout.tensor_model_parallel_size;
  set(parallel.tensor_model_parallel_size, layout.tensor_model_parallel_size);
  set(parallel.expert_model_parallel_size, layout.expert_model_parallel_size);
  set(parallel.expert_tensor_parallel_size, layout.expert_tensor_parallel_size);
  return changed;
}

void validate_for_world(const Config& config, int world_size) {
  const ParallelConfig& p = config.parallel;
  const int ep = p.expert_model_parallel_size;
  const int dense =
      p.tensor_model_parallel_size * p.context_parallel_size * p.pipeline_model_parallel_size;
  const int sparse = p.expert_tensor_parallel_size * ep * p.pipeline_model_parallel_size;
  PECAN_VALIDATE(world_size >= 1,
                 ConfigError,
                 "a world of {} ranks cannot train; start at least 1",
                 world_size);
  PECAN_VALIDATE(world_size % dense == 0,
                 ConfigError,
                 "tensor ({}) x context ({}) x pipeline ({}) parallel sizes = {} do not divide the "
                 "{} ranks (every model "
                 "copy is complete); start {} ranks",
                 p.tensor_model_parallel_size,
                 p.context_parallel_size,
                 p.pipeline_model_parallel_size,
                 dense,
                 world_size,
                 multiples_near(world_size, dense));
  PECAN_VALIDATE(world_size % sparse == 0,
                 ConfigError,
                 "{} does not divide the {} ranks (every copy of the experts is complete); use an "
                 "expert_model_parallel_size of {}, or start {} ranks",
                 p.expert_tensor_parallel_size == 1
                     ? fmt::format("parallel.expert_model_parallel_size={}", ep)
                     : fmt::format("parallel.expert_tensor_parallel_size={} x "
                                   "expert_model_parallel_size={} = {}",
                                   p.expert_tensor_parallel_size,
                                   ep,
                                   sparse),
                 world_size,
                 divisors(std::gcd(std::max(world_size / p.expert_tensor_parallel_size, 1),
                                   std::max(config.moe.num_experts, 1))),
                 multiples_near(world_size, sparse));
  check_experts_divide(config);
  const int data_parallel = world_size / dense;
  const std::int64_t samples = std::int64_t{config.training.micro_batch_size} * data_parallel;
  PECAN_VALIDATE(config.training.global_batch_size % samples == 0,
                 ConfigError,
                 "training.global_batch_size={} is not divisible by micro_batch_size={} x {} "
                 "data-parallel ranks (all "
                 "ranks compute equally many micro-batches); use {}",
                 config.training.global_batch_size,
                 config.training.micro_batch_size,
                 data_parallel,
                 multiples_near(config.training.global_batch_size, samples));
}

}  // namespace pecan::config
