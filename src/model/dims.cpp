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
using parallel::ReplicaGradient;
using parallel::TensorSplit;
using parallel::WeightDecay;

int ModelDims::num_moe_layers() const {
  return int(std::ranges::count(is_moe, true));
}

std::int64_t ModelDims::head_tokens() const {
  constexpr std::int64_t kLogits = std::int64_t{1} << 21U;
  constexpr std::int64_t kLeast = 128;
  const std::int64_t by_vocabulary =
      std::max(kLeast, kLogits / std::max<std::int64_t>(1, local_vocab()));
  return std::min(tokens(), head_piece > 0 ? head_piece : by_vocabulary);
}

std::int64_t device_head_piece(std::int64_t vocab, DType dtype) {
  // A piece of C tokens reads the weights twice, and reads and writes their gradients: 12 bytes of
  // bf16 a weight (f32 16) for 6 C flops. Tensor cores keep up with memory from 300 flops a byte on
  // (H100; A100 160, B200 280), multiply-adds from 20: C of 600 and 53.
  const std::int64_t least = dtype == DType::kBF16 ? 1024 : 128;
  constexpr std::int64_t kCacheBytes = std::int64_t{32} << 20U;  // of 50 MB on an H100
  constexpr std::int64_t kTile = 128;                            // rows of a product
  const std::int64_t row_bytes = std::max<std::int64_t>(1, vocab) * std::int64_t(size_of(dtype));
  return std::max(least, kCacheBytes / row_bytes / kTile * kTile);
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
  dims.tp = config.parallel.tensor_model_parallel_size;
  dims.recompute = config.training.recompute_granularity;
  dims.sequence_parallel = config.parallel.sequence_parallel ? parallel::SequenceParallel::kOn
                                                             : parallel::SequenceParallel::kOff;
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
  if (config.training.device == config::DeviceChoice::kCuda)
    dims.head_piece = device_head_piece(dims.local_vocab(), dims.dtype);
  dims.gated_ffn = model.swiglu;
  dims.linear_bias = !model.disable_bias_linear;
  dims.tied_embeddings = !model.untie_embeddings_and_output_weights;
  dims.is_moe.assign(std::size_t(model.num_layers), false);
  if (moe.num_experts > 0) {
    dims.expert_ffn = moe.moe_ffn_hidden_size;
    dims.shared_ffn = moe.moe_shared_expert_intermediate_size;
    dims.num_experts = moe.num_experts;
    dims.topk = moe.moe_router_topk;
    dims.ep = config.parallel.expert_model_parallel_size;
    dims.etp = config.parallel.expert_tensor_parallel_size;
    dims.aux_loss_coeff =
        moe.moe_router_load_balancing_type == "none" ? 0.0 : moe.moe_aux_loss_coeff;
    dims.balance = moe.moe_router_load_balancing_type == "seq_aux_loss"      ? Balance::kSequence
                   : moe.moe_router_load_balancing_type == "global_aux_loss" ? Balance::kGlobalBatch
                                                                             : Balance::kMicroBatch;
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
    dims.expert_compute = moe.expert_compute;
    dims.default_vectors = moe.default_vectors.enabled;
    dims.default_beta = moe.default_vectors.beta;
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
  // What reads the residual stream sees its own tokens only, where that is shared out.
  const ReplicaGradient of_stream =
      dims.shares_stream() ? ReplicaGradient::kPartial : ReplicaGradient::kWhole;
  const auto norm = [&](const std::string& name, std::int64_t size, ReplicaGradient gradient) {
    vector(name + ".weight", size, 1).replica_gradient = gradient;
    if (dims.normalization == config::Normalization::kLayerNorm)
      vector(name + ".bias", size, 0).replica_gradient = gradient;
  };
  struct Cut {
    TensorSplit split;
    int num_parts = 0;
  };
  const auto linear = [&](const std::string& name,
                          std::int64_t rows,
                          std::int64_t columns,
                          double std_dev,
                          Cut cut,
                          ExpertId expert = ExpertId{-1}) {
    const auto place = [&](ParamSpec& spec, TensorSplit split) {
      spec.expert = expert;
      spec.split = split;
      spec.num_parts = cut.num_parts;
    };
    place(matrix(name + ".weight", rows, columns, std_dev), cut.split);
    // The bias of a row-parallel map is added once to the sum of the ranks' parts.
    if (dims.linear_bias) {
      place(vector(name + ".bias", rows, 0),
            cut.split == TensorSplit::kRows ? TensorSplit::kRows : TensorSplit::kNone);
    }
  };
  const auto mlp = [&](const std::string& prefix, std::int64_t ffn, ExpertId expert) {
    const Cut outputs{TensorSplit::kRows}, inputs{TensorSplit::kColumns};
    if (dims.gated_ffn)
      linear(prefix + ".gate_proj", ffn, dims.hidden, dims.init_std, outputs, expert);
    linear(prefix + ".up_proj", ffn, dims.hidden, dims.init_std, outputs, expert);
    linear(prefix + ".down_proj", dims.hidden, ffn, output_std, inputs, expert);
  };
  const auto vocabulary = [&](const std::string& name) -> ParamSpec& {
    ParamSpec& spec = matrix(name, dims.vocab, dims.hidden, dims.init_std);
    spec.padded_rows = dims.padded_vocab;
    spec.split = TensorSplit::kRows;
    return spec;
  };
  const int last_stage = int(dims.num_layers) + 1;
  const auto set_stage = [&](std::size_t first_spec, int stage) {
    for (std::size_t s = first_spec; s < specs.size(); ++s)
      specs[s].first_stage = specs[s].last_stage = stage;
  };

  vocabulary("model.embed_tokens.weight");
  if (dims.position_embedding == config::PositionEmbedding::kLearnedAbsolute) {
    matrix("model.embed_positions.weight", dims.max_positions, dims.hidden, dims.init_std)
        .replica_gradient = of_stream;
  }
  if (dims.tied_embeddings) specs.front().last_stage = last_stage;
  for (std::int64_t i = 0; i < dims.num_layers; ++i) {
    const LayerId layer{std::int32_t(i)};
    const std::string prefix = layer_name(layer);
    const std::string attention = prefix + ".self_attn";
    const std::size_t first = specs.size();
    const std::int64_t q_width = dims.heads * dims.head_dim;
    const std::int64_t kv_width = dims.kv_groups * dims.head_dim;
    const Cut by_head{TensorSplit::kRows, int(dims.heads)};
    const Cut by_group{TensorSplit::kRows, int(dims.kv_groups)};
    norm(prefix + ".input_layernorm", dims.hidden, of_stream);
    linear(attention + ".q_proj", q_width, dims.hidden, dims.init_std, by_head);
    linear(attention + ".k_proj", kv_width, dims.hidden, dims.init_std, by_group);
    linear(attention + ".v_proj", kv_width, dims.hidden, dims.init_std, by_group);
    linear(attention + ".o_proj", dims.hidden, q_width, output_std, {TensorSplit::kColumns});
    if (dims.qk_norm != QkNorm::kNone) {
      const bool per_head = dims.qk_norm == QkNorm::kPerHead;
      // Each rank sees its own heads only.
      const ReplicaGradient of_heads =
          dims.tp > 1 ? ReplicaGradient::kPartial : ReplicaGradient::kWhole;
      norm(attention + ".q_norm", per_head ? dims.head_dim : q_width, of_heads);
      norm(attention + ".k_norm", per_head ? dims.head_dim : kv_width, of_heads);
    }
    norm(prefix + ".post_attention_layernorm", dims.hidden, of_stream);
    if (dims.is_moe[std::size_t(i)]) {
      ParamSpec& router =
          matrix(prefix + ".mlp.gate.weight", dims.num_experts, dims.hidden, dims.init_std);
      router.computed_in = ComputedIn::kMasterType;
      router.replica_gradient = of_stream;
      if (dims.shared_ffn > 0) mlp(prefix + ".mlp.shared_expert", dims.shared_ffn, ExpertId{-1});
      for (std::int32_t e = 0; e < dims.num_experts; ++e)
        mlp(expert_name(layer, ExpertId{e}), dims.expert_ffn, ExpertId{e});
    } else {
      mlp(prefix + ".mlp", dims.ffn, ExpertId{-1});
    }
    for (std::size_t s = first; s < specs.size(); ++s) specs[s].layer = layer;
    set_stage(first, int(i) + 1);
  }
  const std::size_t first = specs.size();
  norm("model.norm", dims.hidden, of_stream);
  if (!dims.tied_embeddings) vocabulary("lm_head.weight");
  set_stage(first, last_stage);
  return specs;
}

void initialise(Context& ctx, parallel::ParamSet& params, std::uint64_t seed) {
  for (const parallel::Param& param : params.params()) {
    const ParamSpec& spec = param.spec;
    const Block owned = param.owned_block();
    if (owned.extent.num_elements() == 0) continue;
    // Padded rows come last in row-major order: they are left at zero.
    const device::ParamStorage true_rows(param.master.memory(), param.master.dtype(), owned.extent);
    PECAN_EXPECTS(param.master.order() == device::StorageOrder::kRowMajor);
    if (spec.init_std > 0) {
      ops::init_normal(
          ctx, true_rows, spec.shape, owned.offset, seed, stream_of(spec.name), spec.init_std);
    } else {
      ops::init_constant(ctx, true_rows, spec.init_value);
    }
  }
  derive_weights(ctx, params);
}

void derive_weights(Context& ctx, parallel::ParamSet& params) {
  for (const parallel::Param& param : params.params()) {
    if (param.is_derived()) ops::cast(ctx, param.master.flat(), param.owned_weight.flat());
  }
}

}  // namespace pecan::model
