#include <cmath>
#include <mutex>
#include <numeric>

#include <pecan/ops/reduce.hpp>

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
  for (int i = 0, layer = 0; layer < int(harness.dims.num_layers); ++layer) {
    if (!harness.dims.is_moe[std::size_t(layer)]) continue;
    const TensorView bias = harness.transformer.moe_layer(i++).expert_bias();
    if (!harness.dims.expert_bias) continue;
    auto& values = weights[model::layer_name(LayerId{layer}) + ".mlp.gate.expert_bias"];
    for (std::size_t e = 0; e < std::size_t(harness.dims.num_experts); ++e) {
      values.push_back(bias.dtype == DType::kF64 ? bias.as<double>()[e]
                                                 : double(bias.as<float>()[e]));
    }
  }
  return weights;
}

void check_default_vectors(Harness& harness, const std::map<std::int64_t, Matrix>& expected) {
  int i = 0;
  for (const auto& [layer, rows] : expected) {
    const auto found = harness.transformer.moe_layer(i++).default_vectors()->vectors_EH();
    std::size_t at = 0;
    for (const std::vector<double>& row : rows) {
      for (const double value : row) {
        CAPTURE(layer, at);
        CHECK(found.as<double>()[at++] == Approx(value).margin(1e-13).epsilon(1e-11));
      }
    }
  }
}

enum class Documents : std::uint8_t { kNone, kMasked, kMaskedWithPositions };

