#include "train/divergence.hpp"

#include <cmath>
#include <limits>
#include <mutex>
#include <random>

#include <pecan/parallel/gradients.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"
#include "train/lab.hpp"
#include "train/replica_check.hpp"

using namespace pecan;
using namespace pecan::train;
using test::ExpectLog;
using test::kVocab;
using test::kWorld;
using test::Lab;

TEST_CASE("a spike is measured by mean and deviation of the last losses", "[train]") {
  LossWindow window;
  std::mt19937 random(3);
  std::vector<long double> all;
  for (int i = 0; i < 200; ++i) {
    const double loss = 2 + 1e-3 * double(random() % 1000);
    if (all.size() < LossWindow::kLeast) CHECK_FALSE(window.is_spike(1e9, 1));
    window.accept(loss);
    all.push_back(loss);
    // By another formula, in a wider type: E[x^2] - E[x]^2.
    const std::size_t n = std::min<std::size_t>(all.size(), 64);
    long double sum = 0, squares = 0;
    for (std::size_t k = all.size() - n; k < all.size(); ++k) {
      sum += all[k];
      squares += all[k] * all[k];
    }
    CHECK(window.size() == n);
    CHECK(window.mean() == Approx(double(sum / n)).epsilon(1e-13));
    if (n < 16) continue;
    const long double deviation = std::sqrt((squares - sum * sum / n) / (n - 1));
    CHECK(window.deviation() == Approx(double(deviation)).epsilon(1e-9));
    const double limit = double(sum / n + 3 * deviation);
    CHECK(window.is_spike(limit * (1 + 1e-9), 3));
    CHECK_FALSE(window.is_spike(limit * (1 - 1e-9), 3));
    CHECK_FALSE(window.is_spike(1e9, 0));
  }
}

TEST_CASE("the first bad tensor of a pass is named by what was done to it", "[train]") {
  Lab lab;
  const config::Config config = lab.config({"parallel.expert_model_parallel_size=1"});
  const TrainPlan plan = make_plan(config, kVocab, 1);
  const auto locate = [&](const std::function<void(TrainState&)>& harm) {
    device::Stream stream{device::cpu()};
    const model::MemoryPlan sizes = model::plan_memory(plan.dims, 1);
    device::Arena workspace(device::cpu(), sizes.workspace_bytes);
    device::Arena arena(device::cpu(), sizes.activation_bytes);
    Context ctx{device::cpu(), stream, workspace, 1};
    const auto world = comm::make_self_group();
    TrainState state(ctx, plan, Rank{0});
    model::initialise(ctx, state.params(), 3);
    harm(state);
    parallel::MeshGroups groups = parallel::make_groups(plan.mesh, *world, 1);
    parallel::GradientExchange exchange(state.params(), groups, parallel::Overlap::kOff);
    model::Activations memory = model::Activations::plan(plan.dims, arena);
    TensorProbe probe(state.params(), plan.specs, memory);
    model::Transformer model(ctx, plan.dims, state.params(), groups, memory, {&probe, &exchange});
    const std::vector<std::int32_t> tokens(std::size_t(plan.dims.tokens()), 3);
    model.begin_step(ctx);
    exchange.begin_step(ctx);
    probe.arm(ctx);
    const ConstTensorView ids = const_view_of(std::span(tokens));
    const model::BatchResult result = model.forward_backward(ctx, {ids, ids, {}}, 1);
    probe.loss(result.loss_sum);
    probe.disarm();
    return probe.report(ctx, *world);
  };
  const auto fill = [](TrainState& state, const std::string& name, float value) {
    for (float& x : state.params().at(name).weight.flat().as<float>()) x = value;
  };
  CHECK(locate([](TrainState&) {}).empty());
  const std::string expert = "model.layers.1.mlp.experts.5.up_proj.weight";
  CHECK(locate([&](TrainState& state) {
          state.params().at(expert).weight.flat().as<float>()[7] =
              std::numeric_limits<float>::quiet_NaN();
        }) ==
        "the weight " + expert +
            " (layer 1, expert 5), before forward, on rank 0 (1 of 128 values are not finite)");
  // Finite weights whose products are not.
  CHECK_THAT(locate([&](TrainState& state) {
               fill(state, "model.layers.1.self_attn.v_proj.weight", 1e30F);
               fill(state, "model.layers.1.self_attn.o_proj.weight", 1e30F);
             }),
             Catch::StartsWith("the output of attention of layer 1, in forward of micro-batch 0"));
  CHECK_THAT(locate([&](TrainState& state) {
               fill(state, "model.layers.0.post_attention_layernorm.weight", 1e30F);
               for (int e = 0; e < 8; ++e) {
                 fill(state, fmt::format("model.layers.0.mlp.experts.{}.up_proj.weight", e), 1e30F);
               }
             }),
             Catch::StartsWith("the output of mlp of layer 0, in forward of micro-batch 0"));
}

