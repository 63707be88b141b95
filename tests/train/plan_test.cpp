#include <algorithm>

#include <nlohmann/json.hpp>

#include <pecan/checkpoint/checkpointer.hpp>

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
  const auto json =
      nlohmann::json::parse(train::to_json(plan, train::report_checkpoints(config, plan, {})));
  CHECK(json.at("parameters").at("total") == plan.parameters.total);
  CHECK(json.at("rank_bytes").size() == 4);
}

TEST_CASE("the plan has the pieces in which a device's tokens pass the head", "[train]") {
  config::Config config = small_config();
  config.training.seq_length = 4096;
  constexpr std::int64_t kVocab = 50'304;
  const train::TrainPlan here = train::make_plan(config, kVocab, 4);
  CHECK(here.dims.head_tokens() == 128);
  config.training.device = config::DeviceChoice::kCuda;
  const train::TrainPlan in_f32 = train::make_plan(config, kVocab, 4);
  CHECK(in_f32.dims.head_tokens() == 128);
  CHECK(in_f32.memory[0].activations == here.memory[0].activations);
  config.training.bf16 = true;
  train::TrainPlan on_device = train::make_plan(config, kVocab, 4);
  CHECK(on_device.dims.head_tokens() == 1024);
  config.training.device = config::DeviceChoice::kCpu;
  const train::TrainPlan on_cpu = train::make_plan(config, kVocab, 4);
  CHECK(on_device.memory[0].activations - on_cpu.memory[0].activations ==
        std::size_t((1024 - 128) * kVocab * 2));
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

TEST_CASE("memory of a rank counts snapshots if checkpoints are saved", "[train]") {
  config::Config config = small_config();
  CHECK(train::make_plan(config, 50, 4).memory[0].snapshots == 0);
  config.checkpoint.save_interval.steps = 10;
  const train::TrainPlan plan = train::make_plan(config, 50, 4);
  const checkpoint::WriteLoad full = train::report_checkpoints(config, plan, {}).estimate.full;
  std::size_t most = 0;
  for (const train::RankMemory& memory : plan.memory) {
    CHECK(memory.total() > memory.snapshots);
    most = std::max(most, memory.snapshots);
  }
  // The largest share of a full checkpoint, each block at a cache line of its own.
  CHECK(most >= std::size_t(full.max_rank_bytes));
  CHECK(most <= std::size_t(full.max_rank_bytes) + 64 * plan.catalog.items.size());

  config.checkpoint.non_persistent_save_interval.steps = 5;
  const train::TrainPlan two_levels = train::make_plan(config, 50, 4);
  const auto reserved =
      checkpoint::plan_snapshot_memory(two_levels.catalog, config.checkpoint, {}, false);
  for (std::size_t r = 0; r < 4; ++r) {
    CHECK(two_levels.memory[r].snapshots > plan.memory[r].snapshots);
    // What the buffers take as files, headers included, and the buffer of the last checkpoint.
    CHECK(two_levels.memory[r].snapshots ==
          checkpoint::memory_dir_bytes(reserved[r]) + reserved[r].first);
    CHECK(two_levels.memory[r].snapshots > reserved[r].total());
  }
}

TEST_CASE("checkpoints of GPT-350M-16E weigh what the formulas say", "[train]") {
  const auto report_of = [](const std::vector<std::string>& settings) {
    const std::vector<std::string> files{PECAN_SOURCE_DIR "/configs/models/gpt-350m-16e.yaml"};
    std::vector<std::string> all{"checkpoint.pec.experts_per_checkpoint=1"};
    all.insert(all.end(), settings.begin(), settings.end());
    const config::Config config = config::load_config(files, all);
    return train::report_checkpoints(
        config, train::make_plan(config, config.model.vocab_size, 8), {});
  };
  // 12 of 24 layers with 16 experts of two matrices and biases, 4096 wide.
  const std::int64_t hidden = 1024, ffn = 4096, layers = 24, moe = 12, experts = 16;
  const std::int64_t one_ffn = 2 * hidden * ffn + ffn + hidden;
  const std::int64_t expert = moe * experts * one_ffn;
  const std::int64_t rest = (50257 + 2048) * hidden +
                            layers * (4 * (hidden * hidden + hidden) + 4 * hidden) +
                            (layers - moe) * one_ffn + moe * experts * hidden + 2 * hidden;
  // Four tables of counters and an update count; three counters of an expert, one more with
  // weights.
  const std::int64_t tables = 8 * (4 * moe * experts + 1), counters = 3 * 8;

  const checkpoint::CheckpointEstimate estimate = report_of({}).estimate;
  CHECK(estimate.full.total_bytes == 12 * (rest + expert) + tables + moe * experts * counters);
  CHECK(estimate.partial.total_bytes == 12 * (rest + expert / experts) + tables + moe * counters);
  REQUIRE(estimate.modes.size() == 3);
  const auto share = [&](int mode) {
    return double(estimate.modes[std::size_t(mode)].partial.total_bytes) /
           double(estimate.plain_full_bytes);
  };
  const auto papers = [&](int mode) {
    return double(estimate.modes[std::size_t(mode)].papers_bytes) /
           double(estimate.papers_full_bytes);
  };
  CHECK(estimate.papers_full_bytes == 14 * (rest + expert));
  CHECK(share(0) == Approx(0.191).margin(5e-4));
  CHECK(share(1) == Approx(0.461).margin(6e-4));
  CHECK(share(2) == Approx(0.334).margin(6e-4));
  // Biases are computed with in fp32: only matrices have weights beside their masters.
  CHECK(estimate.modes[2].full_bytes ==
        estimate.plain_full_bytes + moe * experts * (2 * 2 * hidden * ffn + 8));
  CHECK(papers(0) == Approx(0.191).margin(5e-4));
  CHECK(papers(1) == Approx(0.422).margin(5e-4));
  CHECK(papers(2) ==
        Approx(double(rest + expert / 7 + expert / experts * 12 / 14) / double(rest + expert)));

  // Without ZeRO rank 0 writes all non-expert state and its 24 experts, as the baseline does.
  REQUIRE(estimate.policies.size() == 3);
  CHECK(estimate.policies[0].full.max_rank_bytes ==
        12 * rest + tables + 2 * moe * (12 * one_ffn + counters));
  // Two of its 12 experts at most, on eight ranks.
  CHECK(estimate.policies[0].partial.max_rank_bytes ==
        12 * rest + tables + 2 * (12 * one_ffn + counters));
  CHECK(estimate.policies[2].full.imbalance < 1.01);
  CHECK(checkpoint::sharding_remark(estimate).empty());

  // ZeRO-1 splits all but the counters.
  const checkpoint::CheckpointEstimate zero =
      report_of({"parallel.use_distributed_optimizer=true"}).estimate;
  CHECK(zero.full.total_bytes == estimate.full.total_bytes);
  CHECK(zero.replicated_bytes == tables);
  CHECK_THAT(checkpoint::sharding_remark(zero), Catch::Contains("no policy changes anything"));
}

TEST_CASE("fp32 runs have no weights beside their masters", "[train]") {
  config::Config config = small_config();
  const auto modes_of = [&] {
    return train::report_checkpoints(config, train::make_plan(config, 50, 4), {}).estimate.modes;
  };
  const auto wide = modes_of();
  CHECK(wide[1].partial == wide[2].partial);
  CHECK(wide[1].always_saved == std::vector{RoleGroup::kWeight});
  config.training.bf16 = true;
  const auto narrow = modes_of();
  CHECK(narrow[0].partial == wide[0].partial);
  CHECK(narrow[1].partial == wide[1].partial);
  // 2 bytes of each parameter and a counter always, instead of 4 and a counter where unsaved.
  const std::int64_t expert = 3 * 16 * 8;
  CHECK(narrow[2].partial.total_bytes == wide[0].partial.total_bytes + 4 * (2 * expert + 8));
}

TEST_CASE("a report tells in text and JSON what its figures allow", "[train]") {
  config::Config config = small_config();
  config.checkpoint.save_interval.steps = 2;
  const train::TrainPlan plan = train::make_plan(config, 50, 4);
  const train::CheckpointReport bare = train::report_checkpoints(config, plan, {});
  const std::string text = train::describe(bare);
  for (const char* word : {"eq6",
                           "master_full",
                           "weights_full",
                           "rank0",
                           "equal",
                           "adaptive",
                           "every 2 steps: a failure repeats 1 steps, PLT 0.3"})
    CHECK_THAT(text, Catch::Contains(word));
  for (const char* word : {"O_save", "persist", "optimal", "hidden", "failures"})
    CHECK_THAT(text, !Catch::Contains(word));
  const auto json = nlohmann::json::parse(train::to_json(plan, bare)).at("checkpoint");
  CHECK(json.at("partial").at("bytes") == plan.partial_checkpoint_bytes);
  CHECK(json.at("full").at("bytes") == plan.full_checkpoint_bytes);
  CHECK(json.at("byte_modes").size() == 3);
  CHECK(json.at("sharding").at("rank0").at("partial").at("max_rank_bytes") ==
        bare.estimate.policies[0].partial.max_rank_bytes);
  CHECK_FALSE(json.at("cost").at("full").contains("optimal"));

  const train::CheckpointReport full = train::report_checkpoints(
      config,
      plan,
      {.copy_gb_per_s = 1e-6, .write_gb_per_s = 1e-6, .step_ms = 1000, .mtbf_hours = 1});
  CHECK_THAT(train::describe(full),
             Catch::Contains("O_save") && Catch::Contains("optimal: every") &&
                 Catch::Contains("saves will be skipped") &&
                 Catch::Contains("failures expected in the training"));
  const auto costs = nlohmann::json::parse(train::to_json(plan, full)).at("checkpoint").at("cost");
  CHECK(costs.at("full").at("snapshot_s") ==
        Approx(double(full.estimate.full.max_rank_bytes) / 1000));
  CHECK(costs.at("full").at("optimal").contains("overhead_share"));
}

TEST_CASE("a world that does not fit is refused", "[train]") {
  CHECK_THROWS_AS(train::make_plan(small_config(), 50, 3), ConfigError);
}
