#include <algorithm>
#include <fstream>
#include <utility>

#include <nlohmann/json.hpp>

#include <pecan/checkpoint/plan.hpp>
#include <pecan/checkpoint/select.hpp>

#include <pecan/train/metrics.hpp>
#include <pecan/train/simulation.hpp>

namespace pecan::train {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

/// Milliseconds that were measured, in seconds.
class Samples {
 public:
  void add(const json& line, const char* key) { add(line.value(key, -1.0)); }
  void add(double ms) {
    if (ms >= 0) values_.push_back(ms / 1e3);
  }
  [[nodiscard]] std::optional<double> median() const {
    if (values_.empty()) return {};
    std::vector<double> sorted = values_;
    std::ranges::sort(sorted);
    const std::size_t middle = sorted.size() / 2;
    return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

 private:
  std::vector<double> values_;
};

/// Takes figures in the order of trust and notes where each is from.
class Figures {
 public:
  Figures(const SimulationRequest& request, std::vector<SourcedFigure>& out)
      : request_(request), out_(out) {}

  /// The first that there is: given, measured, or one of `others` with its source.
  [[nodiscard]] std::optional<double> find(
      const char* name,
      std::optional<double> RunSeconds::*which,
      const std::vector<std::pair<std::optional<double>, const char*>>& others = {}) {
    if (const auto given = request_.given.*which) return note(name, *given, "given");
    if (request_.measured) {
      if (const auto measured = *request_.measured.*which) return note(name, *measured, "measured");
    }
    for (const auto& [value, source] : others) {
      if (value) return note(name, *value, source);
    }
    return {};
  }
  double note(const char* name, double value, const char* source) {
    out_.push_back({name, value, source});
    return value;
  }
  double or_zero(const char* name,
                 std::optional<double> RunSeconds::*which,
                 std::vector<std::pair<std::optional<double>, const char*>> others = {}) {
    others.emplace_back(0.0, "assumed");
    return *find(name, which, others);
  }