TEST_CASE("an injected NaN is found in the tensor and on the rank that the fault named",
          "[train]") {
  Lab lab;
  const std::vector<std::vector<std::string>> layouts{
      {},
      // One micro-batch, so that the sum over ranks follows at once.
      {"parallel.expert_model_parallel_size=4", "training.global_batch_size=4"},
      {"parallel.tensor_model_parallel_size=2",
       "parallel.sequence_parallel=true",
       "parallel.expert_tensor_parallel_size=1",
       "training.global_batch_size=2"},
      {"parallel.data_parallel_sharding_strategy=optim_grads",
       "parallel.overlap_grad_reduce=true",
       "parallel.overlap_param_gather=true"},
      {"training.bf16=true", "training.recompute_granularity=full", "training.global_batch_size=4"},
  };
  int run = 0;
  for (const std::vector<std::string>& layout : layouts) {
    for (const int rank : {0, 3}) {
      const std::string name = fmt::format("run{}", run);
      CAPTURE(run, rank);
      std::vector<std::string> settings = layout;
      settings.insert(settings.end(),
                      {"training.train_iters=3",
                       "checkpoint.save_interval=0",
                       "training.check_for_nan_in_loss_and_grad=skip",
                       fmt::format("fault.inject=[nan step=2 rank={} seed={}]", rank, run)});
      const ExpectLog expected;
      CHECK(lab.train(name, settings) == ExitCode::kDone);
      std::string poisoned;
      for (const std::string& record : expected.records()) {
        const std::size_t at = record.find("strikes: the gradient of ");
        if (at != std::string::npos) poisoned = record.substr(record.find("the gradient of"));
      }
      REQUIRE_FALSE(poisoned.empty());
      const auto steps = lab.metrics(name, "step");
      REQUIRE(steps.size() == 3);
      CHECK(steps[1].at("skipped") == true);
      CHECK(steps[1].at("skip_reason") == "non_finite");
      CHECK(steps[1].at("skips_in_row") == 1);
      CHECK(steps[2].at("skipped") == false);
      const auto found = steps[1].at("bad_tensor").get<std::string>();
      CHECK_THAT(found, Catch::StartsWith(poisoned));
      CHECK_THAT(found, Catch::Contains("in backward of micro-batch 0"));
      CHECK_THAT(found, Catch::Contains(fmt::format("on rank {} (1 of", rank)));
      ++run;
    }
  }
}

TEST_CASE("a NaN that does not come again is laid to the hardware", "[train]") {
  Lab lab;
  const ExpectLog expected;
  const std::vector<std::string> settings{"training.train_iters=3",
                                          "checkpoint.save_interval=0",
                                          "fault.inject=[nan step=2 rank=1 repeats=no]"};
  CHECK_THROWS_WITH(lab.train("stops", settings),
                    Catch::StartsWith("step 2 has loss ") &&
                        Catch::Contains("and 1 non-finite gradient values; computed once more it "
                                        "has none, so a fault of the hardware may have come and "
                                        "gone"));
  std::vector<std::string> skipping = settings;
  skipping.push_back("training.check_for_nan_in_loss_and_grad=skip");
  CHECK(lab.train("skips", skipping) == ExitCode::kDone);
  const auto steps = lab.metrics("skips", "step");
  REQUIRE(steps.size() == 3);
  CHECK(steps[1].at("skip_reason") == "non_finite");
  CHECK(steps[1].at("bad_tensor") == "");
  CHECK(steps[2].at("skipped") == false);
}

