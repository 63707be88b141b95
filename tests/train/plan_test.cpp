#include <nlohmann/json.hpp>

#include <pecan/train/plan.hpp>

#include "support/catch.hpp"

using namespace pecan;

namespace {

config::Config small_config() {
  return config::parse_config(R"(
model: {num_layers: 2, hidden_size: 16, num_attention_heads: 2, make_vocab_size_divisible_by: 8}
moe: {num_experts: 4, moe_ffn_hidden_size: 8, moe_layer_freq: [0, 1]}
training: {seq_length: 8, micro_batch_size: 2, global_batch_size: 16, train_iters: 10}
parallel: {expert_model_parallel_size: 2}
checkpoint: {pec: {experts_per_checkpoint: 1}}
)");
}

}  // namespace

TEST_CASE("counts and bytes of a plan are those of the formulas", "[train]") {
  const config::Config config = small_config();
  const train::TrainPlan plan = train::make_plan(config, 50, 4);
  const std::int64_t hidden = 16, vocab = 50;
  const std::int64_t attention = 4 * hidden * hidden, norms = 2 * hidden;
  const std::int64_t dense_ffn = 3 * hidden * config.model.ffn_hidden_size;
  const std::int64_t experts = 4 * 3 * hidden * 8, router = 4 * hidden;
  CHECK(plan.parameters.expert == experts);
  CHECK(plan.parameters.non_expert ==
        vocab * hidden + 2 * (attention + norms) + dense_ffn + router + hidden);
  CHECK(plan.parameters.active == plan.parameters.non_expert + experts / 2);
  CHECK(plan.num_micro_batches == 2);
  CHECK(plan.mesh.edp == 2);

  // fp32: weight and two moments; counters: a table of 4 x 4 experts and a count for the non-expert
  // unit, and for each expert an update count and two absorbed counters.
  CHECK(plan.full_checkpoint_bytes == 12 * plan.parameters.total + 8 * (4 * 4 + 1 + 4 * 3));
  CHECK(plan.full_checkpoint_bytes - plan.partial_checkpoint_bytes ==
        3 * (12 * 3 * hidden * 8 + 8 * 3));
  REQUIRE(plan.memory.size() == 4);
  CHECK(plan.memory[0].optimizer == 2 * plan.memory[0].weights);
  const auto json = nlohmann::json::parse(train::to_json(plan));
  CHECK(json.at("parameters").at("total") == plan.parameters.total);
  CHECK(json.at("rank_bytes").size() == 4);
}

TEST_CASE("bf16 halves the weights, keeps masters, and saves what always_saved asks for",
          "[train]") {
  config::Config config = small_config();
  const train::TrainPlan wide = train::make_plan(config, 50, 4);
  config.training.bf16 = true;
  const train::TrainPlan plan = train::make_plan(config, 50, 4);
  // Padding to whole cache lines apart.
  CHECK(double(plan.memory[0].weights) == Approx(double(wide.memory[0].weights) / 2).epsilon(0.1));
  CHECK(double(plan.memory[0].gradients) ==
        Approx(2 * double(plan.memory[0].weights)).epsilon(0.1));
  CHECK(plan.memory[0].optimizer > 2 * plan.memory[0].gradients);
  CHECK(plan.memory[0].optimizer <= 3 * plan.memory[0].gradients);
  CHECK(plan.memory[0].activations < wide.memory[0].activations);
  CHECK(plan.full_checkpoint_bytes == wide.full_checkpoint_bytes);
  CHECK(plan.partial_checkpoint_bytes == wide.partial_checkpoint_bytes);

  config.checkpoint.pec.always_saved = {"weight"};
  const train::TrainPlan weights = train::make_plan(config, 50, 4);
  // 2 bytes of every expert's parameters and a counter of each expert.
  CHECK(weights.partial_checkpoint_bytes ==
        plan.partial_checkpoint_bytes + 2 * plan.parameters.expert + 8 * 4);
  config.checkpoint.pec.always_saved = {"master"};
  const train::TrainPlan masters = train::make_plan(config, 50, 4);
  CHECK(masters.full_checkpoint_bytes == plan.full_checkpoint_bytes);
  CHECK(masters.partial_checkpoint_bytes ==
        plan.partial_checkpoint_bytes + 3 * (4 * 3 * 16 * 8 + 8));
}

TEST_CASE("a world that does not fit is refused", "[train]") {
  CHECK_THROWS_AS(train::make_plan(small_config(), 50, 3), ConfigError);
}