 private:
  const SimulationRequest& request_;
  std::vector<SourcedFigure>& out_;
};

std::optional<double> scaled(std::optional<double> seconds,
                             const checkpoint::WriteLoad& load,
                             const checkpoint::WriteLoad& of) {
  if (!seconds || of.max_rank_bytes == 0) return {};
  return *seconds * double(load.max_rank_bytes) / double(of.max_rank_bytes);
}

std::int64_t steps_of(const config::Interval& interval, double step_s) {
  return std::int64_t(checkpoint::interval_steps(interval, step_s).value_or(0));
}

/// What the input holds of the model, the configuration and the machine.
checkpoint::SimulationInput input_of(const config::Config& config,
                                     const TrainPlan& plan,
                                     const SimulationRequest& request,
                                     const CheckpointReport& report) {
  const config::CheckpointConfig& saves = config.checkpoint;
  checkpoint::SimulationInput in;
  in.steps = request.steps.value_or(config.training.train_iters);
  in.num_layers = plan.catalog.num_moe_layers;
  in.num_experts = report.estimate.num_experts;
  in.experts = report.estimate.experts;
  in.experts_in_snapshot = report.estimate.experts_in_snapshot;
  if (saves.pec.selection == "full") in.experts = in.experts_in_snapshot = in.num_experts;
  in.dynamic_k = saves.pec.dynamic_k;
  in.plt_budget = saves.pec.plt_budget;
  in.ep_size = checkpoint::expert_grid(plan.catalog).ep_size;
  in.async_save = saves.async_save;
  in.replicas = saves.replication_factor;
  in.recovery = request.recovery;
  in.checkpoints_kept = saves.keep_latest_k + saves.fallback_copies;
  in.nodes = request.nodes;
  in.expert_nodes = checkpoint::expert_nodes(plan.catalog, saves, request.nodes);
  in.failures = request.failures;
  in.stops_s = request.stops_s;
  in.node_loss_share = request.node_loss_share;
  in.nodes_at_once = request.nodes_at_once;
  in.trials = request.trials;
  in.seed = request.seed;
  return in;
}

ordered_json to_json(const checkpoint::Spread& spread) {
  return {{"mean", spread.mean},
          {"low", spread.low},
          {"high", spread.high},
          {"p2_5", spread.p2_5},
          {"p97_5", spread.p97_5}};
}

struct Row {
  const char* key;
  const char* label;
  checkpoint::Spread checkpoint::SimulationResult::*spread;
  double factor = 1;
};
constexpr Row kRows[] = {
    {"ettr", "ETTR (goodput), %", &checkpoint::SimulationResult::ettr, 100},
    {"plt", "PLT, %", &checkpoint::SimulationResult::plt, 100},
    {"failures", "failures", &checkpoint::SimulationResult::failures},
    {"lost_steps", "steps trained again", &checkpoint::SimulationResult::lost_steps},
    {"recovered_memory", "recovered from memory", &checkpoint::SimulationResult::recovered_memory},
    {"recovered_storage",
     "recovered from storage",
     &checkpoint::SimulationResult::recovered_storage},
    {"from_scratch", "begun anew (unrecoverable)", &checkpoint::SimulationResult::from_scratch},
    {"wall_s", "wall time, s", &checkpoint::SimulationResult::wall_s},
    {"downtime_s", "down, s", &checkpoint::SimulationResult::downtime_s},
    {"repeated_s", "training again, s", &checkpoint::SimulationResult::repeated_s},
    {"stall_s", "waiting for saves, s", &checkpoint::SimulationResult::stall_s},
    {"committed", "checkpoints in storage", &checkpoint::SimulationResult::committed},
    {"skipped", "saves skipped", &checkpoint::SimulationResult::skipped},
    {"last_experts", "K in force at the end", &checkpoint::SimulationResult::last_experts}};

}  // namespace

RunSeconds measure_run(const std::string& run_directory) {
  const std::string path = run_directory + "/metrics.jsonl";
  std::ifstream in(path);
  PECAN_VALIDATE(in.is_open(),
                 CheckpointError,
                 "{} cannot be read; give --from-run the directory of a run that has trained",
                 path);
  std::string line;
  std::getline(in, line);
  const json head = json::parse(line, nullptr, /*allow_exceptions=*/false);
  PECAN_VALIDATE(head.is_object() && head.contains("schema") && head["schema"] == kMetricsSchema,
                 CheckpointError,
                 "{} does not begin with \"schema\": {}; it is of another version, or no file of "
                 "metrics",
                 path,
                 kMetricsSchema);
  Samples step, snapshot, persist, full_snapshot, full_persist, commit, replicate, restore;
  double stall_s = 0;
  std::int64_t num_saves = 0;
  std::int64_t incarnation = -1;
  while (std::getline(in, line)) {
    const json record = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!record.is_object()) continue;  // cut short by a crash
    try {
      const std::string kind = record.value("kind", "");
      if (kind == "step") {
        stall_s += record.value("ckpt_stall_ms", 0.0) / 1e3;
        const std::int64_t start = record.value("incarnation", std::int64_t{0});
        if (std::exchange(incarnation, start) != start) continue;  // it pays for first touches
        step.add(record.at("step_ms").get<double>() - record.value("ckpt_stall_ms", 0.0));
      } else if (kind == "checkpoint" || kind == "snapshot") {
        if (record.value("failure", "").starts_with("skipped")) continue;
        ++num_saves;
        if (!record.value("committed", false)) continue;
        const bool full = record.value("full", false);
        (full ? full_snapshot : snapshot).add(record, "snapshot_ms");
        if (const double ms = record.value("replicate_ms", 0.0); ms > 0) replicate.add(ms);
        if (kind == "snapshot") continue;
        (full ? full_persist : persist).add(record, "persist_ms");
        commit.add(record, "commit_ms");
      } else if (kind == "recovery") {
        restore.add(record.value("scan_ms", 0.0) + record.value("load_ms", 0.0));
      }
    } catch (const json::exception& error) {
      throw CheckpointError(fmt::format(
          "{} holds a line that is not as docs/formats/metrics.md says: {}", path, error.what()));
    }
  }
  RunSeconds seconds;
  seconds.step = step.median();
  PECAN_VALIDATE(seconds.step.has_value(),
                 CheckpointError,
                 "{} has fewer than two steps of a start; give --step-s, or a run that has trained "
                 "longer",
                 path);
  seconds.snapshot = snapshot.median();
  seconds.persist = persist.median();
  seconds.full_snapshot = full_snapshot.median();
  seconds.full_persist = full_persist.median();
  seconds.commit = commit.median();
  seconds.replicate = replicate.median();
  if (num_saves > 0) seconds.stall = stall_s / double(num_saves);
  seconds.restore = restore.median();
  return seconds;
}

