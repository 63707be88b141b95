#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include <pecan/core/error.hpp>

#include <pecan/train/simulation.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

using namespace pecan;
using namespace pecan::train;
using Catch::Matchers::Contains;

namespace {

config::Config small_config(const std::vector<std::string>& settings = {}) {
  return config::parse_config(R"(
model: {num_layers: 2, hidden_size: 16, num_attention_heads: 2, make_vocab_size_divisible_by: 8}
moe: {num_experts: 4, moe_ffn_hidden_size: 8, moe_layer_freq: [0, 1]}
training: {seq_length: 8, micro_batch_size: 2, global_batch_size: 16, train_iters: 400}
parallel: {expert_model_parallel_size: 2}
checkpoint: {save_interval: 20, pec: {experts_per_checkpoint: 1}}
)",
                              settings);
}

SimulationRequest request_of(double mtbf_s) {
  SimulationRequest request;
  request.given.step = 0.5;
  request.mtbf_s = mtbf_s;
  request.nodes = 2;
  request.trials = 20;
  return request;
}

Simulation simulate_small(const SimulationRequest& request,
                          const std::vector<std::string>& settings = {},
                          const checkpoint::RunFigures& speeds = {}) {
  const config::Config config = small_config(settings);
  return simulate_run(config, make_plan(config, 50, 4), request, speeds);
}

std::string source_of(const Simulation& simulation, const std::string& name) {
  for (const SourcedFigure& figure : simulation.figures) {
    if (figure.name == name) return fmt::format("{:g} {}", figure.value, figure.source);
  }
  return "none";
}

/// A run directory with these lines behind the head of its metrics.
class RunWithMetrics {
 public:
  explicit RunWithMetrics(const std::string& lines, const std::string& head = R"({"schema": 1})") {
    std::ofstream(folder_.path() + "/metrics.jsonl") << head << "\n" << lines;
  }
  [[nodiscard]] const std::string& path() const { return folder_.path(); }

 private:
  test::TempDir folder_;
};

constexpr const char* kLines =
    R"({"kind": "step", "incarnation": 0, "step": 1, "step_ms": 900, "ckpt_stall_ms": 0}
{"kind": "step", "incarnation": 0, "step": 2, "step_ms": 110, "ckpt_stall_ms": 10}
{"kind": "step", "incarnation": 0, "step": 3, "step_ms": 120, "ckpt_stall_ms": 0}
{"kind": "checkpoint", "incarnation": 0, "step": 2, "committed": true, "full": true, "failure": "", "snapshot_ms": 40, "replicate_ms": 16, "persist_ms": 200, "commit_ms": 4}
{"kind": "checkpoint", "incarnation": 0, "step": 3, "committed": false, "full": false, "failure": "skipped: busy", "snapshot_ms": 0, "persist_ms": 0, "commit_ms": 0}
{"kind": "checkpoint", "incarnation": 0, "step": 4, "committed": true, "full": false, "failure": "", "snapshot_ms": 10, "persist_ms": 60, "commit_ms": 6}
{"kind": "recovery", "incarnation": 1, "step": 4, "scan_ms": 5, "load_ms": 25}
{"kind": "step", "incarnation": 1, "step": 5, "step_ms": 700, "ckpt_stall_ms": 0}
{"kind": "step", "incarnation": 1, "step": 6, "step_ms": 105, "ckpt_stall_ms": 5}
{"kind": "valid", "step": 6}
{"kind": "step", "incarnation": 1, "step": 7, "step_)";

}  // namespace

TEST_CASE("a run's metrics give the figures of a simulation", "[train]") {
  const RunWithMetrics run(kLines);
  const RunSeconds seconds = measure_run(run.path());
  CHECK(seconds.step == 0.1);  // of 100, 120 and 100: first steps, stalls and half a line left out
  CHECK(*seconds.full_snapshot == Approx(0.040));
  CHECK(*seconds.full_persist == Approx(0.200));
  CHECK(*seconds.snapshot == Approx(0.010));
  CHECK(*seconds.persist == Approx(0.060));
  CHECK(*seconds.commit == Approx(0.005));
  CHECK(*seconds.replicate == Approx(0.016));
  CHECK(*seconds.stall == Approx(0.0075));  // 15 ms over two saves
  CHECK(*seconds.restore == Approx(0.030));
  CHECK_FALSE(seconds.restart.has_value());

  CHECK_THROWS_WITH(measure_run("/nowhere"), Contains("/nowhere/metrics.jsonl cannot be read"));
  CHECK_THROWS_WITH(measure_run(RunWithMetrics("", R"({"schema": 99})").path()),
                    Contains("another version"));
  CHECK_THROWS_WITH(measure_run(RunWithMetrics("").path()), Contains("fewer than two steps"));
  CHECK_THROWS_WITH(measure_run(RunWithMetrics(R"({"kind": "step", "step_ms": "soon"})"
                                               "\n"
                                               R"({"kind": "step", "step_ms": "soon"})"
                                               "\n")
                                    .path()),
                    Contains("docs/formats/metrics.md"));
}

