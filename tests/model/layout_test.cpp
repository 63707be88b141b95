#include <cmath>
#include <mutex>

#include <pecan/ops/reduce.hpp>

#include <pecan/optim/adamw.hpp>

#include "model/harness.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

using namespace pecan;
using namespace pecan::test;

namespace {

constexpr int kMicroBatches = 8;
constexpr int kSteps = 3;

/// What a layout computes from the same global batches of kMicroBatches micro-batches.
struct Outcome {
  double loss = 0;     ///< of the first step
  double norm = 0;     ///< of the first step's gradient
  Weights gradients;   ///< of the first step
  Weights parameters;  ///< after kSteps updates
};

/// The micro-batches `first` ... in one.
std::vector<std::int32_t> ids_of(const model::ModelDims& dims,
                                 std::uint64_t first,
                                 int count,
                                 std::uint64_t stream) {
  std::vector<std::int32_t> ids;
  for (int i = 0; i < count; ++i) {
    const auto more = random_ids(dims, first + std::uint64_t(i), stream);
    ids.insert(ids.end(), more.begin(), more.end());
  }
  return ids;
}

/// `merged` of the kMicroBatches are computed as one.
Outcome train(const model::ModelDims& small, const Layout& layout, int merged = 1) {
  Outcome outcome;
  model::ModelDims dims = small;
  dims.micro_batch *= merged;
  dims.dispatch_buffer_factor = layout.dispatch_buffer_factor;
  std::mutex mutex;
  comm::run_thread_group(layout.world, [&](comm::Group& world) {
    Harness harness(dims, world, layout);
    harness.scatter_vectors();
    optim::AdamW optimizer(device::cpu(), harness.params);
    const int dp = harness.mesh.dp;
    const int num_micro = kMicroBatches / (dp * merged);
    const double scale = parallel::gradient_scale(harness.mesh, num_micro);
    for (int step = 0; step < kSteps; ++step) {
      harness.transformer.begin_step(harness.ctx);
      harness.exchange.begin_step(harness.ctx);
      double sums[2] = {0, 0};
      for (int micro = 0; micro < num_micro; ++micro) {
        // Sequences in Megatron's order: micro-step, then data-parallel rank.
        const auto index = std::uint64_t(step * kMicroBatches +
                                         (micro * dp + harness.params.position().dp) * merged);
        harness.exchange.begin_micro_batch(micro + 1 < num_micro ? parallel::MicroBatch::kMoreFollow
                                                                 : parallel::MicroBatch::kLast);
        const auto result =
            harness.run(ids_of(small, index, merged, 1), ids_of(small, index, merged, 2), scale);
        sums[0] += result.loss_sum * scale / double(dims.tokens());
      }
      harness.exchange.finish(harness.ctx);
      for (const parallel::Bucket& bucket : harness.params.buckets()) {
        if (harness.params.counts(bucket))
          sums[1] += ops::sum_of_squares(harness.ctx, harness.params.summed_share(bucket));
      }
      world
          .all_reduce(harness.ctx,
                      view_of(std::span<double>(sums)),
                      comm::ReduceOp::kSum,
                      {comm::Purpose::kTest})
          .wait();
      if (step == 0) {
        const std::lock_guard lock(mutex);
        outcome.loss = sums[0];
        outcome.norm = std::sqrt(sums[1]);
        for (const auto& param : harness.params.params())
          put_owned(param, param.owned_grad, outcome.gradients[param.spec.name]);
      }
      optimizer.update(harness.ctx, {.weight_decay = 0.1}, 1e-3, 1.0);
      harness.gather.start(harness.ctx);
    }
    harness.gather.finish();
    const std::lock_guard lock(mutex);
    for (const auto& param : harness.params.params())
      put_owned(param, param.master, outcome.parameters[param.spec.name]);
  });
  return outcome;
}

/// Norm of the difference over the norm.
double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

double size_of(const std::vector<double>& a) {
  return distance(a, std::vector<double>(a.size(), 0.0));
}

struct Tolerances {
  double loss;
  double gradient;
  double parameter;
};

void check_agreement(const model::ModelDims& dims,
                     const Outcome& other,
                     const Outcome& alone,
                     Tolerances limits) {
  CHECK(std::abs(other.loss - alone.loss) <= limits.loss * std::abs(alone.loss));
  CHECK(std::abs(other.norm - alone.norm) <= limits.loss * alone.norm);
  REQUIRE(other.gradients.size() == alone.gradients.size());
  for (const auto& [name, gradient] : alone.gradients) {
    CAPTURE(name);
    if (name.ends_with("k_proj.bias") &&
        dims.position_embedding != config::PositionEmbedding::kRope) {
      // It moves all scores of a query alike, so its gradient is 0 but for rounding, of which
      // Adam makes whole steps that change nothing.
      CHECK(size_of(gradient) <= limits.gradient * alone.norm);
      CHECK(size_of(other.gradients.at(name)) <= limits.gradient * alone.norm);
      continue;
    }
    CHECK(distance(other.gradients.at(name), gradient) <= limits.gradient);
    CHECK(distance(other.parameters.at(name), alone.parameters.at(name)) <= limits.parameter);
  }
}

constexpr auto kFull = config::RecomputeGranularity::kFull;
constexpr auto kOn = parallel::Overlap::kOn;

void check_invariance(const model::ModelDims& dims, Tolerances limits) {
  using enum parallel::Sharding;
  const Outcome alone = train(dims, {});
  const Layout layouts[] = {
      {.world = 2, .ep = 1},
      {.world = 2, .ep = 2},
      {.world = 4, .ep = 4},
      {.world = 4, .ep = 2},
      {.world = 8, .ep = 8},
      {.world = 2, .tp = 2},
      {.world = 2, .tp = 2, .ep = 2},
      {.world = 2, .tp = 2, .etp = 2},
      {.world = 4, .tp = 4, .ep = 2, .etp = 2},
      {.world = 4, .tp = 4, .ep = 4},
      {.world = 4, .tp = 2, .ep = 4},
      {.world = 4, .tp = 2, .ep = 2},
      {.world = 8, .tp = 4, .ep = 2, .etp = 2},
      {.world = 8, .tp = 2, .ep = 4, .etp = 2},
      {.world = 8, .tp = 2, .ep = 8},
      {.world = 2, .sharding = kOptimizer},
      {.world = 4, .ep = 2, .sharding = kGradients},
      {.world = 4, .tp = 2, .ep = 2, .sharding = kOptimizer},
      {.world = 8, .tp = 2, .ep = 2, .sharding = kGradients},
      {.world = 8, .tp = 2, .ep = 2, .sharding = kGradients, .overlap = kOn},
      {.world = 4, .tp = 2, .ep = 4, .recompute = kFull},
      {.world = 1, .dispatch_buffer_factor = 0.4},
      {.world = 4, .ep = 4, .dispatch_buffer_factor = 0.4},
      {.world = 4, .tp = 2, .ep = 2, .etp = 2, .dispatch_buffer_factor = 0.4},
      {.world = 8,
       .tp = 2,
       .ep = 2,
       .etp = 2,
       .sharding = kGradients,
       .overlap = kOn,
       .recompute = kFull,
       .dispatch_buffer_factor = 0.7},
  };
  // Ranks that are given less memory than they need say that they work in chunks.
  const ExpectLog expected;
  for (const auto& layout : layouts) {
    CAPTURE(layout.world, layout.tp, layout.ep, layout.etp, int(layout.sharding));
    CAPTURE(int(layout.recompute), layout.dispatch_buffer_factor);
    check_agreement(dims, train(dims, layout), alone, limits);
  }
}

constexpr Tolerances kF64Limits{1e-11, 1e-11, 1e-9};
constexpr Tolerances kF32Limits{1e-6, 3e-6, 1e-4};

/// Sizes that four ranks can share.
model::ModelDims divisible(model::ModelDims dims) {
  dims.sequence = 8;
  dims.ffn = 12;
  dims.is_moe = {false, true};
  dims.expert_ffn = 8;
  if (dims.shared_ffn > 0) dims.shared_ffn = 8;
  dims.sequence_parallel = parallel::SequenceParallel::kOn;
  return dims;
}

}  // namespace

