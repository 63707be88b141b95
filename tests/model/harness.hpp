#pragma once
/// Small models, whole, on one rank of any group.

#include <optional>
#include <string>
#include <vector>

#include <pecan/core/philox.hpp>

#include <pecan/parallel/gradients.hpp>

#include <pecan/model/transformer.hpp>

#include "model/reference.hpp"

namespace pecan::test {

/// A two-layer model with every feature on; tests switch some off.
inline model::ModelDims small_dims(DType dtype) {
  model::ModelDims dims;
  dims.dtype = dtype;
  dims.num_layers = 2;
  dims.hidden = 12;
  dims.heads = 4;
  dims.kv_groups = 2;
  dims.head_dim = 6;
  dims.ffn = 10;
  dims.expert_ffn = 7;
  dims.shared_ffn = 5;
  dims.num_experts = 8;
  dims.topk = 2;
  dims.vocab = 19;
  dims.padded_vocab = 32;
  dims.sequence = 9;
  dims.micro_batch = 2;
  dims.head_piece = 7;  // of 18 tokens
  dims.norm_epsilon = 1e-5;
  dims.rotary_base = 10000;
  // Larger than in training, so that every path of the gradient carries weight.
  dims.init_std = 0.5;
  dims.aux_loss_coeff = 0.1;
  dims.z_loss_coeff = 0.05;
  dims.qk_norm = model::QkNorm::kPerHead;
  dims.is_moe = {true, true};
  return dims;
}

/// How ranks share a model out.
struct Layout {
  int world = 1;
  int tp = 1;
  int ep = 1;
  int etp = 1;
  parallel::Sharding sharding = parallel::Sharding::kNone;
  parallel::Overlap overlap = parallel::Overlap::kOff;
  config::RecomputeGranularity recompute = config::RecomputeGranularity::kNone;
  double dispatch_buffer_factor = 8;  ///< less cuts micro-batches into chunks
};

inline model::ModelDims laid_out(model::ModelDims dims, const Layout& layout) {
  dims.tp = layout.tp;
  dims.ep = layout.ep;
  dims.etp = layout.etp;
  dims.recompute = layout.recompute;
  return dims;
}

/// One rank's model with its memory.
struct Harness {
  Harness(const model::ModelDims& model_dims, comm::Group& world, int ep, std::uint64_t seed = 11)
      : Harness(model_dims, world, Layout{.world = world.size(), .ep = ep}, seed) {}
  Harness(const model::ModelDims& model_dims,
          comm::Group& world,
          const Layout& layout,
          std::uint64_t seed = 11)
      : dims(laid_out(model_dims, layout)),
        mesh{world.size(),
             layout.tp,
             world.size() / layout.tp,
             layout.etp,
             layout.ep,
             world.size() / (layout.ep * layout.etp)},
        groups(parallel::make_groups(mesh, world, dims.kv_replicas())),
        workspace(device::cpu(), model::plan_memory(dims, 1).workspace_bytes),
        ctx{device::cpu(), stream, workspace, 1},
        arena(device::cpu(), model::plan_memory(dims, 1).activation_bytes),
        activations(model::Activations::plan(dims, arena)),
        params(device::cpu(),
               model::plan_parameters(dims),
               int(dims.num_experts),
               mesh,
               world.rank(),
               dims.dtype,
               layout.sharding),
        gather(params, groups, layout.overlap),
        exchange(params, groups, layout.overlap),
        background(gather, exchange),
        transformer(ctx, dims, params, groups, activations, {&gather, &exchange}) {
    ctx.background = &background;
    model::initialise(ctx, params, seed);
    gather.start(ctx);
  }

  /// Gradients of one micro-batch in the flat buffers. Empty positions and document starts: none
  /// given.
  model::BatchResult run(const std::vector<std::int32_t>& tokens,
                         const std::vector<std::int32_t>& labels,
                         double scale,
                         const std::vector<std::int32_t>& positions = {},
                         const std::vector<std::int32_t>& document_starts = {}) {
    const auto view_or_none = [](const std::vector<std::int32_t>& values) {
      return values.empty() ? ConstTensorView{} : const_view_of(std::span(values));
    };
    return transformer.forward_backward(ctx,
                                        {.tokens_T = view_or_none(tokens),
                                         .labels_T = view_or_none(labels),
                                         .mask_T = {},
                                         .positions_T = view_or_none(positions),
                                         .document_start_T = view_or_none(document_starts)},
                                        scale);
  }

  /// Gives vectors, which start at 0 or 1, and biases of routers values that show.
  void scatter_vectors() {
    for (const parallel::Param& param : params.params()) {
      if (param.spec.shape.num_dims() != 1) continue;
      const TensorView values = param.master.row_major();
      for (std::int64_t i = 0; i < values.num_elements(); ++i) {
        const auto element = std::uint64_t(param.owned_offset()[0] + i);
        set(values,
            i,
            param.spec.init_value + 0.6 * philox_uniform(7, stream_of(param.spec.name), element) -
                0.3);
      }
    }
    gather.start(ctx);
    for (int layer = 0; layer < dims.num_moe_layers(); ++layer) {
      const TensorView bias = transformer.moe_layer(layer).expert_bias();
      for (std::int64_t e = 0; dims.expert_bias && e < dims.num_experts; ++e)
        set(bias, e, philox_uniform(8, std::uint64_t(layer), std::uint64_t(e)) - 0.5);
    }
  }
  static void set(const TensorView& values, std::int64_t i, double value) {
    if (values.dtype == DType::kF64) {
      values.as<double>()[std::size_t(i)] = value;
    } else {
      values.as<float>()[std::size_t(i)] = float(value);
    }
  }

