#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include <pecan/core/error.hpp>

#include <pecan/checkpoint/dynamic_k.hpp>
#include <pecan/checkpoint/estimate.hpp>
#include <pecan/checkpoint/simulate.hpp>

#include "checkpoint/job.hpp"
#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::checkpoint;
using Catch::Matchers::Contains;

namespace {

/// Steps of a second, saves to storage that cost nothing.
SimulationInput plain(std::int64_t steps, std::int64_t interval) {
  SimulationInput in;
  in.steps = steps;
  in.step_s = 1;
  in.save_interval = interval;
  in.trials = 2;
  return in;
}

SimulationInput with_experts(SimulationInput in, int num_experts, int experts, int layers = 4) {
  in.num_layers = layers;
  in.num_experts = num_experts;
  in.experts = in.experts_in_snapshot = experts;
  return in;
}

bool near(const Spread& spread, double value, double relative) {
  return value >= spread.low - relative * std::abs(value) &&
         value <= spread.high + relative * std::abs(value);
}

/// Of recoveries, the share that went to storage.
double from_storage(const SimulationResult& result) {
  const double storage = result.recovered_storage.mean;
  return storage / (storage + result.recovered_memory.mean);
}

}  // namespace

TEST_CASE("without failures saves cost what their stall says", "[simulate]") {
  SimulationInput in = plain(1000, 10);
  in.full = {.snapshot = 3, .persist = 1};
  // Saves at 10, 20, .. 990, each of which the next step waits two of three seconds for.
  const SimulationResult result = simulate(in);
  CHECK(result.ettr.mean == Approx(1000.0 / (1000 + 99 * 2)));
  CHECK(result.stall_s.mean == Approx(99 * 2));
  CHECK(result.repeated_s.mean == Approx(0).margin(1e-9));
  CHECK(result.failures.mean == 0);
  CHECK(result.plt.mean == 0);
  CHECK(result.unfinished == 0);
  CHECK(expected_ettr(in) == Approx(1 / (1 + 2.0 / 10)));
  CHECK(result.ettr.mean == Approx(expected_ettr(in)).epsilon(0.002));

  in.stall_s = 0.5;
  CHECK(simulate(in).ettr.mean == Approx(1000.0 / (1000 + 99 * 0.5)));
  in.async_save = false;  // training waits for all of it
  in.commit_s = 0.25;
  CHECK(simulate(in).ettr.mean == Approx(1000.0 / (1000 + 99 * 4.25)));
  CHECK(expected_ettr(in) == Approx(1 / (1 + 4.25 / 10)));
  in.startup_s = 100;
  CHECK(simulate(in).wall_s.mean == Approx(1100 + 99 * 4.25));
}

TEST_CASE("frequent failures cost what renewal theory says", "[simulate]") {
  // Segments of tau seconds, each begun anew when it fails, and downtime that fails alike: the
  // expected time of one is M e^(D/M) (e^(tau/M) - 1).
  SimulationInput in = plain(20000, 1000);
  in.mtbf_s = 3000;
  in.detect_s = 50;
  in.restart_s = 100;
  in.restore_storage_s = 50;
  in.trials = 600;
  const double m = in.mtbf_s, down = 200, tau = 1000;
  const double expected = 20 * m * std::exp(down / m) * (std::exp(tau / m) - 1);
  const SimulationResult result = simulate(in);
  CHECK(near(result.wall_s, expected, 0.002));
  CHECK(result.wall_s.high - result.wall_s.low < 0.02 * expected);
  CHECK(result.failures.mean == Approx(expected / m).epsilon(0.02));
  CHECK(result.wall_s.mean == Approx(20000 + result.downtime_s.mean + result.repeated_s.mean));
}

TEST_CASE("rare failures cost what the closed forms say", "[simulate]") {
  SimulationInput in = plain(20000, 100);
  in.full.snapshot = 3;
  in.mtbf_s = 5000;
  in.restart_s = 60;
  in.trials = 400;
  const SimulationResult result = simulate(in);
  const double overhead_s =
      total_overhead_s(save_overhead_s(3, 1), 100, 20000, 1 / in.mtbf_s, in.restart_s);
  CHECK(near(result.ettr, 1 / (1 + overhead_s / 20000), 0.002));
  CHECK(near(result.ettr, expected_ettr(in), 0.002));
  CHECK(result.ettr.high - result.ettr.low < 0.004);
  CHECK(result.lost_steps.mean / result.failures.mean == Approx(50).epsilon(0.06));
  CHECK(result.downtime_s.mean / result.failures.mean == Approx(60).epsilon(0.02));
  // Saving at the optimal interval is better than at a third and at three times of it.
  const auto ettr_at = [&](double steps) {
    in.save_interval = std::llround(steps);
    return simulate(in).ettr.mean;
  };
  const double best = optimal_interval_s(2, 1 / in.mtbf_s);
  CHECK(ettr_at(best) > ettr_at(best / 3));
  CHECK(ettr_at(best) > ettr_at(best * 3));
}

