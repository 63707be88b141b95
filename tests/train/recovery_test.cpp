#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <mutex>
#include <numeric>

#include <nlohmann/json.hpp>

#include <pecan/core/hash.hpp>
#include <pecan/core/philox.hpp>

#include <pecan/data/indexed_dataset.hpp>

#include <pecan/checkpoint/manifest.hpp>

#include <pecan/train/run.hpp>
#include <pecan/train/state.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"
#include "train/lab.hpp"

using namespace pecan;
using test::ExpectLog;
using test::kVocab;
using test::kWorld;
using test::Lab;

TEST_CASE("with everything saved, train, resume and train gives the bytes of training straight on",
          "[train]") {
  Lab lab;
  CHECK(lab.train("straight", {}) == ExitCode::kDone);
  const std::vector<std::string> stop{"training.exit_interval=12"};
  CHECK(lab.train("halved", stop) == ExitCode::kStoppedOnRequest);
  CHECK(lab.train("halved", {}, checkpoint::ResumeMode::kFromFailure) == ExitCode::kDone);
  const auto straight = lab.checksums("straight", 20);
  CHECK(straight.size() > 100);
  CHECK(lab.checksums("halved", 20) == straight);
  CHECK(lab.checksums("halved", 12) != straight);
  CHECK(lab.metrics("halved", "recovery").at(0).at("exact") == true);
}

TEST_CASE(
    "a metrics line that a kill has cut short does not take the next start's first record along",
    "[train]") {
  Lab lab;
  CHECK(lab.train("run", {"training.exit_interval=4"}) == ExitCode::kStoppedOnRequest);
  const std::string path = lab.path("run/metrics.jsonl");
  const std::string cut = R"({"kind":"content","incarnation":0,"step":5,"items":{"a":{"ha)";
  std::ofstream(path, std::ios::app) << cut;
  const std::vector<std::string> stop{"training.exit_interval=8",
                                      "logging.content_hash_interval=1"};
  CHECK(lab.train("run", stop, checkpoint::ResumeMode::kFromFailure) ==
        ExitCode::kStoppedOnRequest);
  std::vector<std::string> bad;
  std::vector<nlohmann::json> second;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    auto record = nlohmann::json::parse(line, nullptr, false);
    if (record.is_discarded()) {
      bad.push_back(line);
    } else if (record.value("incarnation", 0) == 1) {
      second.push_back(std::move(record));
    }
  }
  CHECK(bad == std::vector<std::string>{cut});
  REQUIRE(second.size() > 2);
  CHECK(second[0].at("kind") == "content");
  CHECK(second[0].at("recovered") == true);
  CHECK(second[1].at("kind") == "recovery");
}