  model::ModelDims dims;
  parallel::MeshShape mesh;
  parallel::MeshGroups groups;
  device::Stream stream{device::cpu()};
  device::Arena workspace;
  Context ctx;
  device::Arena arena;
  model::Activations activations;
  parallel::ParamSet params;
  parallel::WeightGather gather;
  parallel::GradientExchange exchange;
  parallel::StepBackground background;
  model::Transformer transformer;
};

/// True rows of a stored parameter or gradient, in double.
inline std::vector<double> values_of(const parallel::ParamSpec& spec,
                                     const device::ParamStorage& storage) {
  std::vector<double> values;
  const std::size_t count = std::size_t(spec.shape.num_elements());
  const TensorView view = storage.row_major();
  for (std::size_t i = 0; i < count; ++i) {
    switch (view.dtype) {
      case DType::kF64:
        values.push_back(view.as<double>()[i]);
        break;
      case DType::kBF16:
        values.push_back(double(view.as<BFloat16>()[i]));
        break;
      default:
        values.push_back(double(view.as<float>()[i]));
    }
  }
  return values;
}

/// Puts the rows that `param`'s rank owns where they belong in `whole`, which holds the parameter.
inline void put_owned(const parallel::Param& param,
                      const device::ParamStorage& owned,
                      std::vector<double>& whole) {
  whole.resize(std::size_t(param.spec.shape.num_elements()));
  const Block block = param.owned_block();
  const bool matrix = block.extent.num_dims() == 2;
  const std::int64_t columns = matrix ? block.extent[1] : 1;
  const std::int64_t all_columns = matrix ? param.spec.shape[1] : 1;
  const std::int64_t first_column = matrix ? block.offset[1] : 0;
  const TensorView view = owned.row_major();
  for (std::int64_t r = 0; r < block.extent[0]; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      const auto from = std::size_t(r * columns + c);
      whole[std::size_t((block.offset[0] + r) * all_columns + first_column + c)] =
          view.dtype == DType::kF64 ? view.as<double>()[from] : double(view.as<float>()[from]);
    }
  }
}

/// small_dims as the GPT models of the papers: LayerNorm, GELU, biases, learned positions, top-1
/// with a capacity.
inline model::ModelDims gpt_dims(DType dtype) {
  model::ModelDims dims = small_dims(dtype);
  dims.normalization = config::Normalization::kLayerNorm;
  dims.position_embedding = config::PositionEmbedding::kLearnedAbsolute;
  dims.max_positions = 12;
  dims.qk_norm = model::QkNorm::kNone;
  dims.gated_ffn = false;
  dims.linear_bias = true;
  dims.kv_groups = dims.heads;
  dims.shared_ffn = 0;
  dims.topk = 1;
  dims.router_pre_softmax = true;
  dims.capacity_factor = 1;
  dims.is_moe = {false, true};
  return dims;
}

/// small_dims with the router of DeepSeek-V3: sigmoid scores with a bias, in groups.
inline model::ModelDims sigmoid_dims(DType dtype) {
  model::ModelDims dims = small_dims(dtype);
  dims.score_function = config::ScoreFunction::kSigmoid;
  dims.expert_bias = true;
  dims.router_scaling = 2.5;
  dims.num_groups = 4;
  dims.group_topk = 2;
  return dims;
}

/// small_dims with default vectors, and biases, so that experts differ in the mean of what they
/// say.
inline model::ModelDims default_vector_dims(DType dtype) {
  model::ModelDims dims = small_dims(dtype);
  dims.router_pre_softmax = true;
  dims.router_scaling = 1.25;
  dims.linear_bias = true;
  dims.default_vectors = true;
  dims.default_beta = 0.75;
  return dims;
}

/// Documents of different lengths in the sequences of a micro-batch: the first position of each
/// token's document.
inline std::vector<std::int32_t> document_starts(const model::ModelDims& dims) {
  std::vector<std::int32_t> starts;
  for (std::int64_t t = 0; t < dims.tokens(); ++t) {
    const bool begins = t % dims.sequence == 0 || t % 5 == 3 || t % 7 == 4;
    starts.push_back(begins ? std::int32_t(t % dims.sequence) : starts.back());
  }
  return starts;
}
/// Positions that count from there.
inline std::vector<std::int32_t> reset_positions(const model::ModelDims& dims) {
  std::vector<std::int32_t> positions = document_starts(dims);
  for (std::size_t t = 0; t < positions.size(); ++t)
    positions[t] = std::int32_t(std::int64_t(t) % dims.sequence) - positions[t];
  return positions;
}

/// Token ids of micro-batch `index`: tokens and labels.
inline std::vector<std::int32_t> random_ids(const model::ModelDims& dims,
                                            std::uint64_t index,
                                            std::uint64_t stream) {
  std::vector<std::int32_t> ids;
  for (std::int64_t t = 0; t < dims.tokens(); ++t) {
    ids.push_back(
        std::int32_t(philox_uniform(5 + index, stream, std::uint64_t(t)) * double(dims.vocab)));
  }
  return ids;
}

}  // namespace pecan::test
