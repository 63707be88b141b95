#include <cmath>

#include <pecan/convert/upcycle.hpp>

namespace pecan::convert {
namespace {

using model::ModelDims;

/// Refuses a value of the model that both must have.
template <typename Value>
void require_equal(const char* key, const Value& dense, const Value& moe) {
  if (dense == moe) return;
  if constexpr (std::is_enum_v<Value>) {
    throw ConfigError(
        fmt::format("{} is not that of the dense run: upcycling changes nothing but the FFNs; set "
                    "it as in the dense run's config.yaml",
                    key));
  } else {
    throw ConfigError(fmt::format(
        "{}={}, but {} in the dense run: upcycling changes nothing but the FFNs; set it "
        "as there",
        key,
        moe,
        dense));
  }
}

void require_same_body(const ModelDims& dense, const ModelDims& moe) {
  require_equal("model.num_layers", dense.num_layers, moe.num_layers);
  require_equal("model.hidden_size", dense.hidden, moe.hidden);
  require_equal("model.num_attention_heads", dense.heads, moe.heads);
  require_equal("model.num_query_groups", dense.kv_groups, moe.kv_groups);
  require_equal("model.kv_channels", dense.head_dim, moe.head_dim);
  require_equal("the vocabulary", dense.vocab, moe.vocab);
  require_equal("model.normalization", dense.normalization, moe.normalization);
  require_equal("model.norm_epsilon", dense.norm_epsilon, moe.norm_epsilon);
  require_equal("model.position_embedding_type", dense.position_embedding, moe.position_embedding);
  if (moe.position_embedding == config::PositionEmbedding::kRope)
    require_equal("model.rotary_base", dense.rotary_base, moe.rotary_base);
  if (moe.position_embedding == config::PositionEmbedding::kLearnedAbsolute)
    require_equal("model.max_position_embeddings", dense.max_positions, moe.max_positions);
  require_equal("model.qk_layernorm (or qk_layernorm_across_heads)", dense.qk_norm, moe.qk_norm);
  require_equal("model.swiglu", dense.gated_ffn, moe.gated_ffn);
  require_equal("model.disable_bias_linear", !dense.linear_bias, !moe.linear_bias);
  require_equal(
      "model.untie_embeddings_and_output_weights", !dense.tied_embeddings, !moe.tied_embeddings);
  if (moe.num_moe_layers() < int(moe.num_layers))
    require_equal("model.ffn_hidden_size", dense.ffn, moe.ffn);
}

/// Of default vectors, which are zero at first, it knows nothing.
double weight_sum(const ModelDims& dims) {
  const bool sigmoid = dims.score_function == config::ScoreFunction::kSigmoid;
  double sum = 1;
  if (sigmoid && dims.topk == 1) sum = 0.5;
  if (!sigmoid && dims.router_pre_softmax) sum = double(dims.topk) / double(dims.num_experts);
  return sum * dims.router_scaling;
}

}  // namespace

UpcyclePlan plan_upcycling(const ModelDims& dense,
                           const ModelDims& moe,
                           const UpcycleOptions& options) {
  PECAN_VALIDATE(options.drop_ratio >= 0 && options.drop_ratio <= 1,
                 ConfigError,
                 "the drop ratio {} is no share of an expert's neurons; use 0 (copies) to 1 (all "
                 "drawn anew)",
                 options.drop_ratio);
  PECAN_VALIDATE(options.router_std > 0,
                 ConfigError,
                 "routers with a standard deviation of {} would send every token to the same "
                 "experts; use a number above 0, like 0.02",
                 options.router_std);
  PECAN_VALIDATE(dense.num_experts == 0,
                 ConfigError,
                 "the run to begin from has {} experts already; upcycling begins with a dense "
                 "model (moe.num_experts=0)",
                 dense.num_experts);
  PECAN_VALIDATE(moe.num_experts > 0,
                 ConfigError,
                 "moe.num_experts=0 makes a dense model, of which nothing would be upcycled; set "
                 "the experts to make");
  require_same_body(dense, moe);
  PECAN_VALIDATE(moe.shared_ffn == 0,
                 ConfigError,
                 "moe.moe_shared_expert_intermediate_size={}: a dense model has nothing that a "
                 "shared expert could begin as; leave it out",
                 moe.shared_ffn);
  PECAN_VALIDATE(
      moe.expert_ffn <= dense.ffn && dense.ffn % moe.expert_ffn == 0,
      ConfigError,
      "moe.moe_ffn_hidden_size={} does not divide the dense run's model.ffn_hidden_size={} (an "
      "expert begins as all of the FFN or an equal part of it); use {} or a divisor",
      moe.expert_ffn,
      dense.ffn,
      dense.ffn);
  UpcyclePlan plan;
  plan.granularity = dense.ffn / moe.expert_ffn;
  PECAN_VALIDATE(moe.num_experts % plan.granularity == 0,
                 ConfigError,
                 "moe.num_experts={} is not divisible by {}, the parts of moe_ffn_hidden_size={} "
                 "into which the FFN is cut; use {} or another multiple",
                 moe.num_experts,
                 plan.granularity,
                 moe.expert_ffn,
                 (moe.num_experts / plan.granularity + 1) * plan.granularity);
  PECAN_VALIDATE(moe.topk % plan.granularity == 0,
                 ConfigError,
                 "moe.moe_router_topk={} is not divisible by {}, the parts of "
                 "moe_ffn_hidden_size={} into which the FFN is cut: a token's experts would lack "
                 "parts of it; use {}",
                 moe.topk,
                 plan.granularity,
                 moe.expert_ffn,
                 (moe.topk / plan.granularity + 1) * plan.granularity);
  PECAN_VALIDATE(
      moe.num_groups == 0 || moe.num_experts / moe.num_groups % plan.granularity == 0,
      ConfigError,
      "moe.moe_router_num_groups={} makes groups of {} experts, which the {} parts of a copy of "
      "the FFN would cross; use fewer groups",
      moe.num_groups,
      moe.num_experts / moe.num_groups,
      plan.granularity);
  plan.copies = moe.num_experts / plan.granularity;
  plan.drawn = std::int64_t(options.drop_ratio * double(moe.expert_ffn));
  PECAN_VALIDATE(plan.drawn > 0 || options.indices == DropIndices::kShared,
                 ConfigError,
                 "independent indices have no effect where no neuron is drawn anew (drop ratio {} "
                 "of {} neurons); leave them out, or use a larger ratio",
                 options.drop_ratio,
                 moe.expert_ffn);
  plan.weight_sum = weight_sum(moe);
  const double scale = double(plan.granularity) / plan.weight_sum;
  plan.up_scale = moe.gated_ffn ? std::sqrt(scale) : 1;
  plan.down_scale = moe.gated_ffn ? std::sqrt(scale) : scale;
  plan.down_bias_scale = 1 / plan.weight_sum;
  return plan;
}

std::string_view name_of(DropIndices indices) {
  return indices == DropIndices::kShared ? "shared" : "independent";
}

}  // namespace pecan::convert
