#include <algorithm>
#include <cmath>

#include <pecan/core/philox.hpp>

#include <pecan/ops/capacity.hpp>
#include <pecan/ops/elementwise.hpp>
#include <pecan/ops/random_init.hpp>

#include <pecan/model/dims.hpp>

namespace pecan::model {

using parallel::ComputedIn;
using parallel::ParamSpec;
using parallel::WeightDecay;

int ModelDims::num_moe_layers() const {
  return int(std::ranges::count(is_moe, true));
}

std::int64_t ModelDims::capacity() const {
  return capacity_factor > 0 ? ops::expert_capacity(tokens(), topk, num_experts, capacity_factor)
                             : 0;
}

ModelDims plan_dims(const config::Config& config, std::int64_t vocab_size) {
  const config::ModelConfig& model = config.model;
  const config::MoeConfig& moe = config.moe;
  PECAN_VALIDATE(vocab_size > 0,
                 ConfigError,
                 "the vocabulary has {} entries; set model.vocab_size or data.tokenizer_model",
                 vocab_size);
  ModelDims dims;
  dims.dtype = config.training.bf16                                          ? DType::kBF16
               : config.training.compute_dtype == config::ComputeDType::kF64 ? DType::kF64
                                                                             : DType::kF32;
  dims.num_layers = model.num_layers;
  dims.hidden = model.hidden_size;
  dims.heads = model.num_attention_heads;
  dims.kv_groups = model.num_query_groups;
  dims.head_dim = model.kv_channels;
  dims.ffn = model.ffn_hidden_size;
  dims.vocab = vocab_size;
  const std::int64_t multiple =
      std::int64_t(model.make_vocab_size_divisible_by) * config.parallel.tensor_model_parallel_size;
  dims.padded_vocab = (vocab_size + multiple - 1) / multiple * multiple;
  dims.sequence = config.training.seq_length;
  dims.micro_batch = config.training.micro_batch_size;
  dims.max_positions = model.max_position_embeddings;
  dims.norm_epsilon = model.norm_epsilon;
  dims.rotary_base = model.rotary_base;
  dims.init_std = model.init_method_std;
  dims.normalization = model.normalization;
  dims.position_embedding = model.position_embedding_type;
  dims.qk_norm = !model.qk_layernorm               ? QkNorm::kNone
                 : model.qk_layernorm_across_heads ? QkNorm::kWhole
                                                   : QkNorm::kPerHead;
  dims.gated_ffn = model.swiglu;
  dims.linear_bias = !model.disable_bias_linear;
  dims.tied_embeddings = !model.untie_embeddings_and_output_weights;
  dims.is_moe.assign(std::size_t(model.num_layers), false);
  if (moe.num_experts > 0) {
    dims.expert_ffn = moe.moe_ffn_hidden_size;
    dims.shared_ffn = moe.moe_shared_expert_intermediate_size;
    dims.num_experts = moe.num_experts;
    dims.topk = moe.moe_router_topk;
    dims.aux_loss_coeff =
        moe.moe_router_load_balancing_type == "aux_loss" ? moe.moe_aux_loss_coeff : 0.0;
    dims.z_loss_coeff = moe.moe_z_loss_coeff;
    dims.router_scaling = moe.moe_router_topk_scaling_factor;
    dims.score_function = moe.moe_router_score_function;
    dims.num_groups = moe.moe_router_num_groups;
    dims.group_topk = moe.moe_router_group_topk;
    dims.expert_bias = moe.moe_router_enable_expert_bias;
    dims.force_balance = moe.moe_router_force_load_balancing;
    dims.capacity_factor = moe.moe_expert_capacity_factor;
    dims.drop_policy = moe.moe_token_drop_policy;
    dims.router_pre_softmax = moe.moe_router_pre_softmax;
    dims.dispatch_buffer_factor = moe.dispatch_buffer_factor;
    for (std::size_t layer = 0; layer < dims.is_moe.size(); ++layer) {
      dims.is_moe[layer] = moe.moe_layer_freq.at(layer) != 0;
    }
  }
  return dims;
}

std::string layer_name(LayerId layer) {
  return fmt::format("model.layers.{}", layer);
}

std::string expert_name(LayerId layer, ExpertId expert) {
  return fmt::format("{}.mlp.experts.{}", layer_name(layer), expert);
}

std::vector<ParamSpec> plan_parameters(const ModelDims& dims) {
  std::vector<ParamSpec> specs;
  // Matrices that write into the residual stream start smaller, so that its variance does not grow
  // with depth.
  const double output_std = dims.init_std / std::sqrt(2.0 * double(dims.num_layers));
  const auto matrix =
      [&](std::string name, std::int64_t rows, std::int64_t columns, double std_dev) -> ParamSpec& {
    specs.push_back({.name = std::move(name),
                     .shape = Shape{rows, columns},
                     .padded_rows = rows,
                     .init_std = std_dev,
                     .decay = WeightDecay::kDecoupled});
    return specs.back();
  };
  const auto vector = [&](std::string name, std::int64_t size, double value) -> ParamSpec& {
    specs.push_back({.name = std::move(name),
                     .shape = Shape{size},
                     .padded_rows = size,
                     .init_value = value,
                     .computed_in = ComputedIn::kMasterType});
    return specs.back();
  };
  const auto norm = [&](const std::string& name, std::int64_t size) {
    vector(name + ".weight", size, 1);
    if (dims.normalization == config::Normalization::kLayerNorm) vector(name + ".bias", size, 0);
  };
  const auto linear = [&](const std::string& name,
                          std::int64_t rows,
                          std::int64_t columns,
                          double std_dev,
                          ExpertId expert = ExpertId{-1}) {
    matrix(name + ".weight", rows, columns, std_dev).expert = expert;
    if (dims.linear_bias) vector(name + ".bias", rows, 0).expert = expert;
  };
  const auto mlp = [&](const std::string& prefix, std::int64_t ffn, ExpertId expert) {
    if (dims.gated_ffn) linear(prefix + ".gate_proj", ffn, dims.hidden, dims.init_std, expert);
    linear(prefix + ".up_proj", ffn, dims.hidden, dims.init_std, expert);
    linear(prefix + ".down_proj", dims.hidden, ffn, output_std, expert);
  };

  matrix("model.embed_tokens.weight", dims.vocab, dims.hidden, dims.init_std).padded_rows =
      dims.padded_vocab;
  if (dims.position_embedding == config::PositionEmbedding::kLearnedAbsolute) {
    matrix("model.embed_positions.weight", dims.max_positions, dims.hidden, dims.init_std);
  }
  for (std::int64_t i = 0; i < dims.num_layers; ++i) {
    const LayerId layer{std::int32_t(i)};
    const std::string prefix = layer_name(layer);
    const std::string attention = prefix + ".self_attn";
    const std::size_t first = specs.size();
    const std::int64_t q_width = dims.heads * dims.head_dim;
    const std::int64_t kv_width = dims.kv_groups * dims.head_dim;
    norm(prefix + ".input_layernorm", dims.hidden);
    linear(attention + ".q_proj", q_width, dims.hidden, dims.init_std);
    linear(attention + ".k_proj", kv_width, dims.hidden, dims.init_std);
    linear(attention + ".v_proj", kv_width, dims.hidden, dims.init_std);
    linear(attention + ".o_proj", dims.hidden, q_width, output_std);
    if (dims.qk_norm != QkNorm::kNone) {
      const bool per_head = dims.qk_norm == QkNorm::kPerHead;
      norm(attention + ".q_norm", per_head ? dims.head_dim : q_width);
      norm(attention + ".k_norm", per_head ? dims.head_dim : kv_width);
    }
    norm(prefix + ".post_attention_layernorm", dims.hidden);
    if (dims.is_moe[std::size_t(i)]) {
      matrix(prefix + ".mlp.gate.weight", dims.num_experts, dims.hidden, dims.init_std)
          .computed_in = ComputedIn::kMasterType;
      if (dims.shared_ffn > 0) mlp(prefix + ".mlp.shared_expert", dims.shared_ffn, ExpertId{-1});
      for (std::int32_t e = 0; e < dims.num_experts; ++e)
        mlp(expert_name(layer, ExpertId{e}), dims.expert_ffn, ExpertId{e});
    } else {
      mlp(prefix + ".mlp", dims.ffn, ExpertId{-1});
    }
    for (std::size_t s = first; s < specs.size(); ++s) specs[s].layer = layer;
  }
  norm("model.norm", dims.hidden);
  if (!dims.tied_embeddings) {
    matrix("lm_head.weight", dims.vocab, dims.hidden, dims.init_std).padded_rows =
        dims.padded_vocab;
  }
  return specs;
}

void initialise(Context& ctx, parallel::ParamSet& params, std::uint64_t seed) {
  for (const parallel::Param& param : params.params()) {
    const ParamSpec& spec = param.spec;
    // Padded rows come last in row-major order: they are left at zero.
    const device::ParamStorage true_rows(param.master.memory(), param.master.dtype(), spec.shape);
    PECAN_EXPECTS(param.master.order() == device::StorageOrder::kRowMajor);
    if (spec.init_std > 0) {
      ops::init_normal(ctx,
                       true_rows,
                       spec.shape,
                       Block::whole(spec.shape).offset,
                       seed,
                       stream_of(spec.name),
                       spec.init_std);
    } else {
      ops::init_constant(ctx, true_rows, spec.init_value);
    }
  }
  derive_weights(ctx, params);
}

void derive_weights(Context& ctx, parallel::ParamSet& params) {
  for (const parallel::Param& param : params.params()) {
    if (param.is_derived()) ops::cast(ctx, param.master.flat(), param.weight.flat());
  }
}

}  // namespace pecan::model