TEST_CASE("every layout trains the same model, fp64", "[model][layout]") {
  check_invariance(divisible(small_dims(DType::kF64)), kF64Limits);
}
TEST_CASE("every layout trains the same model, fp32", "[model][layout]") {
  check_invariance(divisible(small_dims(DType::kF32)), kF32Limits);
}
TEST_CASE("every layout trains the same GPT with capacity", "[model][layout]") {
  check_invariance(divisible(gpt_dims(DType::kF64)), kF64Limits);
  check_invariance(divisible(gpt_dims(DType::kF32)), kF32Limits);
}
TEST_CASE("every layout trains the same sigmoid router with bias", "[model][layout]") {
  for (const DType dtype : {DType::kF64, DType::kF32}) {
    model::ModelDims dims = divisible(sigmoid_dims(dtype));
    dims.tied_embeddings = false;
    dims.is_moe = {true, true};
    check_invariance(dims, dtype == DType::kF64 ? kF64Limits : kF32Limits);
  }
}

TEST_CASE("every layout trains the same model with balance in sequences", "[model][layout]") {
  model::ModelDims dims = divisible(small_dims(DType::kF64));
  dims.tied_embeddings = false;
  dims.balance = model::Balance::kSequence;
  check_invariance(dims, kF64Limits);
}