TEST_CASE("given figures go before measured ones, and these before speeds", "[train]") {
  const RunWithMetrics run(kLines);
  SimulationRequest request = request_of(1000);
  request.measured = measure_run(run.path());
  request.given.persist = 0.5;
  checkpoint::RunFigures speeds;
  speeds.restart_s = 7;
  speeds.write_gb_per_s = 1;
  const Simulation simulation = simulate_small(request, {}, speeds);
  CHECK(source_of(simulation, "step_s") == "0.5 given");
  CHECK(source_of(simulation, "snapshot_s") == "0.01 measured");
  CHECK(source_of(simulation, "persist_s") == "0.5 given");
  CHECK(source_of(simulation, "restart_s") == "7 speed");
  CHECK(source_of(simulation, "detect_s") == "0 assumed");
  CHECK(source_of(simulation, "restore_memory_s") == "0.03 as restore_s");
  CHECK(simulation.input.step_s == 0.5);
  CHECK(simulation.input.partial.persist == 0.5);
  CHECK(simulation.input.restart_s == 7);

  // Without full saves of its own a run's are those of its partial ones, by bytes.
  request.measured.reset();
  const Simulation scaled = simulate_small(request);
  const auto& estimate =
      report_checkpoints(small_config(), make_plan(small_config(), 50, 4), {}).estimate;
  CHECK(scaled.input.full.persist == Approx(0.5 * double(estimate.full.max_rank_bytes) /
                                            double(estimate.partial.max_rank_bytes)));
}

TEST_CASE("a simulation is of the configuration's saves", "[train]") {
  SimulationRequest request = request_of(50);
  request.node_loss_share = 1;
  const Simulation storage = simulate_small(request);
  CHECK(storage.input.save_interval == 20);
  CHECK(storage.input.steps == 400);
  CHECK(storage.input.num_layers == 1);
  CHECK(storage.input.experts == 1);
  CHECK(storage.input.memory_interval == 0);
  const Simulation memory = simulate_small(request,
                                           {"checkpoint.non_persistent_save_interval=1s",
                                            "checkpoint.replication_factor=2",
                                            "checkpoint.pec.experts_per_snapshot=4"});
  CHECK(memory.input.memory_interval == 2);  // a second of steps
  CHECK(memory.input.replicas == 2);
  CHECK(memory.result.ettr.mean > storage.result.ettr.mean);
  CHECK(memory.result.plt.mean < storage.result.plt.mean);
  // Experts 0 and 1 of a layer are with ranks 0 and 2, the others with 1 and 3: by twos on nodes.
  CHECK(memory.input.expert_nodes.size() == 4);

  const auto json = nlohmann::json::parse(to_json(memory)).at("simulation");
  CHECK(json.at("nodes") == 2);
  CHECK(json.at("replication_factor") == 2);
  CHECK(json.at("figures").at("step_s").at("source") == "given");
  CHECK(json.at("result").at("ettr").at("mean") == memory.result.ettr.mean);
  CHECK(json.at("result").at("plt").at("p97_5") == memory.result.plt.p97_5);
  CHECK(json.at("closed_form_ettr") == memory.closed_form_ettr);
  CHECK_THAT(describe(memory), Contains("on 2 nodes each") && Contains("ETTR (goodput), %"));

  // Each of two nodes fails as often as given: the job twice as often.
  request.mtbf_s.reset();
  request.node_mtbf_s = 100;
  CHECK(simulate_small(request).input.mtbf_s == 50);
}

TEST_CASE("what a simulation cannot know it asks for", "[train]") {
  SimulationRequest request = request_of(100);
  request.given.step.reset();
  CHECK_THROWS_WITH(simulate_small(request), Contains("give --step-s"));
  request = request_of(100);
  request.mtbf_s.reset();
  CHECK_THROWS_WITH(simulate_small(request), Contains("give --mtbf"));
  request = request_of(100);
  request.nodes = 3;
  CHECK_THROWS_WITH(simulate_small(request), Contains("4 processes do not divide over 3 nodes"));
  request.nodes = 2;
  CHECK_THROWS_WITH(simulate_small(request,
                                   {"checkpoint.non_persistent_save_interval=1",
                                    "checkpoint.replication_factor=3"}),
                    Contains("do not fit on 2 nodes"));
}