TEST_CASE(
    "with partial checkpoints every item comes back as it was at the step that recovery names",
    "[train]") {
  Lab lab;
  // The oracle saves everything at the steps where the other run saves two experts a layer.
  const std::vector<std::string> partial{"checkpoint.pec.experts_per_checkpoint=2"};
  CHECK(lab.train("oracle", {"training.exit_interval=16"}) == ExitCode::kStoppedOnRequest);
  lab.train_and_fail("partial", partial, 16);

  std::map<std::int64_t, std::map<std::string, std::uint64_t>> truth;
  for (const std::int64_t step : {4, 8, 12, 16}) truth[step] = lab.checksums("oracle", step);
  const config::Config config = lab.config(partial);
  const train::TrainPlan plan = train::make_plan(config, kVocab, kWorld);
  std::vector<std::string> failures;
  std::map<std::int64_t, int> units_from;
  train::LossReport losses;
  std::mutex mutex;
  comm::run_thread_group(kWorld, [&](comm::Group& world) {
    device::Stream stream{device::cpu()};
    device::Arena workspace;
    Context ctx{device::cpu(), stream, workspace, 1};
    train::TrainState state(ctx, plan, world.rank());
    const checkpoint::Recovered recovered =
        checkpoint::recover(lab.fs(),
                            lab.path("partial"),
                            checkpoint::ResumeMode::kFromFailure,
                            "",
                            plan.catalog,
                            state.binding(),
                            ctx,
                            world);
    std::map<std::pair<UnitIndex, RoleGroup>, std::int64_t> step_of;
    for (const checkpoint::UnitRestore& restore : recovered.report.plan.restores) {
      step_of[{restore.unit, restore.group}] = restore.version.step.value;
    }
    std::vector<std::string> mine;
    for (std::size_t i = 0; i < plan.catalog.items.size(); ++i) {
      const StateItem& item = plan.catalog.items[i];
      for (const StateBlock& part : item.blocks) {
        if (std::ranges::find(part.holders, world.rank()) == part.holders.end()) continue;
        std::vector<std::byte> bytes(std::size_t(part.block.extent.num_elements()) *
                                     size_of(item.dtype));
        state.binding().copy_out(ItemIndex{std::int32_t(i)}, part.block, bytes);
        const std::int64_t step = step_of.at({item.unit, item.group});
        const auto expected = truth.at(step).find(item.path());
        if (expected == truth.at(step).end() || expected->second != xxh3(bytes)) {
          mine.push_back(fmt::format("{} as of step {}", item.path(), step));
        }
      }
    }
    const train::LossReport report = state.account_for_losses(ctx, world, config);
    const std::lock_guard lock(mutex);
    failures.insert(failures.end(), mine.begin(), mine.end());
    if (world.rank().value == 0) {
      losses = report;
      for (const auto& [key, step] : step_of) {
        if (key.first.value > 0 && key.second == RoleGroup::kWeight) ++units_from[step];
      }
    }
  });
  CHECK(failures == std::vector<std::string>{});
  // Two layers of eight experts, two a checkpoint: full at 4, then 8, 12 and 16.
  CHECK(units_from == std::map<std::int64_t, int>{{4, 4}, {8, 4}, {12, 4}, {16, 4}});

  // Lost token slots once more, from the routing tables that the manifests of the run carry.
  const checkpoint::Manifest head = lab.manifest("partial", 16);
  std::vector<std::int64_t> lost(2, 0);
  for (const checkpoint::UnitCopy& copy : head.copies) {
    const StateUnit& unit = head.units[std::size_t(copy.unit.value)];
    if (!unit.is_expert() || copy.group != RoleGroup::kWeight) continue;
    const auto slots = [&](std::int64_t step) {
      const auto extra = nlohmann::json::parse(lab.manifest("partial", step).extra_json);
      return extra.at("routed")
          .at(std::size_t(unit.layer.value))
          .at(std::size_t(unit.expert.value))
          .get<std::int64_t>();
    };
    lost[std::size_t(unit.layer.value)] += slots(16) - slots(copy.version.step.value);
  }
  CHECK(losses.lost_slots == lost);
  CHECK(lost[0] > 0);
  const double planned = 20.0 * 8 * 16 * 2;
  CHECK(losses.plt == Approx(double(lost[0] + lost[1]) / (2 * planned)));
}

TEST_CASE("the router's bias follows the load of the whole step and survives a resume", "[train]") {
  Lab lab;
  const std::vector<std::string> settings{
      "moe.moe_router_score_function=sigmoid",
      "moe.moe_router_enable_expert_bias=true",
      "moe.moe_router_bias_update_rate=0.125",
      "moe.moe_expert_capacity_factor=1.25",
  };
  const auto with = [&](const std::string& setting) {
    std::vector<std::string> all = settings;
    all.push_back(setting);
    return all;
  };
  CHECK(lab.train("straight", settings) == ExitCode::kDone);
  CHECK(lab.train("halved", with("training.exit_interval=12")) == ExitCode::kStoppedOnRequest);
  CHECK(lab.train("halved", settings, checkpoint::ResumeMode::kFromFailure) == ExitCode::kDone);
  CHECK(lab.checksums("halved", 20) == lab.checksums("straight", 20));
  std::int64_t dropped = 0;
  for (const auto& step : lab.metrics("straight", "step"))
    dropped += step.at("dropped_slots").get<std::int64_t>();
  CHECK(dropped > 0);

  // What checkpoints hold is the bias of every rank, moved by the rate in each of the twenty steps.
  CHECK(lab.train("first",
                  with("checkpoint.save_interval=1"),
                  checkpoint::ResumeMode::kFreshOnly) == ExitCode::kDone);
  const config::Config config = lab.config(with("checkpoint.save_interval=1"));
  const train::TrainPlan plan = train::make_plan(config, kVocab, kWorld);
  std::mutex mutex;
  std::vector<std::vector<float>> biases;
  comm::run_thread_group(kWorld, [&](comm::Group& world) {
    device::Stream stream{device::cpu()};
    device::Arena workspace(device::cpu(), model::plan_memory(plan.dims, 1).workspace_bytes);
    Context ctx{device::cpu(), stream, workspace, 1};
    train::TrainState state(ctx, plan, world.rank());
    device::Arena arena(device::cpu(), model::plan_memory(plan.dims, 1).activation_bytes);
    model::Activations memory = model::Activations::plan(plan.dims, arena);
    parallel::MeshGroups groups = parallel::make_groups(plan.mesh, world, plan.dims.kv_replicas());
    model::Transformer model(ctx, plan.dims, state.params(), groups, memory);
    state.bind_model(model);
    (void)checkpoint::recover(lab.fs(),
                              lab.path("first"),
                              checkpoint::ResumeMode::kFromFailure,
                              "",
                              plan.catalog,
                              state.binding(),
                              ctx,
                              world);
    const std::lock_guard lock(mutex);
    for (int layer = 0; layer < 2; ++layer) {
      const auto bias = model.moe_layer(layer).expert_bias().as<float>();
      biases.emplace_back(bias.begin(), bias.end());
    }
  });
  REQUIRE(biases.size() == 2 * kWorld);
  for (const auto& bias : biases) {
    // Twenty updates of 1/8 in f32 are exact: whole eighths, not all 0, and none beyond 20 of them.
    bool any = false;
    for (const float value : bias) {
      any = any || value != 0;
      CHECK(value * 8 == std::round(value * 8));
      CHECK(std::abs(value) <= 20.0F / 8);
    }
    CHECK(any);
  }
}