TEST_CASE("a skipped step changes nothing: the run goes on as if its data had been others",
          "[train]") {
  Lab lab;
  const ExpectLog expected;
  const std::vector<std::string> settings{"training.train_iters=6",
                                          "training.check_for_nan_in_loss_and_grad=skip"};
  std::vector<std::string> struck = settings;
  struck.push_back("fault.inject=[nan step=4 rank=2]");
  CHECK(lab.train("struck", struck) == ExitCode::kDone);
  CHECK(lab.train("again", struck) == ExitCode::kDone);
  CHECK(lab.train("straight", settings) == ExitCode::kDone);
  const auto steps = lab.metrics("struck", "step");
  const auto straight = lab.metrics("straight", "step");
  REQUIRE(steps.size() == 6);
  for (std::size_t i = 0; i < 4; ++i) CHECK(steps[i].at("loss") == straight[i].at("loss"));
  CHECK(steps[4].at("loss") != straight[4].at("loss"));
  CHECK(lab.checksums("struck", 6) == lab.checksums("again", 6));
}

TEST_CASE("a flipped bit is found by the other holders, and the rank is named", "[train]") {
  Lab lab;
  struct Case {
    std::vector<std::string> layout;
    std::string expected;
  };
  const std::vector<Case> cases{
      // Four hold every dense parameter, and each expert too without expert parallelism.
      {{"parallel.expert_model_parallel_size=1"}, "rank 2 holds other bytes of "},
      {{"parallel.expert_model_parallel_size=4"}, "rank 2 holds other bytes of "},
      // Two hold each half.
      {{"parallel.tensor_model_parallel_size=2",
        "parallel.sequence_parallel=true",
        "parallel.expert_tensor_parallel_size=1",
        "parallel.expert_model_parallel_size=4"},
       "hold"},
      {{"parallel.expert_model_parallel_size=1",
        "parallel.data_parallel_sharding_strategy=optim",
        "parallel.overlap_param_gather=true"},
       "rank 2 holds other bytes of "},
      {{"parallel.expert_model_parallel_size=1", "training.bf16=true"},
       "rank 2 holds other bytes of "},
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    CAPTURE(i);
    std::vector<std::string> settings = cases[i].layout;
    settings.insert(settings.end(),
                    {"training.train_iters=6",
                     "checkpoint.save_interval=0",
                     "training.check_weight_hash_across_dp_replicas_interval=2",
                     fmt::format("fault.inject=[flip step=4 rank=2 seed={}]", i)});
    const ExpectLog expected;
    std::string name;
    try {
      (void)lab.train(fmt::format("run{}", i), settings);
      FAIL("a flipped bit stayed unseen");
    } catch (const DivergenceError& error) {
      name = error.what();
    }
    CHECK_THAT(name, Catch::StartsWith("after step 4 "));
    CHECK_THAT(name, Catch::Contains(cases[i].expected));
    CHECK_THAT(name, Catch::Contains("2"));
    // The parameter that the fault named.
    std::string flipped;
    for (const std::string& record : expected.records()) {
      const std::size_t at = record.rfind(" of model.");
      if (record.find("strikes: bit ") != std::string::npos) flipped = record.substr(at);
    }
    REQUIRE_FALSE(flipped.empty());
    CHECK_THAT(name, Catch::Contains(flipped));
  }
  // Without a fault nothing is found, and where nothing is held twice that is said.
  const ExpectLog expected;
  const std::string check = "training.check_weight_hash_across_dp_replicas_interval=1";
  CHECK(lab.train("sound", {"training.train_iters=3", check}) == ExitCode::kDone);
  CHECK_FALSE(expected.contains("compares nothing"));
}