Simulation simulate_run(const config::Config& config,
                        const TrainPlan& plan,
                        const SimulationRequest& request,
                        const checkpoint::RunFigures& speeds) {
  const CheckpointReport report = report_checkpoints(config, plan, speeds);
  const checkpoint::CheckpointEstimate& estimate = report.estimate;
  Simulation simulation;
  simulation.world = plan.mesh.world;
  simulation.follows_tokens = estimate.follows_tokens && config.checkpoint.pec.selection != "full";
  checkpoint::SimulationInput in = input_of(config, plan, request, report);

  Figures figures(request, simulation.figures);
  const auto step_speed = speeds.step_ms ? std::optional(*speeds.step_ms / 1e3) : std::nullopt;
  const auto step = figures.find("step_s", &RunSeconds::step, {{step_speed, "speed"}});
  PECAN_VALIDATE(step.has_value(),
                 ConfigError,
                 "the duration of a step is not known; give --step-s, or --from-run with the "
                 "directory of a run like this one");
  in.step_s = *step;
  in.save_interval = steps_of(config.checkpoint.save_interval, in.step_s);
  in.memory_interval = steps_of(config.checkpoint.non_persistent_save_interval, in.step_s);
  if (in.save_interval > 0) {
    // A run without partial saves says how long they take by its full ones, and the other way
    // round.
    const RunSeconds known = request.measured.value_or(RunSeconds{});
    const auto first = [](std::optional<double> a, std::optional<double> b) { return a ? a : b; };
    const auto snapshot = first(request.given.snapshot, known.snapshot);
    const auto persist = first(request.given.persist, known.persist);
    const auto full_snapshot = first(request.given.full_snapshot, known.full_snapshot);
    const auto full_persist = first(request.given.full_persist, known.full_persist);
    const checkpoint::SaveCost& full = report.costs.full;
    const bool partial = in.experts < in.num_experts;
    if (partial) {
      const checkpoint::SaveCost& cost = report.costs.partial;
      const char* by_bytes = "the full one's, by bytes";
      in.partial.snapshot =
          figures.or_zero("snapshot_s",
                          &RunSeconds::snapshot,
                          {{scaled(full_snapshot, estimate.snapshot, estimate.full), by_bytes},
                           {cost.snapshot_s, "speed"}});
      in.partial.persist =
          figures.or_zero("persist_s",
                          &RunSeconds::persist,
                          {{scaled(full_persist, estimate.partial, estimate.full), by_bytes},
                           {cost.persist_s, "speed"}});
    }
    const char* by_bytes = "the partial one's, by bytes";
    in.full.snapshot =
        figures.or_zero("full_snapshot_s",
                        &RunSeconds::full_snapshot,
                        {{partial ? scaled(snapshot, estimate.full, estimate.snapshot) : snapshot,
                          partial ? by_bytes : "given"},
                         {full.snapshot_s, "speed"}});
    in.full.persist =
        figures.or_zero("full_persist_s",
                        &RunSeconds::full_persist,
                        {{partial ? scaled(persist, estimate.full, estimate.partial) : persist,
                          partial ? by_bytes : "given"},
                         {full.persist_s, "speed"}});
    if (!partial) in.partial = in.full;
    in.commit_s = figures.or_zero("commit_s", &RunSeconds::commit);
    if (in.async_save) in.stall_s = figures.find("stall_s", &RunSeconds::stall);
    if (in.memory_interval > 0 && in.replicas > 1)
      in.replicate_s = figures.or_zero("replicate_s", &RunSeconds::replicate);
  }
  in.startup_s = figures.or_zero("startup_s", &RunSeconds::startup);
  in.detect_s = figures.or_zero("detect_s", &RunSeconds::detect);
  in.restart_s = figures.or_zero("restart_s", &RunSeconds::restart, {{speeds.restart_s, "speed"}});
  in.restore_storage_s = figures.or_zero("restore_s", &RunSeconds::restore);
  in.restore_memory_s = figures.or_zero(
      "restore_memory_s", &RunSeconds::restore_memory, {{in.restore_storage_s, "as restore_s"}});

  if (request.mtbf_s) {
    in.mtbf_s = figures.note("mtbf_s", *request.mtbf_s, "given");
  } else if (request.node_mtbf_s) {
    in.mtbf_s = figures.note(
        "mtbf_s", *request.node_mtbf_s / double(request.nodes), "of a node, over nodes");
  } else if (speeds.mtbf_hours) {
    in.mtbf_s = figures.note("mtbf_s", *speeds.mtbf_hours * 3600, "given");
  }
  PECAN_VALIDATE(in.mtbf_s > 0 || !in.failures.empty() || !in.stops_s.empty(),
                 ConfigError,
                 "how often something fails is not known; give --mtbf (of the job), --node-mtbf, "
                 "--fail-at or --stop-at, in seconds");
  simulation.result = checkpoint::simulate(in);
  simulation.closed_form_ettr = checkpoint::expected_ettr(in);
  simulation.input = std::move(in);
  return simulation;
}