TEST_CASE("bf16: masters are in checkpoints, weights are not, and a resume is exact", "[train]") {
  Lab lab;
  const std::string bf16 = "training.bf16=true";
  CHECK(lab.train("straight", {bf16}) == ExitCode::kDone);
  CHECK(lab.train("halved", {bf16, "training.exit_interval=12"}) == ExitCode::kStoppedOnRequest);
  CHECK(lab.train("halved", {bf16}, checkpoint::ResumeMode::kFromFailure) == ExitCode::kDone);
  const auto straight = lab.checksums("straight", 20);
  CHECK(lab.checksums("halved", 20) == straight);
  for (const auto& [path, checksum] : straight) {
    CAPTURE(path);
    CHECK_FALSE(path.ends_with("/weight"));
  }
  CHECK(straight.contains("model.layers.0.mlp.experts.3.up_proj.weight/master"));

  // Another element type is another model.
  const ExpectLog expected;
  CHECK_THROWS_WITH(lab.train("halved", {}, checkpoint::ResumeMode::kFromFailure),
                    Catch::Contains("is of another model"));
}

TEST_CASE("bf16 with weights always saved: stale masters are taken from the newer weights",
          "[train]") {
  Lab lab;
  const std::vector<std::string> settings{"training.bf16=true",
                                          "checkpoint.pec.experts_per_checkpoint=2",
                                          "checkpoint.pec.always_saved=[weight]"};
  lab.train_and_fail("run", settings, 16);
  // The same updates, with everything saved at each step: what the weights were.
  std::vector<std::string> all = settings;
  all[1] = "checkpoint.pec.experts_per_checkpoint=8";
  lab.train_and_fail("oracle", all, 16);
  const auto truth = lab.checksums("oracle", 16);

  const config::Config config = lab.config(settings);
  const train::TrainPlan plan = train::make_plan(config, kVocab, kWorld);
  std::mutex mutex;
  int rounded = 0, exact = 0, masters_as_weights = 0;
  train::LossReport losses;
  train::WeightRestore weights;
  comm::run_thread_group(kWorld, [&](comm::Group& world) {
    device::Stream stream{device::cpu()};
    device::Arena workspace;
    Context ctx{device::cpu(), stream, workspace, 1};
    train::TrainState state(ctx, plan, world.rank());
    const checkpoint::Recovered recovered =
        checkpoint::recover(lab.fs(),
                            lab.path("run"),
                            checkpoint::ResumeMode::kFromFailure,
                            "",
                            plan.catalog,
                            state.binding(),
                            ctx,
                            world);
    const train::WeightRestore restored = state.restore_weights(ctx, recovered.report.plan);
    const train::LossReport report = state.account_for_losses(ctx, world, config);
    const std::lock_guard lock(mutex);
    losses = report;
    weights = restored;
    for (const parallel::Param& param : state.params().params()) {
      if (!param.spec.is_expert()) continue;
      const auto bytes = [](const device::ParamStorage& storage) {
        return xxh3(std::span<const std::byte>(storage.memory(), storage.num_bytes()));
      };
      // Every expert's weight is that of step 16, whatever became of its master.
      CAPTURE(param.spec.name);
      CHECK(bytes(param.weight) == truth.at(param.spec.name + "/weight"));
      const bool same = bytes(param.master) == truth.at(param.spec.name + "/master");
      (same ? exact : rounded) += 1;
      const auto master = param.master.row_major().as<float>();
      const auto weight = param.weight.row_major().as<BFloat16>();
      masters_as_weights +=
          std::equal(master.begin(), master.end(), weight.begin(), [](float wide, BFloat16 narrow) {
            return wide == float(narrow);
          });
    }
  });
  // Three matrices an expert, two layers of eight, on two replicas; two experts a layer are
  // current.
  CHECK(exact == 3 * 2 * 2 * 2);
  CHECK(rounded == 3 * 2 * 6 * 2);
  CHECK(masters_as_weights == rounded);
  CHECK(weights.rounded_units == 2 * 6);
  CHECK(losses.plt > 0);
  CHECK(losses.plt_weights == 0);

  // Weights in checkpoints are a choice of each start, not of the model.
  CHECK(lab.train("run",
                  {"training.bf16=true",
                   "checkpoint.pec.experts_per_checkpoint=2",
                   "training.exit_interval=18"},
                  checkpoint::ResumeMode::kFromFailure) == ExitCode::kStoppedOnRequest);
  CHECK(lab.metrics("run", "recovery").back().at("rounded_units") == 0);
  CHECK(lab.train("run",
                  {"training.bf16=true",
                   "checkpoint.pec.experts_per_checkpoint=2",
                   "checkpoint.pec.always_saved=[weight]"},
                  checkpoint::ResumeMode::kFromFailure) == ExitCode::kDone);
  CHECK(lab.metrics("run", "step").back().at("step") == 20);
}

