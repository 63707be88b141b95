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

Outcome train(DType dtype, int world_size, int ep) {
  const model::ModelDims dims = small_dims(dtype);
  Outcome outcome;
  std::mutex mutex;
  comm::run_thread_group(world_size, [&](comm::Group& world) {
    Harness harness(dims, world, ep);
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

struct Tolerances {
  double loss;
  double gradient;
  double parameter;
};

void check_invariance(DType dtype, Tolerances limits) {
  const Outcome alone = train(dtype, 1, 1);
  const struct {
    int world;
    int ep;
  } layouts[] = {{2, 1}, {2, 2}, {4, 1}, {4, 4}, {4, 2}};
  for (const auto& layout : layouts) {
    CAPTURE(layout.world, layout.ep);
    const Outcome other = train(dtype, layout.world, layout.ep);
    CHECK(std::abs(other.loss - alone.loss) <= limits.loss * std::abs(alone.loss));
    CHECK(std::abs(other.norm - alone.norm) <= limits.loss * alone.norm);
    REQUIRE(other.gradients.size() == alone.gradients.size());
    for (const auto& [name, gradient] : alone.gradients) {
      CAPTURE(name);
      CHECK(distance(other.gradients.at(name), gradient) <= limits.gradient);
      CHECK(distance(other.parameters.at(name), alone.parameters.at(name)) <= limits.parameter);
    }
  }
}

}  // namespace

TEST_CASE("every layout trains the same model, fp64", "[model][layout]") {
  check_invariance(DType::kF64, {1e-11, 1e-11, 1e-9});
}
TEST_CASE("every layout trains the same model, fp32", "[model][layout]") {
  check_invariance(DType::kF32, {1e-6, 3e-6, 1e-4});
}
