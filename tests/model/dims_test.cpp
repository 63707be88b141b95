#include <set>

#include <pecan/model/dims.hpp>

#include "model/harness.hpp"
#include "support/catch.hpp"

using namespace pecan;

TEST_CASE("OLMoE's shapes give its published number of parameters", "[model]") {
  model::ModelDims dims;
  dims.num_layers = 16;
  dims.hidden = 2048;
  dims.heads = dims.kv_groups = 16;
  dims.head_dim = 128;
  dims.expert_ffn = 1024;
  dims.num_experts = 64;
  dims.topk = 8;
  dims.vocab = dims.padded_vocab = 50304;
  dims.tied_embeddings = false;
  dims.is_moe.assign(16, true);
  std::int64_t total = 0, experts = 0;
  for (const parallel::ParamSpec& spec : model::plan_parameters(dims)) {
    total += spec.shape.num_elements();
    if (spec.is_expert()) experts += spec.shape.num_elements();
  }
  // OLMoE norms the whole of q and k (2 x 2048 a layer), which Pecan's per-head QK-norm does not
  // have.
  CHECK(total + 16 * 2 * 2048 == 6'919'161'856);
  CHECK(experts == 6'442'450'944);
}

TEST_CASE("names are unique, residual outputs start smaller, norms do not decay", "[model]") {
  const model::ModelDims dims = test::small_dims(DType::kF32);
  std::set<std::string> names;
  for (const parallel::ParamSpec& spec : model::plan_parameters(dims)) {
    CHECK(names.insert(spec.name).second);
    const bool output =
        spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
    const bool vector = spec.shape.num_dims() == 1;
    CHECK(spec.init_std == Approx(vector ? 0.0 : output ? 0.25 : 0.5));
    CHECK((spec.decay == parallel::WeightDecay::kNone) == vector);
  }
  CHECK(names.contains("model.layers.1.mlp.experts.7.down_proj.weight"));
  CHECK(names.contains("model.layers.0.mlp.shared_expert.up_proj.weight"));
  CHECK_FALSE(names.contains("lm_head.weight"));
}

TEST_CASE("the memory plan allocates nothing and counts what building takes", "[model]") {
  const model::ModelDims dims = test::small_dims(DType::kF32);
  const model::MemoryPlan plan = model::plan_memory(dims, 1);
  CHECK(plan.activation_bytes > std::size_t(dims.tokens() * dims.padded_vocab) * sizeof(float));
  model::ModelDims huge = dims;
  huge.hidden = 1 << 20;
  huge.micro_batch = 1 << 12;
  CHECK(model::plan_memory(huge, 1).activation_bytes > std::size_t{1} << 36);
}

TEST_CASE("pieces of the head suit a device: products first, then the cache", "[model]") {
  CHECK(model::device_head_piece(50304, DType::kBF16) == 1024);
  CHECK(model::device_head_piece(200'000, DType::kBF16) == 1024);
  CHECK(model::device_head_piece(4096, DType::kBF16) == 4096);
  CHECK(model::device_head_piece(50304, DType::kF32) == 128);   // 166 would fit
  CHECK(model::device_head_piece(12'576, DType::kF32) == 640);  // 667 would fit
  CHECK(model::device_head_piece(50304, DType::kF64) == 128);
}