TEST_CASE("one failure loses the published proportion of tokens", "[simulate]") {
  // N = 8, a checkpoint every 32 of 1280 iterations, a failure behind the one of 640.
  for (const auto& [experts, plt] : {std::pair{1, 0.0875}, {2, 0.0375}, {4, 0.0125}, {8, 0.0}}) {
    SimulationInput in = with_experts(plain(1280, 32), 8, experts);
    in.failures = {{642.5}};
    const SimulationResult result = simulate(in);
    CHECK(result.plt.mean == Approx(plt).margin(1e-12));
    CHECK(result.plt.mean == Approx(expected_plt(8, experts, 32, 1280)).margin(1e-12));
    CHECK(result.lost_steps.mean == 2);
    CHECK(result.recovered_storage.mean == 1);
  }
}

TEST_CASE("failures at random lose by the closed form, one after the other", "[simulate]") {
  SimulationInput in = with_experts(plain(20000, 32), 8, 2);
  in.mtbf_s = 2000;
  in.trials = 300;
  const SimulationResult result = simulate(in);
  CHECK(result.plt.mean ==
        Approx(result.failures.mean * expected_plt(8, 2, 32, 20000)).epsilon(0.04));
  // Where all failures strike before anything was trained since the first, they lose it once.
  in.trials = 2;
  in.steps = 1280;
  in.mtbf_s = 0;
  in.failures = {{642.5}, {642.6}, {642.7}};
  CHECK(simulate(in).plt.mean == Approx(0.0375));
  in.failures = {{642.5}, {1000}};
  CHECK(simulate(in).plt.mean == Approx(0.075));
}

TEST_CASE("a lost node's experts come from storage, the others' from memory", "[simulate]") {
  // MoC figure 8: experts 0 and 1 on node 0, 2 and 3 on node 1. Storage has all of step 10, expert
  // 0 of 20, 2 of 30 and 1 of 40; memory all of 40.
  SimulationInput in = with_experts(plain(100, 10), 4, 1, 1);
  in.ep_size = 2;
  in.memory_interval = 10;
  in.experts_in_snapshot = 4;
  in.nodes = 2;
  in.node_loss_share = 1;
  in.failures = {{44.5}};
  in.trials = 200;
  const SimulationResult result = simulate(in);
  CHECK(result.plt.p2_5 == Approx((20 + 0) / 4.0 / 100));    // node 0 is lost
  CHECK(result.plt.p97_5 == Approx((10 + 30) / 4.0 / 100));  // node 1 is
  CHECK(result.plt.mean == Approx(0.075).epsilon(0.1));
  CHECK(result.recovered_storage.mean == 1);
  in.node_loss_share = 0;  // a process dies: memory has all
  CHECK(simulate(in).plt.mean == 0);
  in.recovery = RecoveryMode::kStorageOnly;
  CHECK(simulate(in).plt.mean == Approx((20 + 0 + 10 + 30) / 4.0 / 100));
}

