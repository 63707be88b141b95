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

/// One rank's model with its memory.
struct Harness {
  Harness(const model::ModelDims& model_dims, comm::Group& world, int ep, std::uint64_t seed = 11)
      : dims(model_dims),
        mesh{world.size(), 1, world.size(), 1, ep, world.size() / ep},
        groups(parallel::make_groups(mesh, world)),
        workspace(device::cpu(), model::plan_memory(dims, ep, 1).workspace_bytes),
        ctx{device::cpu(), stream, workspace, 1},
        arena(device::cpu(), model::plan_memory(dims, ep, 1).activation_bytes),
        activations(model::Activations::plan(dims, ep, arena)),
        params(device::cpu(),
               model::plan_parameters(dims),
               int(dims.num_experts),
               mesh,
               world.rank(),
               dims.dtype),
        transformer(ctx, dims, params, mesh, *groups.ep, world.rank(), activations) {
    model::initialise(ctx, params, seed);
  }

  /// Gradients of one micro-batch in the flat buffers.
  model::BatchResult run(const std::vector<std::int32_t>& tokens,
                         const std::vector<std::int32_t>& labels,
                         double scale) {
    return transformer.forward_backward(
        ctx, {const_view_of(std::span(tokens)), const_view_of(std::span(labels)), {}}, scale);
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
