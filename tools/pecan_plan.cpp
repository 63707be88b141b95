// pecan-plan: what a configuration needs, without allocating it.

#include <charconv>
#include <iostream>

#include <pecan/config/config.hpp>

#include <pecan/train/plan.hpp>
#include <pecan/train/simulation.hpp>

#include "command_line.hpp"

namespace {

using namespace pecan;

tools::Manual manual() {
  return {
      .name = "pecan-plan",
      .version = {},
      .summary = "show what a configuration needs before it is run",
      .synopsis = {"pecan-plan --config FILE [--config FILE2 ...] [--set key.path=value ...]",
                   "        [--world N] [--json] [--step-ms X] [--copy-gb-per-s X] "
                   "[--write-gb-per-s X]",
                   "        [--mtbf-hours X] [--restart-s X]",
                   "pecan-plan simulate --config FILE ... [--world N] [--nodes M] --mtbf SECONDS",
                   "        [--from-run DIR] [--step-s X ...] [--node-loss-share X] [--trials N] "
                   "[--json]"},
      .description =
          {"Prints parameters, memory of a process, and checkpoint bytes of a configuration on N "
           "processes, and checks everything that pecan-train would refuse at its start. It is "
           "the same plan that pecan-train makes. It allocates nothing of the model's size and "
           "needs no MPI.",
           "With figures of the machine, measured or assumed, it also tells what saving costs: how "
           "long the most loaded process copies and writes, how much of that training waits for, "
           "what interval between checkpoints is best, and what a failure loses. What needs a "
           "figure that is not given is left out.",
           "simulate follows many trainings of the configuration, with failures at random, "
           "and prints how much of the time is training (ETTR, goodput), what share of the tokens "
           "experts lose (PLT) and how many steps are trained again, each with its interval. "
           "Figures come from a run's metrics (--from-run), from options in seconds, which go "
           "before them, or from the speeds above; what is in none of these counts as 0, and the "
           "output says so. K, intervals and replicas are those of the configuration: --set "
           "changes them."},
      .exit_codes = {ExitCode::kDone,
                     ExitCode::kUsage,
                     ExitCode::kData,
                     ExitCode::kCheckpoint,
                     ExitCode::kInternal},
      .environment = {tools::variables_of_configuration()},
      .files = {{"data.tokenizer_model",
                 "is read for the vocabulary's size, unless "
                 "model.vocab_size says it"},
                {"DIR/metrics.jsonl", "is read for --from-run DIR (docs/formats/metrics.md)"}},
      .examples = {{"On 4 processes", "pecan-plan --config my.yaml --world 4"},
                   {"Another layout, for a script",
                    "pecan-plan --config my.yaml --world 8 --json "
                    "--set parallel.expert_model_parallel_size=8"},
                   {"What saving costs on a machine",
                    "pecan-plan --config my.yaml --world 8 --step-ms 500 --copy-gb-per-s 10 "
                    "--write-gb-per-s 1 --mtbf-hours 24"},
                   {"What failures cost a run like one that was measured",
                    "pecan-plan simulate --config my.yaml --world 8 --nodes 4 --from-run runs/my "
                    "--restart-s 20 --mtbf 3600 --node-loss-share 0.5"}},
      .see_also = {"pecan-train(1)", "docs/formats/plan.md"}};
}

/// Defines an option that may be left out.
CLI::Option* add_figure(CLI::App& app,
                        const char* name,
                        std::optional<double>& value,
                        const char* description,
                        const char* group,
                        const CLI::Validator& check) {
  return app.add_option(name, value, description)->check(check)->type_name("X")->group(group);
}

/// Reads SECONDS, SECONDS:NODES or SECONDS:NODES:CHECKPOINTS.
std::optional<checkpoint::GivenFailure> given_failure(const std::string& text) {
  checkpoint::GivenFailure failure;
  const char* const end = text.data() + text.size();
  auto parsed = std::from_chars(text.data(), end, failure.at_s);
  if (parsed.ec == std::errc() && parsed.ptr != end && *parsed.ptr == ':')
    parsed = std::from_chars(parsed.ptr + 1, end, failure.nodes.emplace());
  if (parsed.ec == std::errc() && parsed.ptr != end && *parsed.ptr == ':' && failure.nodes)
    parsed = std::from_chars(parsed.ptr + 1, end, failure.checkpoints);
  const bool sound =
      failure.at_s >= 0 && failure.nodes.value_or(0) >= 0 && failure.checkpoints >= 0;
  if (parsed.ec != std::errc() || parsed.ptr != end || !sound) return {};
  return failure;
}

/// Defines the options of the figures.
void add_figures(CLI::App& app, checkpoint::RunFigures& figures) {
  const auto add = [&](const char* name,
                       std::optional<double>& value,
                       const char* what,
                       const char* description) {
    add_figure(app, name, value, description, "Figures of the machine", tools::above_zero(what));
  };
  add("--step-ms",
      figures.step_ms,
      "milliseconds",
      "milliseconds of a step without saves, taken as forward and backward");
  add("--copy-gb-per-s",
      figures.copy_gb_per_s,
      "gigabytes a second",
      "1e9 bytes a second that a process copies from its device to host memory");
  add("--write-gb-per-s",
      figures.write_gb_per_s,
      "gigabytes a second",
      "1e9 bytes a second that a process writes to storage while all do");
  add("--mtbf-hours", figures.mtbf_hours, "hours", "mean hours between failures of the whole job");
  add("--restart-s",
      figures.restart_s,
      "seconds",
      "seconds from a failure to the first step after it (left out: 0)");
}

/// Defines the command's options.
CLI::App& add_simulate(tools::CommandLine& line,
                       train::SimulationRequest& request,
                       std::string& from_run) {
  CLI::App& app =
      *line.app().add_subcommand("simulate", "how much time failures and saves leave for training");
  app.fallthrough();
  const char* failures = "Failures";
  const CLI::Validator above = tools::above_zero("seconds");
  CLI::Option* mtbf = add_figure(app,
                                 "--mtbf",
                                 request.mtbf_s,
                                 "mean seconds between failures of the whole job",
                                 failures,
                                 above);
  add_figure(app,
             "--node-mtbf",
             request.node_mtbf_s,
             "mean seconds between failures of one node, in place of --mtbf",
             failures,
             above)
      ->excludes(mtbf);
  app.add_option_function<std::vector<std::string>>(
         "--fail-at",
         [&request](const std::vector<std::string>& given) {
           for (const std::string& failure : given)
             request.failures.push_back(*given_failure(failure));
         },
         "seconds from the start at which a failure strikes too, ascending; with :N, it takes N "
         "neighbouring nodes with their memory (0: a process); with :N:C, it damages the newest C "
         "checkpoints in storage too")
      ->check(CLI::Validator(
          [](const std::string& text) {
            if (given_failure(text)) return std::string();
            return "'" + text +
                   "' is no failure; use seconds from 0 on, like 12.5, or 12.5:2 if it takes two "
                   "nodes, or 12.5:2:1 if it damages the newest checkpoint too";
          },
          ""))
      ->type_name("X[:N[:C]]")
      ->take_all()
      ->allow_extra_args(false)
      ->group(failures);
  app.add_option("--stop-at",
                 request.stops_s,
                 "seconds from the start at which the run is asked to stop, ascending: it saves "
                 "everything at the end of its step and is started again")
      ->check(tools::from_zero("seconds"))
      ->type_name("X")
      ->take_all()
      ->allow_extra_args(false)
      ->group(failures);
  app.add_option("--node-loss-share",
                 request.node_loss_share,
                 "share of failures that take a node and its memory; the others kill a process "
                 "(default: 0)")
      ->check(tools::from_zero("failures"))
      ->type_name("X")
      ->group(failures);
  app.add_option(
         "--nodes-at-once", request.nodes_at_once, "nodes that such a failure takes (default: 1)")
      ->check(tools::at_least(1, "nodes"))
      ->type_name("N")
      ->group(failures);

  const char* run = "Run";
  app.add_option("--nodes", request.nodes, "nodes that the processes are spread over (default: 1)")
      ->check(tools::at_least(1, "nodes"))
      ->type_name("N")
      ->group(run);
  app.add_option("--steps", request.steps, "steps of the training (default: training.train_iters)")
      ->check(tools::at_least(1, "steps"))
      ->type_name("N")
      ->group(run);
  app.add_option_function<std::string>(
         "--recovery",
         [&request](const std::string& word) {
           request.recovery = word == "storage" ? checkpoint::RecoveryMode::kStorageOnly
                                                : checkpoint::RecoveryMode::kTwoLevel;
         },
         "what recovery reads: memory and storage, or storage alone (default: two-level)")
      ->check(tools::one_of({"two-level", "storage"}))
      ->type_name("WORD")
      ->group(run);
  app.add_option("--trials", request.trials, "trainings that are simulated (default: 200)")
      ->check(tools::at_least(2, "trainings"))
      ->type_name("N")
      ->group(run);
  app.add_option("--seed", request.seed, "of the random numbers (default: 1)")
      ->check(tools::at_least(0, "seeds"))
      ->type_name("N")
      ->group(run);

  const char* figures = "Figures of the run, in seconds";
  const CLI::Validator from_zero = tools::from_zero("seconds");
  train::RunSeconds& given = request.given;
  app.add_option("--from-run", from_run, "run directory whose metrics give what is not given here")
      ->type_name("DIR")
      ->group(figures);
  add_figure(app, "--step-s", given.step, "a step without saves", figures, above);
  struct Figure {
    const char* name;
    std::optional<double>& value;
    const char* description;
  };
  for (const Figure& figure : {
           Figure{"--snapshot-s", given.snapshot, "a partial save, to host memory"},
           Figure{"--persist-s", given.persist, "a partial save, from there to storage"},
           Figure{"--full-snapshot-s", given.full_snapshot, "a full save, to host memory"},
           Figure{"--full-persist-s", given.full_persist, "a full save, to storage"},
           Figure{"--commit-s", given.commit, "from all parts written to the manifest"},
           Figure{"--stall-s",
                  given.stall,
                  "that training waits for a save (left out: the snapshot less a step)"},
           Figure{"--replicate-s",
                  given.replicate,
                  "from a whole snapshot to its replicas on other nodes"},
           Figure{"--startup-s",
                  given.startup,
                  "from the beginning to the first step, once (left out: 0)"},
           Figure{"--detect-s", given.detect, "from a failure to its being noticed"},
           Figure{"--restart-s", given.restart, "from there to the start of recovery"},
           Figure{"--restore-s", given.restore, "of a recovery that reads storage"},
           Figure{"--restore-memory-s",
                  given.restore_memory,
                  "of one that reads memory alone (left out: as --restore-s)"},
       })
    add_figure(app, figure.name, figure.value, figure.description, figures, from_zero);
  return app;
}

}  // namespace