TEST_CASE("replicas keep what memory held while fewer nodes are lost", "[simulate]") {
  SimulationInput in = with_experts(plain(4000, 100), 8, 2);
  in.memory_interval = 5;
  in.experts_in_snapshot = 8;
  in.nodes = 4;
  in.node_loss_share = 1;
  in.mtbf_s = 500;
  in.trials = 100;
  const SimulationResult alone = simulate(in);
  CHECK(from_storage(alone) > 0.9);
  CHECK(alone.plt.mean > 0);
  in.replicas = 2;
  const SimulationResult doubled = simulate(in);
  CHECK(doubled.recovered_storage.mean < 0.05 * alone.recovered_storage.mean);
  CHECK(doubled.lost_steps.mean < 0.2 * alone.lost_steps.mean);
  CHECK(doubled.ettr.mean > alone.ettr.mean);
  in.steps = 1100;
  in.failures = {{1018.5}};
  in.mtbf_s = 0;
  CHECK(simulate(in).plt.mean == 0);
  CHECK(simulate(in).recovered_memory.mean == 1);
  CHECK(simulate(in).lost_steps.mean == 3);
  // Of the six pairs of four nodes, the four neighbours hold some node's snapshot alone.
  in.nodes_at_once = 2;
  in.trials = 1000;
  CHECK(from_storage(simulate(in)) == Approx(4.0 / 6).epsilon(0.06));
  in.replicas = 3;
  CHECK(from_storage(simulate(in)) == 0);
  // Two that fail together at a given time are neighbours; a given process takes no memory.
  in.replicas = 2;
  in.failures[0].nodes = 2;
  CHECK(from_storage(simulate(in)) == 1);
  in.failures[0].nodes = 0;
  CHECK(from_storage(simulate(in)) == 0);
  in.failures[0].nodes.reset();
  // A replica that was not sent yet is none.
  in.trials = 20;
  in.nodes_at_once = 1;
  in.replicas = 2;
  in.replicate_s = 4;
  CHECK(from_storage(simulate(in)) == 0);  // memory of step 1015 is not doubled, but of 1010
  CHECK(simulate(in).lost_steps.mean == 8);
  // While copies are under way no other snapshot begins: every second one is left out.
  in.nodes_at_once = 1;
  in.node_loss_share = 0;
  in.replicate_s = 7;
  CHECK(simulate(in).skipped.mean > 0.45 * 1100 / 5);
}

TEST_CASE("a checkpoint counts once it is persisted, a snapshot once it is copied", "[simulate]") {
  SimulationInput in = plain(100, 10);
  in.full = {.snapshot = 0.5, .persist = 6};
  in.commit_s = 0.25;
  const auto lost = [&](double at) {
    in.failures = {{at}};
    const SimulationResult result = simulate(in);
    CHECK(result.recovered_storage.mean + result.recovered_memory.mean + result.from_scratch.mean ==
          1);
    return result.lost_steps.mean;
  };
  // Written at 16.5, which the vote at 17 learns, and committed a quarter later.
  CHECK(lost(9.5) == 9);
  CHECK(lost(17.2) == 17);
  CHECK(lost(17.3) == 7);
  CHECK(lost(27.2) == 17);
  // Partial snapshots in memory stand on the first checkpoint in storage, and fill its gaps.
  in.memory_interval = 2;
  CHECK(lost(19.3) == 1);
  CHECK(lost(18.4) == 2);
  CHECK(lost(18.6) == 0);
  in.recovery = RecoveryMode::kStorageOnly;
  CHECK(lost(19.3) == 9);
}

TEST_CASE("saves that come too soon are skipped as the checkpointer skips them", "[simulate]") {
  SimulationInput in = plain(1000, 10);
  in.full.persist = 15;
  // Of 10, 20, .. 990 every second finds the one before it being written; 990 ends too late.
  const SimulationResult result = simulate(in);
  CHECK(result.skipped.mean == 49);
  CHECK(result.committed.mean == 49);
}

TEST_CASE("a checkpoint that a failure damages gives way to the one before", "[simulate]") {
  SimulationInput in = with_experts(plain(200, 10), 4, 1);
  in.checkpoints_kept = 3;
  const auto after = [&](int checkpoints) {
    in.failures = {{.at_s = 64.5, .nodes = 0, .checkpoints = checkpoints}};
    return simulate(in);
  };
  CHECK(after(0).lost_steps.mean == 4);
  CHECK(after(1).lost_steps.mean == 14);
  CHECK(after(2).lost_steps.mean == 24);
  CHECK(after(3).lost_steps.mean == 64);
  CHECK(after(2).recovered_storage.mean == 1);
  CHECK(after(3).from_scratch.mean == 1);
  // Of step 50 storage has the expert that it was the turn of at 50, 40, 30 and 20.
  CHECK(after(1).plt.mean == Approx((0 + 10 + 20 + 30) / 4.0 / 200));
  // Memory has the newest step all the same.
  in.memory_interval = 2;
  CHECK(after(2).lost_steps.mean == 0);
  CHECK(after(2).recovered_memory.mean == 1);
  // Damaged in the first recovery already, and not once more in the second.
  in.memory_interval = 0;
  in.failures = {{64.2, 0, 1}, {70.5, 0, 0}};
  CHECK(simulate(in).lost_steps.mean == 14 + 6);
}