std::string describe(const Simulation& simulation) {
  const checkpoint::SimulationInput& in = simulation.input;
  const checkpoint::SimulationResult& result = simulation.result;
  std::string text =
      fmt::format("simulated   {} trainings of {} steps on {} nodes of {} processes, seed {}\n",
                  in.trials,
                  in.steps,
                  in.nodes,
                  simulation.world / in.nodes,
                  in.seed);
  const auto add = [&]<typename... Args>(fmt::format_string<Args...> format, Args&&... args) {
    text += fmt::format("{:<12}{}\n", "", fmt::format(format, std::forward<Args>(args)...));
  };
  if (in.save_interval > 0) {
    add("every {} steps to storage{}",
        in.save_interval,
        in.num_layers == 0 ? std::string()
                           : fmt::format(", {} of {} experts", in.experts, in.num_experts));
  } else {
    add("no checkpoints");
  }
  if (in.memory_interval > 0) {
    add("every {} steps to memory, {} of {} experts, on {} {} each",
        in.memory_interval,
        in.experts_in_snapshot,
        in.num_experts,
        in.replicas,
        in.replicas == 1 ? "node" : "nodes");
    if (in.recovery == checkpoint::RecoveryMode::kStorageOnly) add("recovery from storage alone");
  }
  if (in.mtbf_s > 0) add("a failure every {:.6g} s on the average", in.mtbf_s);
  if (!in.failures.empty()) add("{} failures at given times", in.failures.size());
  if (!in.stops_s.empty()) add("{} stops on request", in.stops_s.size());
  add("{:.4g} % of the failures take {} {} with the memory, the others a process",
      100 * in.node_loss_share,
      in.nodes_at_once,
      in.nodes_at_once == 1 ? "node" : "nodes");
  if (simulation.follows_tokens)
    add("(as if sequential: which experts a save holds follows the tokens)");
  if (result.layers_followed < in.num_layers)
    add("({} of {} MoE layers are followed; they are alike)",
        result.layers_followed,
        in.num_layers);
  const char* label = "figures";
  for (const SourcedFigure& figure : simulation.figures) {
    text +=
        fmt::format("{:<12}{:<20}{:>14.6g}  {}\n", label, figure.name, figure.value, figure.source);
    label = "";
  }
  text += fmt::format("{:<12}{:<28}{:>12}{:>26}{:>26}\n",
                      "result",
                      "of a whole training",
                      "mean",
                      "95 % interval of it",
                      "95 % of trainings");
  for (const Row& row : kRows) {
    const checkpoint::Spread& spread = result.*row.spread;
    const double f = row.factor;
    text += fmt::format("{:<12}{:<28}{:>12.6g}{:>26}{:>26}\n",
                        "",
                        row.label,
                        f * spread.mean,
                        fmt::format("{:.6g} to {:.6g}", f * spread.low, f * spread.high),
                        fmt::format("{:.6g} to {:.6g}", f * spread.p2_5, f * spread.p97_5));
  }
  text += fmt::format(
      "{:<12}ETTR {:.4f} by the closed form for rare failures\n", "", simulation.closed_form_ettr);
  if (result.unfinished > 0)
    add("{} of {} trainings were given up after {:.0f} times their useful time: they lose more by "
        "failures than they train between them",
        result.unfinished,
        result.trials,
        checkpoint::kHopeless);
  return text;
}

std::string to_json(const Simulation& simulation) {
  const checkpoint::SimulationInput& in = simulation.input;
  ordered_json figures = ordered_json::object();
  for (const SourcedFigure& figure : simulation.figures)
    figures[figure.name] = {{"value", figure.value}, {"source", figure.source}};
  ordered_json failures = ordered_json::array();
  for (const checkpoint::GivenFailure& failure : in.failures)
    failures.push_back({{"at_s", failure.at_s},
                        {"nodes", failure.nodes ? json(*failure.nodes) : json()},
                        {"checkpoints", failure.checkpoints}});
  ordered_json result = ordered_json::object();
  for (const Row& row : kRows) result[row.key] = to_json(simulation.result.*row.spread);
  const ordered_json json{
      {"schema", 1},
      {"simulation",
       {{"trials", in.trials},
        {"seed", in.seed},
        {"steps", in.steps},
        {"world", simulation.world},
        {"nodes", in.nodes},
        {"num_experts", in.num_experts},
        {"experts_per_checkpoint", in.experts},
        {"experts_per_snapshot", in.experts_in_snapshot},
        {"save_interval", in.save_interval},
        {"non_persistent_save_interval", in.memory_interval},
        {"replication_factor", in.replicas},
        {"recovery", in.recovery == checkpoint::RecoveryMode::kTwoLevel ? "two-level" : "storage"},
        {"node_loss_share", in.node_loss_share},
        {"nodes_at_once", in.nodes_at_once},
        {"failures", std::move(failures)},
        {"stops", in.stops_s},
        {"checkpoints_kept", in.checkpoints_kept},
        {"follows_tokens", simulation.follows_tokens},
        {"moe_layers_followed", simulation.result.layers_followed},
        {"figures", std::move(figures)},
        {"result", std::move(result)},
        {"closed_form_ettr", simulation.closed_form_ettr},
        {"unfinished", simulation.result.unfinished}}}};
  return json.dump(2) + "\n";
}

}  // namespace pecan::train
