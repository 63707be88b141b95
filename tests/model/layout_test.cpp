#include <cmath>
#include <mutex>

#include <pecan/ops/reduce.hpp>

#include <pecan/optim/adamw.hpp>

#include "model/harness.hpp"
#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::test;

namespace {

constexpr int kMicroBatches = 4;
constexpr int kSteps = 3;

/// What a layout computes from the same global batches of kMicroBatches micro-batches.
struct Outcome {
  double loss = 0;     ///< of the first step
  double norm = 0;     ///< of the first step's gradient
  Weights gradients;   ///< of the first step
  Weights parameters;  ///< after kSteps updates
};

Outcome train(const model::ModelDims& dims, int world_size, int ep) {
  Outcome outcome;
  std::mutex mutex;
  comm::run_thread_group(world_size, [&](comm::Group& world) {
    Harness harness(dims, world, ep);
    harness.scatter_vectors();
    optim::AdamW optimizer(device::cpu(), harness.params);
    const int num_micro = kMicroBatches / world.size();
    const double scale = parallel::gradient_scale(harness.mesh, num_micro);
    for (int step = 0; step < kSteps; ++step) {
      harness.params.zero_grads();
      double sums[2] = {0, 0};
      for (int micro = 0; micro < num_micro; ++micro) {
        // Sequences in Megatron's order: micro-step, then data-parallel rank.
        const auto index =
            std::uint64_t(step * kMicroBatches + micro * world.size() + world.rank().value);
        const auto result =
            harness.run(random_ids(dims, index, 1), random_ids(dims, index, 2), scale);
        sums[0] += result.loss_sum * scale / double(dims.tokens());
      }
      parallel::exchange_gradients(harness.ctx, harness.params, harness.groups);
      if (parallel::counts_dense(harness.mesh, world.rank())) {
        sums[1] += ops::sum_of_squares(harness.ctx,
                                       harness.params.flat_grads(harness.params.dense_range()));
      }
      if (parallel::counts_experts(harness.mesh, world.rank())) {
        sums[1] += ops::sum_of_squares(harness.ctx,
                                       harness.params.flat_grads(harness.params.expert_range()));
      }
      world
          .all_reduce(harness.ctx,
                      view_of(std::span<double>(sums)),
                      comm::ReduceOp::kSum,
                      {comm::Purpose::kTest})
          .wait();
      const std::lock_guard lock(mutex);
      if (step == 0) {
        outcome.loss = sums[0];
        outcome.norm = std::sqrt(sums[1]);
        for (const auto& param : harness.params.params()) {
          outcome.gradients[param.spec.name] = values_of(param.spec, param.grad);
        }
      }
      optimizer.update(harness.ctx, {.weight_decay = 0.1}, 1e-3, 1.0);
    }
    const std::lock_guard lock(mutex);
    for (const auto& param : harness.params.params()) {
      outcome.parameters[param.spec.name] = values_of(param.spec, param.weight);
    }
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

void check_invariance(const model::ModelDims& dims, Tolerances limits) {
  const Outcome alone = train(dims, 1, 1);
  const struct {
    int world;
    int ep;
  } layouts[] = {{2, 1}, {2, 2}, {4, 1}, {4, 4}, {4, 2}};
  for (const auto& layout : layouts) {
    CAPTURE(layout.world, layout.ep);
    const Outcome other = train(dims, layout.world, layout.ep);
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
}

constexpr Tolerances kF64Limits{1e-11, 1e-11, 1e-9};
constexpr Tolerances kF32Limits{1e-6, 3e-6, 1e-4};

}  // namespace

TEST_CASE("every layout trains the same model, fp64", "[model][layout]") {
  check_invariance(small_dims(DType::kF64), kF64Limits);
}
TEST_CASE("every layout trains the same model, fp32", "[model][layout]") {
  check_invariance(small_dims(DType::kF32), kF32Limits);
}
TEST_CASE("every layout trains the same GPT with capacity", "[model][layout]") {
  check_invariance(gpt_dims(DType::kF64), kF64Limits);
  check_invariance(gpt_dims(DType::kF32), kF32Limits);
}
TEST_CASE("every layout trains the same sigmoid router with bias", "[model][layout]") {
  check_invariance(sigmoid_dims(DType::kF64), kF64Limits);
  check_invariance(sigmoid_dims(DType::kF32), kF32Limits);
}