TEST_CASE("a stop on request loses nothing but its time", "[simulate]") {
  SimulationInput in = with_experts(plain(100, 30), 4, 1);
  in.full = {.snapshot = 0.5, .persist = 2};
  in.stall_s = 0;
  in.commit_s = 0.25;
  in.restart_s = 10;
  in.restore_storage_s = 3;
  in.detect_s = 100;  // of failures alone
  in.stops_s = {44.5};
  const SimulationResult once = simulate(in);
  CHECK(once.wall_s.mean == Approx(100 + 2.75 + 13));
  CHECK(once.downtime_s.mean == Approx(2.75 + 13));
  CHECK(once.lost_steps.mean == 0);
  CHECK(once.plt.mean == 0);
  CHECK(once.failures.mean == 0);
  CHECK(once.recovered_storage.mean == 0);
  CHECK(once.committed.mean == 4);  // 30, 60, 90 and that of the stop
  // The failure after it goes back to it, with all experts; without it to step 30.
  in.failures = {{44.5 + 0.5 + 2.75 + 13 + 5.5}};
  CHECK(simulate(in).lost_steps.mean == 5);
  CHECK(simulate(in).plt.mean == 0);
  in.stops_s.clear();
  in.failures = {{50.5}};
  CHECK(simulate(in).lost_steps.mean == 20);
  // A failure before all is saved makes the stop one that came to nothing.
  in.stops_s = {44.5};
  in.failures = {{46.0}};
  CHECK(simulate(in).lost_steps.mean == 15);
  CHECK(simulate(in).failures.mean == 1);
  in.failures = {{44.8}};
  CHECK(simulate(in).lost_steps.mean == 14);
  // What was being written when it came is whole before.
  in.failures.clear();
  in.stops_s = {30.5};
  in.partial = in.full;
  CHECK(simulate(in).committed.mean == 4);
  CHECK(simulate(in).wall_s.mean == Approx(100 + 1.75 + 2.75 + 13));
}

TEST_CASE("failures strike restarts and recoveries too", "[simulate]") {
  SimulationInput in = plain(200, 10);
  in.detect_s = 5;
  in.restart_s = 15;
  in.restore_storage_s = 10;
  in.failures = {{100.5}};
  CHECK(simulate(in).downtime_s.mean == Approx(30));
  in.failures = {{100.5}, {105.5}};  // while it restarts
  CHECK(simulate(in).downtime_s.mean == Approx(5 + 30));
  in.failures = {{100.5}, {125.5}};  // while it loads
  const SimulationResult result = simulate(in);
  CHECK(result.downtime_s.mean == Approx(25 + 30));
  CHECK(result.failures.mean == 2);
  CHECK(result.recovered_storage.mean == 1);
  CHECK(result.lost_steps.mean == 10);  // 100 was not yet committed

  // What a second failure takes while the first is mended is not there for the recovery.
  in = with_experts(plain(200, 50), 4, 4);
  in.memory_interval = 10;
  in.nodes = 2;
  in.replicas = 2;
  in.restart_s = 20;
  in.node_loss_share = 1;
  in.trials = 400;
  in.failures = {{122.5}, {130.0}};
  CHECK(from_storage(simulate(in)) == Approx(0.5).epsilon(0.1));  // the same node twice, or both
}

TEST_CASE("memory and storage are read in their own time", "[simulate]") {
  SimulationInput in = with_experts(plain(200, 50), 4, 2);
  in.memory_interval = 10;
  in.experts_in_snapshot = 4;
  in.restore_memory_s = 3;
  in.restore_storage_s = 7;
  in.failures = {{122.5}};
  CHECK(simulate(in).downtime_s.mean == Approx(3));
  in.recovery = RecoveryMode::kStorageOnly;
  CHECK(simulate(in).downtime_s.mean == Approx(7));
}