TEST_CASE("why a run has stopped is in its records, and whether it would stop there again",
          "[train]") {
  struct Case {
    std::vector<std::string> settings;
    nlohmann::json record;
  };
  const std::string skip = "training.check_for_nan_in_loss_and_grad=skip";
  const std::vector<Case> cases{{{"fault.inject=[nan step=3 rank=2]"},
                                 {{"step", 3}, {"reason", "non_finite"}, {"repeatable", true}}},
                                {{"fault.inject=[nan step=3 rank=2 repeats=no]"},
                                 {{"step", 3}, {"reason", "non_finite"}, {"repeatable", false}}},
                                {{"training.spiky_loss_sigmas=50",
                                  "training.train_iters=20",
                                  "fault.inject=[spike step=18 rank=1 factor=1000]"},
                                 {{"step", 18}, {"reason", "spike"}, {"repeatable", true}}},
                                {{"parallel.expert_model_parallel_size=1",
                                  "training.check_weight_hash_across_dp_replicas_interval=2",
                                  "fault.inject=[flip step=4 rank=2]"},
                                 {{"step", 4}, {"reason", "replicas"}, {"repeatable", false}}},
                                {{skip,
                                  "training.rollback_after_skips=1",
                                  "training.max_rollbacks=1",
                                  "checkpoint.save_interval=2",
                                  "fault.inject=[nan step=4 start=every]"},
                                 {{"step", 4}, {"reason", "rollbacks"}, {"repeatable", true}}}};
  Lab lab;
  const ExpectLog expected;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    CAPTURE(i);
    std::vector<std::string> settings{"training.train_iters=6", "checkpoint.save_interval=0"};
    settings.insert(settings.end(), cases[i].settings.begin(), cases[i].settings.end());
    const std::string name = fmt::format("run{}", i);
    CHECK_THROWS_AS(lab.train(name, settings), DivergenceError);
    const auto records = lab.metrics(name, "divergence");
    REQUIRE(records.size() == 1);
    for (const auto& [key, value] : cases[i].record.items()) CHECK(records[0].at(key) == value);
  }
}

TEST_CASE("with a single rank the comparison of replicas says that there is nothing to compare",
          "[train]") {
  Lab lab;
  const ExpectLog expected;
  const config::Config config =
      lab.config({"parallel.expert_model_parallel_size=1",
                  "training.train_iters=2",
                  "training.check_weight_hash_across_dp_replicas_interval=1"});
  const auto world = comm::make_self_group();
  CHECK(train::run(config, {.run_directory = lab.path("alone")}, lab.fs(), *world) ==
        ExitCode::kDone);
  CHECK(expected.contains("compares nothing"));
}

TEST_CASE("a spike of the loss is skipped and told apart", "[train]") {
  Lab lab;
  const ExpectLog expected;
  const std::vector<std::string> settings{"training.train_iters=20",
                                          "checkpoint.save_interval=0",
                                          "training.spiky_loss_sigmas=50",
                                          "fault.inject=[spike step=18 rank=1 factor=1000]"};
  CHECK_THROWS_WITH(lab.train("stops", settings),
                    Catch::Contains("training.spiky_loss_sigmas=50 standard deviations"));
  std::vector<std::string> skipping = settings;
  skipping.push_back("training.check_for_nan_in_loss_and_grad=skip");
  CHECK(lab.train("skips", skipping) == ExitCode::kDone);
  const auto steps = lab.metrics("skips", "step");
  REQUIRE(steps.size() == 20);
  for (std::size_t i = 0; i < 20; ++i) {
    CHECK(steps[i].at("skipped") == (i == 17));
    CHECK(steps[i].at("skip_reason") == (i == 17 ? "spike" : ""));
  }
}