TEST_CASE("balance of the global batch has the strength of one process on the whole batch",
          "[model][layout]") {
  // The trap: losses of parts of a batch, averaged over ranks, measure another balance, and counts
  // summed over ranks without their number of tokens measure one that is dp times as strong.
  model::ModelDims dims = divisible(small_dims(DType::kF64));
  dims.balance = model::Balance::kGlobalBatch;
  const Outcome alone = train(dims, {}, kMicroBatches);
  const Layout layouts[] = {
      {.world = 8, .ep = 4}, {.world = 4, .ep = 2}, {.world = 8, .tp = 2, .ep = 4}};
  for (const auto& layout : layouts) {
    CAPTURE(layout.world, layout.tp, layout.ep);
    const int dp = layout.world / layout.tp;
    check_agreement(dims, train(dims, layout, kMicroBatches / dp), alone, kF64Limits);
  }
  dims.balance = model::Balance::kMicroBatch;
  const Outcome parts = train(dims, {.world = 8, .ep = 4}, 1);
  CHECK(std::abs(parts.norm - alone.norm) > 1e-6 * alone.norm);
}

TEST_CASE("layouts with equal micro-batches and data parallelism train the same default vectors",
          "[model][layout][default_vectors]") {
  using enum parallel::Sharding;
  for (const auto& [dtype, capacity_factor] :
       {std::pair(DType::kF64, 0), {DType::kF64, 1}, {DType::kF32, 0}}) {
    model::ModelDims dims = divisible(default_vector_dims(dtype));
    dims.is_moe = {true, true};
    dims.capacity_factor = capacity_factor;
    // A sequence that begins with equal tokens has equal weights, of which rounding would choose.
    dims.drop_policy = config::TokenDropPolicy::kPosition;
    const Tolerances limits = dtype == DType::kF64 ? kF64Limits : kF32Limits;
    // Averages follow what all ranks see at once: four micro-batches, whoever computes them.
    const Outcome four = train(dims, {.world = 4});
    const ExpectLog expected;
    for (const Layout& layout :
         {Layout{.world = 4, .ep = 4},
          Layout{.world = 4, .ep = 2, .sharding = kGradients, .overlap = kOn},
          Layout{.world = 8, .tp = 2},
          Layout{.world = 8, .tp = 2, .ep = 2, .etp = 2},
          Layout{.world = 8, .tp = 2, .ep = 8, .recompute = kFull},
          Layout{.world = 8, .tp = 2, .ep = 4, .etp = 2, .dispatch_buffer_factor = 0.7}}) {
      CAPTURE(int(dtype), capacity_factor, layout.world, layout.tp, layout.ep, layout.etp);
      check_agreement(dims, train(dims, layout), four, limits);
    }
    CHECK(expected.contains("chunks"));
    const Outcome other = train(dims, {.world = 2});
    CHECK(std::abs(other.norm - four.norm) > 1e-6 * four.norm);
  }
}

