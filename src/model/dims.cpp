#include <algorithm>
#include <cmath>

#include <pecan/core/philox.hpp>

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
  dims.norm_epsilon = model.norm_epsilon;
  dims.rotary_base = model.rotary_base;
  dims.init_std = model.init_method_std;
  dims.qk_norm = model.qk_layernorm;
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
  const auto norm = [&](std::string name, std::int64_t size) -> ParamSpec& {
    specs.push_back({.name = std::move(name),
                     .shape = Shape{size},
                     .padded_rows = size,
                     .init_value = 1,
                     .computed_in = ComputedIn::kMasterType});
    return specs.back();
  };
  const auto mlp = [&](const std::string& prefix, std::int64_t ffn, ExpertId expert) {
    matrix(prefix + ".gate_proj.weight", ffn, dims.hidden, dims.init_std).expert = expert;
    matrix(prefix + ".up_proj.weight", ffn, dims.hidden, dims.init_std).expert = expert;
    matrix(prefix + ".down_proj.weight", dims.hidden, ffn, output_std).expert = expert;
  };

  matrix("model.embed_tokens.weight", dims.vocab, dims.hidden, dims.init_std).padded_rows =
      dims.padded_vocab;
  for (std::int64_t i = 0; i < dims.num_layers; ++i) {
    const LayerId layer{std::int32_t(i)};
    const std::string prefix = layer_name(layer);
    const std::string attention = prefix + ".self_attn";
    const std::size_t first = specs.size();
    norm(prefix + ".input_layernorm.weight", dims.hidden);
    matrix(attention + ".q_proj.weight", dims.heads * dims.head_dim, dims.hidden, dims.init_std);
    matrix(
        attention + ".k_proj.weight", dims.kv_groups * dims.head_dim, dims.hidden, dims.init_std);
    matrix(
        attention + ".v_proj.weight", dims.kv_groups * dims.head_dim, dims.hidden, dims.init_std);
    matrix(attention + ".o_proj.weight", dims.hidden, dims.heads * dims.head_dim, output_std);
    if (dims.qk_norm) {
      norm(attention + ".q_norm.weight", dims.head_dim);
      norm(attention + ".k_norm.weight", dims.head_dim);
    }
    norm(prefix + ".post_attention_layernorm.weight", dims.hidden);
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
  norm("model.norm.weight", dims.hidden);
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