TEST_CASE("a rollback passes over the data and the run ends, the same in every repetition",
          "[train]") {
  Lab lab;
  const ExpectLog expected;
  const std::vector<std::string> settings{"training.train_iters=14",
                                          "training.check_for_nan_in_loss_and_grad=skip",
                                          "training.rollback_after_skips=2",
                                          "checkpoint.pec.experts_per_checkpoint=2",
                                          "checkpoint.save_interval=2",
                                          "fault.inject=[nan step=8 rank=1, nan step=9 rank=3]"};
  CHECK(lab.train("run", settings) == ExitCode::kDone);
  const auto rollbacks = lab.metrics("run", "rollback");
  REQUIRE(rollbacks.size() == 1);
  CHECK(rollbacks[0].at("first_skipped") == 8);
  CHECK(rollbacks[0].at("step") == 9);
  CHECK(rollbacks[0].at("to") == 6);
  CHECK(rollbacks[0].at("passed_over") == nlohmann::json::array({48, 72}));
  const auto steps = lab.metrics("run", "step");
  // Nine steps, then from step 7 on once more.
  REQUIRE(steps.size() == 9 + 8);
  CHECK(steps[9].at("incarnation") == 1);
  CHECK(steps[9].at("step") == 7);
  CHECK(steps[9].at("consumed_samples") == 80);
  CHECK(steps.back().at("step") == 14);
  CHECK(steps.back().at("consumed_samples") == 14 * 8 + 24);
  CHECK(steps[9].at("loss") != steps[6].at("loss"));
  CHECK(lab.metrics("run", "recovery").at(0).at("step") == 6);
  CHECK(lab.manifest("run", 14).consumed_samples == 14 * 8 + 24);

  CHECK(lab.train("again", settings) == ExitCode::kDone);
  const auto repeated = lab.metrics("again", "step");
  REQUIRE(repeated.size() == steps.size());
  for (std::size_t i = 0; i < steps.size(); ++i)
    CHECK(repeated[i].at("loss") == steps[i].at("loss"));

  // A stop and a resume in between change nothing.
  std::vector<std::string> halved = settings;
  halved.push_back("training.exit_interval=11");
  CHECK(lab.train("halved", halved) == ExitCode::kStoppedOnRequest);
  CHECK(lab.train("halved", settings, checkpoint::ResumeMode::kFromFailure) == ExitCode::kDone);
  CHECK(lab.metrics("halved", "step").back().at("consumed_samples") == 14 * 8 + 24);
}

TEST_CASE("a rollback returns to the newest state before the skipped steps, in memory or not",
          "[train]") {
  Lab lab;
  const ExpectLog expected;
  REQUIRE(lab.fs().create_directories(lab.path("memory")).ok());
  CHECK(lab.train("run",
                  {"training.train_iters=12",
                   "training.check_for_nan_in_loss_and_grad=skip",
                   "training.rollback_after_skips=1",
                   "checkpoint.async_save=true",
                   "checkpoint.non_persistent_save_interval=1",
                   "checkpoint.memory_dir=" + lab.path("memory"),
                   "fault.inject=[nan step=10 rank=1]"}) == ExitCode::kDone);
  // Saves beside training may be skipped on a busy machine: which there are is in the records.
  std::int64_t newest = 0;
  for (const char* kind : {"checkpoint", "snapshot"}) {
    for (const auto& save : lab.metrics("run", kind)) {
      if (save.at("incarnation") == 0 && save.at("committed") == true)
        newest = std::max(newest, save.at("step").get<std::int64_t>());
    }
  }
  const auto rollbacks = lab.metrics("run", "rollback");
  REQUIRE(rollbacks.size() == 1);
  CHECK(rollbacks[0].at("to") == newest);
  CHECK(rollbacks[0].at("passed_over") == nlohmann::json::array({8 * newest, 80}));
  CHECK(lab.metrics("run", "recovery").at(0).at("step") == newest);
  CHECK(lab.metrics("run", "step").back().at("consumed_samples") == 12 * 8 + 80 - 8 * newest);
}