TEST_CASE("routed slots are absorbed or lost, over several failures", "[train]") {
  Lab lab;
  const std::vector<std::string> partial{"checkpoint.pec.experts_per_checkpoint=2"};
  lab.train_and_fail("run", partial, 8);
  lab.train_and_fail("run", partial, 12, checkpoint::ResumeMode::kFromFailure);
  CHECK(lab.train("run",
                  {"checkpoint.pec.experts_per_checkpoint=2"},
                  checkpoint::ResumeMode::kFromFailure) == ExitCode::kDone);
  const auto recoveries = lab.metrics("run", "recovery");
  REQUIRE(recoveries.size() == 2);
  // Two of eight experts a layer are of step 8, two of them of step 4; at 12 the oldest are still.
  CHECK(recoveries[0].at("exact") == false);
  CHECK(recoveries[0].at("older_experts") == 12);
  CHECK(recoveries[0].at("most_steps_older") == 4);
  CHECK(recoveries[1].at("most_steps_older") == 8);
  // What the next start's manifests say of it.
  const auto extra = nlohmann::json::parse(lab.manifest("run", 12).extra_json);
  CHECK(extra.at("recovery").at("step") == 8);
  CHECK(extra.at("recovery").at("older_experts") == 12);
  CHECK(extra.at("recovery").at("plt_now") == recoveries[0].at("plt_now"));
  CHECK(recoveries[0].at("plt").get<double>() > 0);
  CHECK(recoveries[1].at("plt").get<double>() > recoveries[0].at("plt").get<double>());
  double lost = 0;
  for (const auto& recovery : recoveries) {
    for (const auto& layer : recovery.at("lost_slots")) lost += layer.get<double>();
  }
  const double planned = 20.0 * 8 * 16 * 2;
  CHECK(recoveries[1].at("plt").get<double>() == Approx(lost / (2 * planned)));
  const auto steps = lab.metrics("run", "step");
  CHECK(steps.back().at("step") == 20);
  CHECK(steps.back().at("consumed_samples") == 160);
}

TEST_CASE("divergence stops the run with its exit code, or is skipped and counted", "[train]") {
  Lab lab;
  const ExpectLog expected;
  const std::vector<std::string> wild{
      "optimizer.lr=1e30", "checkpoint.save_interval=0", "training.train_iters=4"};
  try {
    (void)lab.train("stops", wild);
    FAIL("a diverged run went on");
  } catch (const Error& error) {
    CHECK(error.exit_code() == ExitCode::kDivergence);
    CHECK_THAT(error.what(), Catch::Contains("check_for_nan_in_loss_and_grad"));
  }
  std::vector<std::string> skipping = wild;
  skipping.push_back("training.check_for_nan_in_loss_and_grad=skip");
  CHECK(lab.train("skips", skipping) == ExitCode::kDone);
  const auto steps = lab.metrics("skips", "step");
  REQUIRE(steps.size() == 4);
  CHECK(steps.back().at("skipped") == true);
  CHECK(steps.back().at("step") == 4);
}