TEST_CASE("sharding, overlap and recomputation change no bit", "[model][layout]") {
  using enum parallel::Sharding;
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    const model::ModelDims dims = divisible(small_dims(dtype));
    for (const Layout& plain : {Layout{.world = 4, .ep = 2},
                                Layout{.world = 4, .tp = 2, .ep = 2, .etp = 2},
                                Layout{.world = 8, .tp = 2, .ep = 8},
                                Layout{.world = 8, .ep = 4}}) {
      const Outcome expected = train(dims, plain);
      std::vector<Layout> variants(4, plain);
      variants[0].sharding = kOptimizer;
      variants[1].sharding = kOptimizer;
      variants[1].overlap = kOn;
      variants[2].overlap = kOn;
      variants[3].recompute = kFull;
      // Sums of each micro-batch are added up in another order than micro-batches are summed: the
      // same bits where a step is one micro-batch.
      if (plain.world / plain.tp == kMicroBatches) {
        variants.push_back(plain);
        variants.back().sharding = kGradients;
        variants.push_back(variants.back());
        variants.back().overlap = kOn;
      }
      for (const Layout& variant : variants) {
        CAPTURE(variant.world, variant.tp, variant.ep, int(variant.sharding));
        CAPTURE(int(variant.overlap), int(variant.recompute), int(dtype));
        const Outcome other = train(dims, variant);
        CHECK(other.loss == expected.loss);
        CHECK(other.norm == expected.norm);
        CHECK(other.gradients == expected.gradients);
        CHECK(other.parameters == expected.parameters);
      }
    }
  }
}

TEST_CASE("recomputation takes less memory and the plan is reached exactly", "[model][layout]") {
  model::ModelDims dims = divisible(small_dims(DType::kF32));
  dims.num_layers = 6;
  dims.is_moe = {true, false, true, true, false, true};
  const std::size_t whole = model::plan_memory(dims, 1).activation_bytes;
  dims.recompute = kFull;
  const std::size_t less = model::plan_memory(dims, 1).activation_bytes;
  CHECK(less < whole / 2);
  device::Arena arena(device::cpu(), less);
  (void)model::Activations::plan(dims, arena);
  CHECK(arena.high_water() == less);
}

TEST_CASE("in bf16 layouts agree as far as its rounding lets them", "[model][layout]") {
  // Choices of experts are not the same everywhere: rounding decides near-ties.
  const model::ModelDims dims = divisible(small_dims(DType::kBF16));
  const Outcome alone = train(dims, {});
  const Layout layouts[] = {
      {.world = 2, .ep = 2},
      {.world = 2, .tp = 2, .ep = 2},
      {.world = 4, .tp = 4, .ep = 2, .etp = 2},
      {.world = 8,
       .tp = 2,
       .ep = 4,
       .etp = 2,
       .sharding = parallel::Sharding::kGradients,
       .overlap = kOn,
       .recompute = kFull},
  };
  for (const auto& layout : layouts) {
    CAPTURE(layout.world, layout.tp, layout.ep, layout.etp);
    const Outcome other = train(dims, layout);
    CHECK(std::abs(other.loss - alone.loss) <= 0.02 * alone.loss);
    CHECK(std::abs(other.norm - alone.norm) <= 0.1 * alone.norm);
    for (const auto& [name, parameter] : alone.parameters) {
      CAPTURE(name);
      CHECK(distance(other.parameters.at(name), parameter) <= 0.05);
    }
  }
}