TEST_CASE("more failures, longer outages and fewer experts never help", "[simulate]") {
  SimulationInput base = with_experts(plain(5000, 50), 8, 2);
  base.mtbf_s = 1000;
  base.restart_s = 20;
  base.trials = 200;
  const auto figure = [&](const std::function<void(SimulationInput&)>& change) {
    SimulationInput in = base;
    change(in);
    return simulate(in);
  };
  const SimulationResult as_is = simulate(base);
  const auto more = figure([](auto& in) { in.mtbf_s = 500; });
  CHECK(more.ettr.mean < as_is.ettr.mean);
  CHECK(more.plt.mean > as_is.plt.mean);
  CHECK(figure([](auto& in) { in.restart_s = 60; }).ettr.mean < as_is.ettr.mean);
  CHECK(figure([](auto& in) { in.save_interval = 200; }).lost_steps.mean > as_is.lost_steps.mean);
  CHECK(figure([](auto& in) { in.experts = in.experts_in_snapshot = 1; }).plt.mean >
        as_is.plt.mean);
  CHECK(figure([](auto& in) { in.experts = in.experts_in_snapshot = 8; }).plt.mean == 0);
  const auto memory = figure([](auto& in) { in.memory_interval = 5; });
  CHECK(memory.lost_steps.mean < as_is.lost_steps.mean);
  CHECK(figure([](auto& in) { in.full.persist = in.partial.persist = 30; }).lost_steps.mean >
        as_is.lost_steps.mean);
  // Dynamic-K spends its budget and ends at more experts.
  const auto dynamic = figure([](auto& in) {
    in.dynamic_k = true;
    in.plt_budget = 0.0375;
  });
  CHECK(as_is.last_experts.mean == 2);
  CHECK(dynamic.last_experts.mean > 3);
  CHECK(dynamic.plt.mean < as_is.plt.mean);
}

TEST_CASE("a seed decides everything", "[simulate]") {
  SimulationInput in = with_experts(plain(2000, 50), 8, 2);
  in.mtbf_s = 300;
  in.nodes = 4;
  in.node_loss_share = 0.5;
  in.trials = 40;
  const SimulationResult first = simulate(in);
  const SimulationResult again = simulate(in);
  CHECK(first.ettr.mean == again.ettr.mean);
  CHECK(first.plt.p97_5 == again.plt.p97_5);
  in.seed = 2;
  CHECK(simulate(in).ettr.mean != first.ettr.mean);
}

TEST_CASE("a run that never gets on is given up and counted", "[simulate]") {
  SimulationInput in = plain(1000, 500);
  in.mtbf_s = 5;
  const SimulationResult result = simulate(in);
  CHECK(result.unfinished == 2);
  CHECK(result.ettr.mean < 1 / kHopeless);
}