int main(int argc, char** argv) {
  return tools::run_program("pecan-plan", [&] {
    tools::ConfigArguments arguments;
    int world = 1;
    bool json = false;
    checkpoint::RunFigures figures;
    tools::CommandLine line(manual());
    arguments.add_to(line, line.app(), config::config_keys());
    line.app()
        .add_option("--world", world, "number of processes (default: 1)")
        ->check(tools::at_least(1, "processes"))
        ->type_name("N")
        ->group("Plan");
    line.app().add_flag("--json", json, "machine-readable (docs/formats/plan.md)")->group("Plan");
    add_figures(line.app(), figures);
    train::SimulationRequest request;
    std::string from_run;
    const CLI::App& simulate = add_simulate(line, request, from_run);
    if (const std::optional<int> done = line.parse(argc, argv)) return *done;
    const config::Config config = config::load_config(arguments.files, arguments.settings);
    const train::TrainPlan plan =
        train::make_plan(config, train::resolve_vocab_size(config), world);
    if (simulate.parsed()) {
      if (!from_run.empty()) request.measured = train::measure_run(from_run);
      const train::Simulation simulation = train::simulate_run(config, plan, request, figures);
      std::cout << (json ? train::to_json(simulation) : train::describe(simulation));
      return int(ExitCode::kDone);
    }
    const train::CheckpointReport report = train::report_checkpoints(config, plan, figures);
    std::cout << (json ? train::to_json(plan, report)
                       : train::describe(plan) + train::describe(report));
    return int(ExitCode::kDone);
  });
}