/// Loss against the reference, and gradients against central differences of the reference's
/// objective.
void check_against_reference(const model::ModelDims& dims, Documents documents = Documents::kNone) {
  const auto world = comm::make_self_group();
  Harness harness(dims, *world, 1);
  harness.scatter_vectors();
  Weights weights = weights_of(harness);
  const auto tokens = random_ids(dims, 0, 1), labels = random_ids(dims, 0, 2);
  std::vector<std::int32_t> positions, starts;
  if (documents != Documents::kNone) starts = document_starts(dims);
  if (documents == Documents::kMaskedWithPositions) positions = reset_positions(dims);
  const auto reference_of = [&] {
    ReferenceModel reference(dims, weights);
    reference.positions = positions;
    reference.document_starts = starts;
    return reference;
  };
  const double scale = 0.25;
  // Default vectors are not zero before the micro-batch whose gradients are looked at.
  std::map<std::int64_t, Matrix> vectors_before;
  if (dims.default_vectors) {
    const auto other = random_ids(dims, 1, 1);
    (void)harness.run(other, other, scale, positions, starts);
    ReferenceModel earlier = reference_of();
    (void)earlier.objective(other, other);
    vectors_before = earlier.vectors_after;
    harness.params.zero_grads(harness.ctx);
  }
  const model::BatchResult result = harness.run(tokens, labels, scale, positions, starts);

  ReferenceModel reference = reference_of();
  reference.vectors_before = vectors_before;
  (void)reference.objective(tokens, labels);
  check_default_vectors(harness, reference.vectors_after);
  const auto objective = [&] {
    ReferenceModel moved = reference_of();
    moved.vectors_held = reference.vectors_after;
    return moved.objective(tokens, labels);
  };
  CHECK(result.loss_sum == Approx(reference.cross_entropy_sum()).epsilon(1e-12));
  std::int64_t dropped = 0;
  for (std::size_t layer = 0; layer < result.routing.size(); ++layer) {
    dropped += result.routing[layer].dropped_slots;
    const auto processed = harness.transformer.expert_counts(int(layer));
    const auto chosen = harness.transformer.chosen_counts(int(layer));
    CHECK(std::accumulate(chosen.begin(), chosen.end(), std::int64_t{0}) ==
          dims.tokens() * dims.topk);
    CHECK(std::accumulate(processed.begin(), processed.end(), std::int64_t{0}) ==
          dims.tokens() * dims.topk - result.routing[layer].dropped_slots);
    for (std::size_t e = 0; dims.capacity_factor > 0 && e < chosen.size(); ++e)
      CHECK(processed[e] == std::min(chosen[e], dims.capacity()));
  }
  CHECK(dropped == reference.dropped());
  CHECK((dropped > 0) == (dims.capacity_factor > 0 && !dims.force_balance));

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
      const double above = objective();
      values[i] = kept - kStep;
      const double below = objective();
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
  SECTION("sigmoid router with bias in groups") {
    check_against_reference(sigmoid_dims(DType::kF64));
  }
  SECTION("sigmoid router without bias, top-1") {
    dims.score_function = config::ScoreFunction::kSigmoid;
    dims.topk = 1;
    check_against_reference(dims);
  }
  SECTION("softmax routers in groups") {
    dims.num_groups = 4;
    dims.group_topk = 1;
    dims.router_pre_softmax = GENERATE(false, true);
    check_against_reference(dims);
  }
  SECTION("capacity, the largest weights first") {
    dims.capacity_factor = 1;
    check_against_reference(dims);
  }
  SECTION("capacity, the earliest tokens first, less than an even share") {
    dims.capacity_factor = 0.6;
    dims.drop_policy = config::TokenDropPolicy::kPosition;
    check_against_reference(dims);
  }
  SECTION("GPT: LayerNorm, GELU, biases, learned positions, top-1 with capacity") {
    check_against_reference(gpt_dims(DType::kF64));
  }
  SECTION("biases of gated experts and of the shared one, LayerNorm of queries and keys") {
    dims.linear_bias = true;
    dims.normalization = config::Normalization::kLayerNorm;
    check_against_reference(dims);
  }
  SECTION("QK-norm over all heads") {
    dims.qk_norm = model::QkNorm::kWhole;
    dims.normalization =
        GENERATE(config::Normalization::kRmsNorm, config::Normalization::kLayerNorm);
    check_against_reference(dims);
  }
  SECTION("no positions at all, an odd head") {
    dims.position_embedding = config::PositionEmbedding::kNone;
    dims.head_dim = 5;
    check_against_reference(dims);
  }
  SECTION("documents, with and without positions of their own") {
    check_against_reference(dims, Documents::kMasked);
    check_against_reference(dims, Documents::kMaskedWithPositions);
    check_against_reference(gpt_dims(DType::kF64), Documents::kMaskedWithPositions);
  }
  SECTION("default vectors") {
    dims = default_vector_dims(DType::kF64);
    check_against_reference(dims);
    dims.topk = 1;
    dims.is_moe = {false, true};
    dims.capacity_factor = 1;
    check_against_reference(dims);
  }
  SECTION("forced balance") {
    dims.force_balance = true;
    // 18 tokens with 2 choices are not divisible by 8 experts.
    check_against_reference(dims);
    dims.capacity_factor = 1;
    dims.score_function = config::ScoreFunction::kSigmoid;
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
  model::ModelDims dims = small_dims(DType::kBF16);
  SECTION("of every feature") {}
  SECTION("of default vectors") {
    dims = default_vector_dims(DType::kBF16);
    dims.force_balance = true;  // rounding decides no choice
  }
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
  for (const parallel::Param& param : wide.params.params()) {
    const auto exact = values_of(param.spec, param.grad);
    const auto rounded = values_of(param.spec, harness.params.at(param.spec.name).grad);
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

namespace {

std::vector<double> vectors_of(Harness& harness, int moe_layer) {
  const auto values = harness.transformer.moe_layer(moe_layer).default_vectors()->vectors_EH();
  const auto elements = values.as<double>();
  return {elements.begin(), elements.end()};
}

/// Cosine of the angle between two gradients.
double cosine(const std::vector<double>& a, const std::vector<double>& b) {
  const auto dot = [](const auto& x, const auto& y) {
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
  };
  return dot(a, b) / std::sqrt(dot(a, a) * dot(b, b));
}

}  // namespace

TEST_CASE("default vectors bring the router's gradient nearer to that of a dense model",
          "[model][default_vectors]") {
  model::ModelDims dims = default_vector_dims(DType::kF64);
  dims.is_moe = {false, true};
  dims.aux_loss_coeff = dims.z_loss_coeff = 0;
  dims.micro_batch = 6;
  dims.default_beta = 0.9;
  dims.router_scaling = 1;
  dims.init_std = 0.2;  // a router that is sure of its choice has little to learn of the others
  const auto world = comm::make_self_group();
  const auto router_gradient = [](Harness& harness) {
    const parallel::Param& router = harness.params.at("model.layers.1.mlp.gate.weight");
    return values_of(router.spec, router.grad);
  };
  // Averages first follow twenty batches; then gradients of ten are summed.
  const auto after_batches = [&](const model::ModelDims& used, const auto& pass) {
    Harness harness(used, *world, 1);
    harness.scatter_vectors();
    for (std::uint64_t batch = 0; batch < 30; ++batch) {
      if (batch == 20) harness.params.zero_grads(harness.ctx);
      pass(harness, batch);
    }
    return router_gradient(harness);
  };
  const auto check_nearer = [&](const auto& pass) {
    model::ModelDims plain_dims = dims, dense_dims = dims;
    plain_dims.default_vectors = dense_dims.default_vectors = false;
    dense_dims.topk = dims.num_experts;
    const std::vector<double> dense = after_batches(dense_dims, pass);
    const double with_vectors = cosine(after_batches(dims, pass), dense);
    const double plain = cosine(after_batches(plain_dims, pass), dense);
    CAPTURE(with_vectors, plain);
    CHECK(with_vectors > plain);
  };
  SECTION("of the whole model, where the experts' outputs have means") {
    check_nearer([](Harness& harness, std::uint64_t batch) {
      const auto tokens = random_ids(harness.dims, batch, 1);
      (void)harness.run(tokens, tokens, 1);
    });
  }
  SECTION("of the layer, for the same input and gradient of its output") {
    dims.linear_bias = GENERATE(false, true);
    check_nearer([](Harness& harness, std::uint64_t batch) {
      const Shape shape{harness.dims.tokens(), harness.dims.hidden};
      std::vector<double> x, y(std::size_t(shape.num_elements())), d;
      for (std::uint64_t i = 0; i < y.size(); ++i) {
        // As in a residual stream, tokens have much in common.
        const std::uint64_t column = i % std::uint64_t(harness.dims.hidden);
        x.push_back(philox_normal(1, 0, column) + philox_normal(2, batch, i));
        d.push_back(philox_normal(3, 0, column) + philox_normal(4, batch, i));
      }
      const auto view = [&](std::vector<double>& values) {
        return view_of(std::span(values)).reshaped(shape);
      };
      model::MoeLayer& layer = harness.transformer.moe_layer(0);
      model::FfnActivations& kept = harness.activations.ffn[1];
      model::FfnScratch& scratch = harness.activations.ffn_scratch;
      const model::WholeStream& whole = harness.activations.whole;
      (void)layer.forward(
          harness.ctx, view(x), kept, scratch, whole, model::Averages::kFollow, view(y));
      layer.backward(harness.ctx, view(x), kept, scratch, whole, 1, view(d));
    });
  }
}

TEST_CASE("default vectors stand still in evaluation, and a step that is skipped leaves none",
          "[model][default_vectors]") {
  const model::ModelDims dims = default_vector_dims(DType::kF64);
  const auto world = comm::make_self_group();
  Harness harness(dims, *world, 1);
  const auto tokens = random_ids(dims, 0, 1), labels = random_ids(dims, 0, 2);
  const std::vector<double> zeros(std::size_t(dims.num_experts * dims.hidden), 0.0);
  CHECK(vectors_of(harness, 0) == zeros);
  harness.transformer.begin_step(harness.ctx);
  (void)harness.run(tokens, labels, 1);
  const std::vector<double> first = vectors_of(harness, 0);
  CHECK(first != zeros);
  const model::Batch batch{.tokens_T = const_view_of(std::span(tokens)),
                           .labels_T = const_view_of(std::span(labels)),
                           .mask_T = {}};
  const double loss = harness.transformer.forward(harness.ctx, batch).loss_sum;
  CHECK(vectors_of(harness, 0) == first);
  CHECK(harness.transformer.forward(harness.ctx, batch).loss_sum == loss);

  harness.transformer.begin_step(harness.ctx);
  (void)harness.run(tokens, labels, 1);
  (void)harness.run(labels, tokens, 1);
  CHECK(vectors_of(harness, 1) != first);
  CHECK(vectors_of(harness, 0) != first);
  harness.transformer.undo_step(harness.ctx);
  CHECK(vectors_of(harness, 0) == first);
  harness.transformer.undo_step(harness.ctx);
  CHECK(vectors_of(harness, 0) == first);
  CHECK(harness.transformer.forward(harness.ctx, batch).loss_sum == loss);
}

TEST_CASE("default vectors of experts without tokens stay as they are",
          "[model][default_vectors]") {
  model::ModelDims dims = default_vector_dims(DType::kF64);
  dims.micro_batch = 1;
  dims.sequence = 2;
  dims.max_positions = 2;
  const auto world = comm::make_self_group();
  Harness harness(dims, *world, 1);
  (void)harness.run({1, 2}, {3, 4}, 1);
  const std::vector<double> before = vectors_of(harness, 0);
  (void)harness.run({5, 6}, {7, 8}, 1);
  const std::vector<double> after = vectors_of(harness, 0);
  const auto counts = harness.transformer.expert_counts(0);
  std::size_t without = 0;
  for (std::size_t e = 0; e < counts.size(); ++e) {
    const auto row = [&](const std::vector<double>& all) {
      const auto at = all.begin() + std::ptrdiff_t(e) * dims.hidden;
      return std::vector<double>(at, at + dims.hidden);
    };
    CHECK((row(after) == row(before)) == (counts[e] == 0));
    without += counts[e] == 0 ? 1 : 0;
  }
  CHECK(without >= 4);
}

TEST_CASE("default vectors see all chunks of a micro-batch before they are used",
          "[model][default_vectors]") {
  model::ModelDims dims = default_vector_dims(DType::kF64);
  std::mutex mutex;
  const auto gradients = [&](double factor, int& chunks) {
    std::vector<double> all(2);
    dims.dispatch_buffer_factor = factor;
    comm::run_thread_group(2, [&](comm::Group& world) {
      Harness harness(dims, world, 2);
      const std::uint64_t rank = std::uint64_t(world.rank().value);
      const auto result = harness.run(random_ids(dims, rank, 1), random_ids(dims, rank, 2), 1);
      const std::lock_guard lock(mutex);
      for (const auto& report : result.routing) chunks = std::max(chunks, report.dispatch_chunks);
      for (const parallel::Bucket& bucket : harness.params.buckets())
        all[rank] += ops::sum_of_squares(harness.ctx, harness.params.grads(bucket));
    });
    return all;
  };
  int chunks = 1;
  const std::vector<double> whole = gradients(8, chunks);
  REQUIRE(chunks == 1);
  const ExpectLog expected;
  const std::vector<double> cut = gradients(0.1, chunks);
  CHECK(chunks > 1);
  for (std::size_t rank = 0; rank < 2; ++rank)
    CHECK(cut[rank] == Approx(whole[rank]).epsilon(1e-12));
}

TEST_CASE("experts computed in groups, as a block-sparse matrix or one by one are the same",
          "[model][expert_compute]") {
  using config::ExpertCompute;
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16}) {
    model::ModelDims dims = small_dims(dtype);
    dims.linear_bias = true;
    dims.expert_ffn = 150;  // more than one block
    const auto world = comm::make_self_group();
    const auto gradients = [&](ExpertCompute compute) {
      dims.expert_compute = compute;
      Harness harness(dims, *world, 1);
      std::vector<double> all{
          harness.run(random_ids(dims, 0, 1), random_ids(dims, 0, 2), 1).loss_sum};
      for (const parallel::Param& param : harness.params.params()) {
        const auto values = values_of(param.spec, param.grad);
        all.insert(all.end(), values.begin(), values.end());
      }
      return all;
    };
    const auto loop = gradients(ExpertCompute::kLoop);
    const auto grouped = gradients(ExpertCompute::kGrouped);
    const auto sparse = gradients(ExpertCompute::kBlockSparse);
    CHECK(grouped == gradients(ExpertCompute::kGrouped));
    CHECK(sparse == gradients(ExpertCompute::kBlockSparse));
    const auto apart = [&](const std::vector<double>& other) {
      double difference = 0, size = 0;
      for (std::size_t i = 0; i < loop.size(); ++i) {
        difference += (other[i] - loop[i]) * (other[i] - loop[i]);
        size += loop[i] * loop[i];
      }
      return std::sqrt(difference / size);
    };
    const double limit = dtype == DType::kF64 ? 1e-14 : dtype == DType::kF32 ? 1e-6 : 1e-2;
    CAPTURE(name_of(dtype));
    CHECK(apart(grouped) <= limit);
    CHECK(apart(sparse) <= limit);
  }
}

TEST_CASE("the size of the head's pieces changes nothing but the rounding", "[model]") {
  for (const DType dtype : {DType::kF64, DType::kF32}) {
    model::ModelDims dims = small_dims(dtype);
    const auto world = comm::make_self_group();
    const auto outcome = [&](std::int64_t piece) {
      dims.head_piece = piece;
      Harness harness(dims, *world, 1);
      std::vector<double> all{
          harness.run(random_ids(dims, 0, 1), random_ids(dims, 0, 2), 1).loss_sum};
      for (const parallel::Param& param : harness.params.params()) {
        const auto values = values_of(param.spec, param.grad);
        all.insert(all.end(), values.begin(), values.end());
      }
      CHECK(harness.arena.high_water() == model::plan_memory(dims, 1).activation_bytes);
      return all;
    };
    const auto whole = outcome(dims.tokens());
    CHECK(whole == outcome(10 * dims.tokens()));
    for (const std::int64_t piece : {1, 5, 9, 17}) {
      const auto pieces = outcome(piece);
      double difference = 0, size = 0;
      for (std::size_t i = 0; i < whole.size(); ++i) {
        difference += (pieces[i] - whole[i]) * (pieces[i] - whole[i]);
        size += whole[i] * whole[i];
      }
      CAPTURE(name_of(dtype), piece);
      CHECK(pieces[0] == Approx(whole[0]).epsilon(dtype == DType::kF64 ? 1e-14 : 1e-6));
      CHECK(std::sqrt(difference / size) <= (dtype == DType::kF64 ? 1e-14 : 1e-6));
    }
  }
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
    "tokens are processed in chunks where routing exceeds dispatch memory, and the result is the "
    "same",
    "[model]") {
  model::ModelDims dims = small_dims(DType::kF64);
  std::mutex mutex;
  std::vector<double> roomy(4), tight(4);
  int chunks = 1;
  const auto losses = [&](const model::ModelDims& used, std::vector<double>& out) {
    comm::run_thread_group(2, [&](comm::Group& world) {
      Harness harness(used, world, 2);
      const std::uint64_t rank = std::uint64_t(world.rank().value);
      const auto result = harness.run(random_ids(used, rank, 1), random_ids(used, rank, 2), 1);
      const std::lock_guard lock(mutex);
      out[rank] = result.loss_sum;
      for (const parallel::Bucket& bucket : harness.params.buckets())
        out[2 + rank] += ops::sum_of_squares(harness.ctx, harness.params.grads(bucket));
      for (const auto& report : result.routing) chunks = std::max(chunks, report.dispatch_chunks);
    });
  };
  losses(dims, roomy);
  CHECK(chunks == 1);
  dims.dispatch_buffer_factor = 0.1;
  const ExpectLog expected;
  losses(dims, tight);
  CHECK(chunks > 1);
  CHECK(expected.contains("dispatch_buffer_factor"));
  CHECK(roomy == tight);
}

TEST_CASE("the router's bias follows the load by steps of the rate", "[model]") {
  std::vector<float> bias{0.5F, 0, -0.25F, 1};
  model::update_expert_bias(view_of(std::span(bias)), std::vector<double>{10, 20, 15, 15}, 0.125);
  CHECK(bias == std::vector<float>{0.625F, -0.125F, -0.25F, 1});
  std::vector<double> wide{0, 0, 0};
  model::update_expert_bias(view_of(std::span(wide)), std::vector<double>{0, 0, 1}, 1e-3);
  CHECK(wide == std::vector<double>{1e-3, 1e-3, -1e-3});
  CHECK_THROWS_AS(
      model::update_expert_bias(view_of(std::span(wide)), std::vector<double>{1, 2}, 1e-3),
      ShapeError);
}

TEST_CASE("the bias balances a skewed router over steps", "[model]") {
  model::ModelDims dims = sigmoid_dims(DType::kF32);
  dims.num_groups = dims.group_topk = 0;
  dims.aux_loss_coeff = 0;
  const auto world = comm::make_self_group();
  Harness harness(dims, *world, 1);
  const auto tokens = random_ids(dims, 0, 1), labels = random_ids(dims, 0, 2);
  const auto spread = [&] {
    (void)harness.run(tokens, labels, 1);
    const auto counts = harness.transformer.chosen_counts(0);
    return *std::max_element(counts.begin(), counts.end()) -
           *std::min_element(counts.begin(), counts.end());
  };
  const std::int64_t before = spread();
  for (int step = 0; step < 200; ++step) {
    const auto counts = harness.transformer.chosen_counts(0);
    model::update_expert_bias(harness.transformer.moe_layer(0).expert_bias(),
                              std::vector<double>(counts.begin(), counts.end()),
                              5e-3);
    (void)spread();
  }
  CAPTURE(before, spread());
  CHECK(spread() < before / 2);
}

TEST_CASE("forced balance loads all experts of all ranks alike", "[model]") {
  model::ModelDims dims = small_dims(DType::kF32);
  dims.force_balance = true;
  dims.sequence = 9;
  dims.micro_batch = 2;  // 36 slots a rank, 72 on two: 9 for each of 8 experts
  std::mutex mutex;
  std::vector<std::int64_t> totals(8, 0);
  comm::run_thread_group(2, [&](comm::Group& world) {
    Harness harness(dims, world, 2);
    const std::uint64_t rank = std::uint64_t(world.rank().value);
    (void)harness.run(random_ids(dims, rank, 1), random_ids(dims, rank, 2), 1);
    const std::lock_guard lock(mutex);
    const auto counts = harness.transformer.expert_counts(1);
    for (std::size_t e = 0; e < counts.size(); ++e) totals[e] += counts[e];
  });
  CHECK(totals == std::vector<std::int64_t>(8, 9));
}

TEST_CASE("with a capacity dispatch memory is planned for all that can come", "[model]") {
  model::ModelDims dims = small_dims(DType::kF32);
  dims.ep = 4;
  dims.dispatch_buffer_factor = 100;
  CHECK(model::planned_dispatch_rows(dims) == 4 * 36);
  dims.capacity_factor = 1;
  CHECK(dims.capacity() == 5);
  CHECK(model::planned_dispatch_rows(dims) == 8 * 5);
  dims.dispatch_buffer_factor = 1;
  CHECK(model::planned_dispatch_rows(dims) == 36);
}