TEST_CASE("MoC's inequalities of its simulation hold by its constants", "[simulate]") {
  // Hidden 2048, 24 layers, gated FFN 4x, top-1, an expert a GPU and layer; tokens of a GPU and
  // step are not published: any of these will do.
  const double expert = 3.0 * 2048 * 8192, attention = 4.0 * 2048 * 2048;
  const double non_expert = 24 * (attention + 2 * 2048) + 2048 + 2 * 32000.0 * 2048;
  const double active = 24 * (attention + expert) + 32000.0 * 2048;
  struct Gpu {
    double flops, snapshot;
  };
  const Gpu a800{0.2 * 312e12, 1e9}, h100{0.2 * 989e12, 2e9};
  const auto step_s = [&](const Gpu& gpu, double tokens) {
    return 6 * active * tokens / gpu.flops;
  };
  const auto base_s = [&](const Gpu& gpu, double gpus) {
    return (2 * non_expert + 12 * non_expert / gpus + 14 * 24 * expert) / gpu.snapshot;
  };
  const auto moc_s = [&](const Gpu& gpu, std::int64_t gpus) {
    const StateParameters all{gpus * 24 * std::llround(expert), std::llround(non_expert)};
    return double(papers_bytes(all, kPapersBytes, int(gpus / 8), int(gpus))) / double(gpus) /
           gpu.snapshot;
  };
  for (const double tokens : {21'400.0, 32'768.0, 111'000.0}) {
    for (const std::int64_t gpus : {16, 32, 64, 128, 256, 512, 1024}) {
      CAPTURE(tokens, gpus);
      if (gpus < 1024) CHECK(save_overhead_s(base_s(a800, double(gpus)), step_s(a800, tokens)) > 0);
      CHECK(save_overhead_s(base_s(h100, double(gpus)), step_s(h100, tokens)) > 0);
      if (gpus <= 64) continue;
      CHECK(save_overhead_s(moc_s(a800, gpus), step_s(a800, tokens)) == 0);
      CHECK(save_overhead_s(moc_s(h100, gpus), step_s(h100, tokens)) == 0);
    }
  }
  CHECK(save_overhead_s(moc_s(a800, 128), step_s(a800, 13'400)) > 0);
  CHECK(save_overhead_s(base_s(a800, 512), step_s(a800, 112'000)) == 0);
  // What it means for a training.
  SimulationInput in = plain(500, 10);
  in.step_s = step_s(a800, 32'768);
  in.mtbf_s = 7200;
  in.trials = 50;
  in.full.snapshot = base_s(a800, 64);
  const double base = simulate(in).ettr.mean;
  in.full.snapshot = moc_s(a800, 64);
  CHECK(simulate(in).stall_s.mean == 0);
  CHECK(simulate(in).ettr.mean > base + 0.1);
}

TEST_CASE("experts lie on the nodes of those that write them", "[simulate]") {
  // Ranks 0 and 2 hold experts 0 and 1, ranks 1 and 3 experts 2 and 3; whole experts are dealt in
  // turn over their replicas.
  const StateCatalog catalog = test::make_catalog({2, 4, 2, 2});
  config::CheckpointConfig config;
  config.save_interval.steps = 1;
  config.pec.sharding = config::WriteSharding::kRank0;
  using Nodes = std::vector<std::vector<int>>;
  const Nodes lowest{{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}};
  CHECK(expert_nodes(catalog, config, 1) == lowest);
  CHECK(expert_nodes(catalog, config, 2) == lowest);  // ranks 0 and 1 are both on node 0
  const Nodes by_rank{{0}, {0}, {1}, {1}, {0}, {0}, {1}, {1}};
  CHECK(expert_nodes(catalog, config, 4) == by_rank);
  config.pec.sharding = config::WriteSharding::kEqual;
  Nodes dealt = expert_nodes(catalog, config, 2);
  CHECK(std::ranges::count(dealt, std::vector{0}) == 4);
  CHECK(std::ranges::count(dealt, std::vector{1}) == 4);
  CHECK_THROWS_WITH(expert_nodes(catalog, config, 3), Contains("4 processes do not divide over 3"));
}

TEST_CASE("input that makes no sense is refused with what would be taken", "[simulate]") {
  const auto refusal = [](const std::function<void(SimulationInput&)>& change) {
    SimulationInput in = with_experts(plain(100, 10), 8, 2);
    in.nodes = 2;
    in.mtbf_s = 100;
    change(in);
    try {
      static_cast<void>(simulate(in));
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  CHECK(refusal([](auto&) {}) == "accepted");
  CHECK_THAT(refusal([](auto& in) { in.steps = 0; }), Contains("steps=0"));
  CHECK_THAT(refusal([](auto& in) { in.step_s = 0; }), Contains("seconds above 0"));
  CHECK_THAT(refusal([](auto& in) { in.full.persist = -1; }), Contains("full_persist_s=-1"));
  CHECK_THAT(refusal([](auto& in) { in.restart_s = NAN; }), Contains("restart_s=nan"));
  CHECK_THAT(refusal([](auto& in) { in.experts = 9; }), Contains("use 1 to 8"));
  CHECK_THAT(refusal([](auto& in) { in.experts_in_snapshot = 1; }), Contains("at least those"));
  CHECK_THAT(refusal([](auto& in) { in.ep_size = 3; }), Contains("do not divide over 3"));
  CHECK_THAT(refusal([](auto& in) {
               in.save_interval = 0;
               in.memory_interval = 5;
             }),
             Contains("stands on a full checkpoint"));
  CHECK_THAT(refusal([](auto& in) { in.replicas = 3; }), Contains("do not fit on 2 nodes"));
  CHECK_THAT(refusal([](auto& in) { in.nodes_at_once = 3; }), Contains("use 1 to 2"));
  CHECK_THAT(refusal([](auto& in) { in.failures = {{1, 3}}; }), Contains("3 of 2 nodes"));
  CHECK_THAT(refusal([](auto& in) { in.failures = {{1, 0, -1}}; }), Contains("-1 checkpoints"));
  CHECK_THAT(refusal([](auto& in) { in.stops_s = {2, 1}; }), Contains("stops do not ascend"));
  CHECK_THAT(refusal([](auto& in) { in.stops_s = {-1}; }), Contains("a stop's time=-1"));
  CHECK_THAT(refusal([](auto& in) { in.checkpoints_kept = 0; }), Contains("at least 1"));
  CHECK_THAT(refusal([](auto& in) {
               in.save_interval = 0;
               in.stops_s = {1};
             }),
             Contains("saves nothing"));
  CHECK_THAT(refusal([](auto& in) { in.node_loss_share = 1.5; }), Contains("is no share"));
  CHECK_THAT(refusal([](auto& in) { in.trials = 1; }), Contains("at least 2"));
  CHECK_THAT(refusal([](auto& in) { in.failures = {{2}, {1}}; }), Contains("in order"));
  CHECK_THAT(refusal([](auto& in) {
               in.steps = 100'000'000;
               in.trials = 1000;
             }),
             Contains("use fewer trials"));
}
