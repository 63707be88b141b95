#include <cmath>
#include <mutex>

#include <pecan/model/transformer.hpp>

#include "model/harness.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

using namespace pecan;
using namespace pecan::test;

namespace {

Weights weights_of(Harness& harness) {
  Weights weights;
  for (const parallel::Param& param : harness.params.params()) {
    weights[param.spec.name] = values_of(param.spec, param.weight);
  }
  return weights;
}

/// Loss against the reference, and gradients against central differences of the reference's
/// objective.
void check_against_reference(const model::ModelDims& dims) {
  const auto world = comm::make_self_group();
  Harness harness(dims, *world, 1);
  Weights weights = weights_of(harness);
  const auto tokens = random_ids(dims, 0, 1), labels = random_ids(dims, 0, 2);
  const double scale = 0.25;
  const model::BatchResult result = harness.run(tokens, labels, scale);

  ReferenceModel reference(dims, weights);
  (void)reference.objective(tokens, labels);
  CHECK(result.loss_sum == Approx(reference.cross_entropy_sum()).epsilon(1e-12));

  constexpr double kStep = 1e-5;
  for (const parallel::Param& param : harness.params.params()) {
    const std::vector<double> gradient = values_of(param.spec, param.grad);
    std::vector<double>& values = weights.at(param.spec.name);
    // A few elements of each parameter, spread over it.
    for (std::size_t sample = 0; sample < 5; ++sample) {
      const std::size_t i = std::size_t(philox_uniform(3, stream_of(param.spec.name), sample) *
                                        double(values.size()));
      const double kept = values[i];
      values[i] = kept + kStep;
      const double above = ReferenceModel(dims, weights).objective(tokens, labels);
      values[i] = kept - kStep;
      const double below = ReferenceModel(dims, weights).objective(tokens, labels);
      values[i] = kept;
      CAPTURE(param.spec.name, i);
      CHECK(gradient[i] ==
            Approx(scale * (above - below) / (2 * kStep)).margin(2e-9).epsilon(1e-6));
    }
  }
  CHECK(harness.arena.high_water() == harness.arena.capacity());
  CHECK(harness.workspace.high_water() == harness.workspace.capacity());
}

}  // namespace

TEST_CASE("a whole two-layer MoE agrees with an independent reference, forward and backward",
          "[model]") {
  model::ModelDims dims = small_dims(DType::kF64);
  SECTION("top-k then softmax, QK-norm, shared expert, tied") {
    check_against_reference(dims);
  }
  SECTION("softmax then top-k, untied, no QK-norm, no shared expert, dense first layer") {
    dims.router_pre_softmax = true;
    dims.router_scaling = 1.7;
    dims.tied_embeddings = false;
    dims.qk_norm = model::QkNorm::kNone;
    dims.shared_ffn = 0;
    dims.is_moe = {false, true};
    check_against_reference(dims);
  }
  SECTION("top-1, one key-value group a head") {
    dims.topk = 1;
    dims.router_pre_softmax = true;
    dims.kv_groups = dims.heads;
    check_against_reference(dims);
  }
}

TEST_CASE("fp32 stays close to the reference", "[model]") {
  const model::ModelDims dims = small_dims(DType::kF32);
  const auto world = comm::make_self_group();
  Harness harness(dims, *world, 1);
  const Weights weights = weights_of(harness);
  const auto tokens = random_ids(dims, 0, 1), labels = random_ids(dims, 0, 2);
  const model::BatchResult result = harness.run(tokens, labels, 1);
  ReferenceModel reference(dims, weights);
  (void)reference.objective(tokens, labels);
  CHECK(result.loss_sum == Approx(reference.cross_entropy_sum()).epsilon(1e-5));
}