TEST_CASE(
    "a rollback over several nodes returns to snapshots that have copies, and makes them again",
    "[train]") {
  Lab lab;
  const ExpectLog expected;
  REQUIRE(lab.fs().create_directories(lab.path("memory")).ok());
  const std::vector<std::string> nodes{"a", "a", "b", "b"};
  std::vector<std::string> settings{"training.train_iters=14",
                                    "training.check_for_nan_in_loss_and_grad=skip",
                                    "training.rollback_after_skips=2",
                                    "checkpoint.async_save=true",
                                    "checkpoint.save_interval=100",
                                    "checkpoint.non_persistent_save_interval=1",
                                    "checkpoint.replication_factor=2",
                                    "checkpoint.memory_dir=" + lab.path("memory"),
                                    "fault.inject=[nan step=9 rank=1 start=1, "
                                    "nan step=10 rank=2 start=1]"};
  settings.emplace_back("training.exit_interval=3");
  CHECK(lab.train("run", settings, checkpoint::ResumeMode::kFreshOnly, nodes) ==
        ExitCode::kStoppedOnRequest);
  settings.pop_back();
  CHECK(lab.train("run", settings, checkpoint::ResumeMode::kFromFailure, nodes) == ExitCode::kDone);
  // Storage has step 3: what is newer was in memory. Snapshots are as frequent as their copies let
  // them be: which there are is in the records.
  std::map<std::int64_t, std::int64_t> newest;  // by incarnation
  for (const auto& save : lab.metrics("run", "snapshot")) {
    if (save.at("committed") != true) continue;
    std::int64_t& step = newest[save.at("incarnation").get<std::int64_t>()];
    step = std::max(step, save.at("step").get<std::int64_t>());
  }
  const auto rollbacks = lab.metrics("run", "rollback");
  REQUIRE(rollbacks.size() == 1);
  const std::int64_t to = rollbacks[0].at("to").get<std::int64_t>();
  CHECK(to == newest[1]);
  CHECK(to > 3);
  CHECK(to < 9);
  CHECK(rollbacks[0].at("passed_over") == nlohmann::json::array({8 * to, 80}));
  CHECK(newest[2] > to);  // saves with copies go on behind it
  CHECK(lab.metrics("run", "step").back().at("consumed_samples") == 14 * 8 + 80 - 8 * to);
  // Neither snapshots nor copies are left of a run that is over.
  CHECK(lab.fs().list(lab.path("memory")).value().empty());
}

TEST_CASE("rollbacks that do not help end the run with its exit code", "[train]") {
  Lab lab;
  const ExpectLog expected;
  std::vector<std::string> settings{"training.train_iters=12",
                                    "training.check_for_nan_in_loss_and_grad=skip",
                                    "training.rollback_after_skips=1",
                                    "training.max_rollbacks=2",
                                    "fault.inject=[nan step=6 rank=1 start=every]"};
  CHECK_THROWS_WITH(lab.train("run", settings), Catch::Contains("max_rollbacks=2 rollbacks"));
  const auto rollbacks = lab.metrics("run", "rollback");
  REQUIRE(rollbacks.size() == 3);
  // Each time from the same state, never with the same data.
  CHECK(rollbacks[0].at("passed_over") == nlohmann::json::array({32, 48}));
  CHECK(rollbacks[1].at("passed_over") == nlohmann::json::array({32, 64}));
  CHECK(rollbacks[2].at("passed_over") == nlohmann::json::array({32, 80}));
  // The next start does not feed them either.
  settings.back() = "fault.inject=[]";
  CHECK(lab.train("run", settings, checkpoint::ResumeMode::kFromFailure) == ExitCode::kDone);
  CHECK(lab.metrics("run", "step").back().at("consumed_samples") == 12 * 8 + 48);

  // Before the first checkpoint there is nothing to return to.
  settings.back() = "fault.inject=[nan step=2 rank=0]";
  CHECK_THROWS_WITH(lab.train("early", settings), Catch::Contains("no checkpoint before them"));
}