TEST_CASE("bf16 stays as close to the reference as its rounding allows, with masters in f32",
          "[model]") {
  const model::ModelDims dims = small_dims(DType::kBF16);
  const auto world = comm::make_self_group();
  Harness harness(dims, *world, 1);
  // The reference computes with the rounded weights, so that what is left is the activations'.
  const Weights weights = weights_of(harness);
  for (const parallel::Param& param : harness.params.params()) {
    CAPTURE(param.spec.name);
    CHECK(param.master.dtype() == DType::kF32);
    CHECK(param.grad.dtype() == DType::kF32);
    const bool vector = param.spec.shape.num_dims() == 1;
    const bool router = param.spec.name.ends_with("mlp.gate.weight");
    CHECK(param.is_derived() == (!vector && !router));
    const auto master = values_of(param.spec, param.master);
    for (std::size_t i = 0; i < master.size(); ++i) {
      const double rounded = double(BFloat16(master[i]));
      REQUIRE(values_of(param.spec, param.weight)[i] == (param.is_derived() ? rounded : master[i]));
    }
  }
  const auto tokens = random_ids(dims, 0, 1), labels = random_ids(dims, 0, 2);
  const model::BatchResult result = harness.run(tokens, labels, 1);
  ReferenceModel reference(dims, weights);
  (void)reference.objective(tokens, labels);
  CHECK(result.loss_sum == Approx(reference.cross_entropy_sum()).epsilon(0.01));

  // Gradients against those of f32 with the same rounded weights.
  model::ModelDims wide_dims = dims;
  wide_dims.dtype = DType::kF32;
  Harness wide(wide_dims, *world, 1);
  for (const parallel::Param& param : wide.params.params()) {
    const auto& values = weights.at(param.spec.name);
    const auto memory = param.weight.row_major().as<float>();
    for (std::size_t i = 0; i < values.size(); ++i) memory[i] = float(values[i]);
  }
  (void)wide.run(tokens, labels, 1);
  double squares = 0, errors = 0;
  for (std::size_t p = 0; p < wide.params.params().size(); ++p) {
    const auto exact = values_of(wide.params.params()[p].spec, wide.params.params()[p].grad);
    const auto rounded =
        values_of(harness.params.params()[p].spec, harness.params.params()[p].grad);
    for (std::size_t i = 0; i < exact.size(); ++i) {
      squares += exact[i] * exact[i];
      errors += (rounded[i] - exact[i]) * (rounded[i] - exact[i]);
    }
  }
  CHECK(std::sqrt(errors / squares) < 0.02);
  CHECK(std::sqrt(errors / squares) > 1e-4);
  CHECK(harness.arena.high_water() == harness.arena.capacity());
  CHECK(harness.workspace.high_water() == harness.workspace.capacity());
}

TEST_CASE("padded vocabulary rows never influence the result", "[model]") {
  const model::ModelDims dims = small_dims(DType::kF32);
  const auto world = comm::make_self_group();
  Harness clean(dims, *world, 1), poisoned(dims, *world, 1);
  const TensorView embedding = poisoned.params.at("model.embed_tokens.weight").weight.row_major();
  for (float& value : embedding.rows(dims.vocab, dims.padded_vocab - dims.vocab).as<float>())
    value = 1e30F;
  const auto tokens = random_ids(dims, 0, 1), labels = random_ids(dims, 0, 2);
  CHECK(clean.run(tokens, labels, 1).loss_sum == poisoned.run(tokens, labels, 1).loss_sum);
  for (std::size_t i = 0; i < clean.params.params().size(); ++i) {
    const parallel::Param& a = clean.params.params()[i];
    const parallel::Param& b = poisoned.params.params()[i];
    CAPTURE(a.spec.name);
    CHECK(values_of(a.spec, a.grad) == values_of(b.spec, b.grad));
  }
  const TensorView gradient = poisoned.params.at("model.embed_tokens.weight").grad.row_major();
  for (const float value : gradient.rows(dims.vocab, dims.padded_vocab - dims.vocab).as<float>())
    REQUIRE(value == 0.0F);
}

TEST_CASE("a frozen expert passes the same input gradient on and adds nothing to its own",
          "[model]") {
  const model::ModelDims dims = small_dims(DType::kF64);
  const auto world = comm::make_self_group();
  Harness plain(dims, *world, 1), frozen(dims, *world, 1);
  frozen.transformer.moe_layer(1).experts().set_weight_gradient(3, model::WeightGradient::kOff);
  const auto tokens = random_ids(dims, 0, 1), labels = random_ids(dims, 0, 2);
  (void)plain.run(tokens, labels, 1);
  (void)frozen.run(tokens, labels, 1);
  for (std::size_t i = 0; i < plain.params.params().size(); ++i) {
    const parallel::Param& a = plain.params.params()[i];
    const parallel::Param& b = frozen.params.params()[i];
    const bool is_frozen = a.spec.layer == LayerId{1} && a.spec.expert == ExpertId{3};
    const std::vector<double> zeros(std::size_t(a.spec.shape.num_elements()), 0.0);
    CAPTURE(a.spec.name);
    CHECK(values_of(b.spec, b.grad) == (is_frozen ? zeros : values_of(a.spec, a.grad)));
  }
}

TEST_CASE(
    "dispatch memory grows with a warning where routing exceeds the plan, and the result is the "
    "same",
    "[model]") {
  model::ModelDims dims = small_dims(DType::kF64);
  std::mutex mutex;
  std::vector<double> roomy(2), tight(2);
  std::int64_t growths = 0;
  const auto losses = [&](const model::ModelDims& used, std::vector<double>& out) {
    comm::run_thread_group(2, [&](comm::Group& world) {
      Harness harness(used, world, 2);
      const std::uint64_t rank = std::uint64_t(world.rank().value);
      const double loss =
          harness.run(random_ids(used, rank, 1), random_ids(used, rank, 2), 1).loss_sum;
      const std::lock_guard lock(mutex);
      out[rank] = loss;
      growths += harness.transformer.dispatch_growths();
    });
  };
  losses(dims, roomy);
  CHECK(growths == 0);
  dims.dispatch_buffer_factor = 0.1;
  const ExpectLog expected;
  losses(dims, tight);
  CHECK(growths > 0);
  CHECK(expected.contains("dispatch_buffer_factor"));
  CHECK(roomy == tight);
}
