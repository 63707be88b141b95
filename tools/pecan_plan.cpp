// pecan-plan: what a configuration needs, without allocating it.

#include <iostream>

#include <pecan/config/config.hpp>

#include <pecan/train/plan.hpp>

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
                   "        [--mtbf-hours X] [--restart-s X]"},
      .description =
          {"Prints parameters, memory of a process, and checkpoint bytes of a configuration on N "
           "processes, and checks everything that pecan-train would refuse at its start. It is "
           "the same plan that pecan-train makes. It allocates nothing of the model's size and "
           "needs no MPI.",
           "With figures of the machine, measured or assumed, it also tells what saving costs: how "
           "long the most loaded process copies and writes, how much of that training waits for, "
           "what interval between checkpoints is best, and what a failure loses. What needs a "
           "figure that is not given is left out."},
      .exit_codes = {ExitCode::kDone, ExitCode::kUsage, ExitCode::kData, ExitCode::kInternal},
      .environment = {{"any NAME", "replaces ${NAME} in a value of the configuration"}},
      .files = {{"data.tokenizer_model",
                 "is read for the vocabulary's size, unless "
                 "model.vocab_size says it"}},
      .examples = {{"On 4 processes", "pecan-plan --config my.yaml --world 4"},
                   {"Another layout, for a script",
                    "pecan-plan --config my.yaml --world 8 --json "
                    "--set parallel.expert_model_parallel_size=8"},
                   {"What saving costs on a machine",
                    "pecan-plan --config my.yaml --world 8 --step-ms 500 --copy-gb-per-s 10 "
                    "--write-gb-per-s 1 --mtbf-hours 24"}},
      .see_also = {"pecan-train(1)", "docs/formats/plan.md"}};
}

/// Defines the options of the figures.
void add_figures(tools::CommandLine& line, checkpoint::RunFigures& figures) {
  const auto add = [&](const char* name,
                       std::optional<double>& value,
                       const char* what,
                       const char* description) {
    line.app()
        .add_option(name, value, description)
        ->check(tools::above_zero(what))
        ->type_name("X")
        ->group("Figures of the machine");
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

}  // namespace

int main(int argc, char** argv) {
  return tools::run_program("pecan-plan", [&] {
    tools::ConfigArguments arguments;
    int world = 1;
    bool json = false;
    checkpoint::RunFigures figures;
    tools::CommandLine line(manual());
    arguments.add_to(line, config::config_keys());
    line.app()
        .add_option("--world", world, "number of processes (default: 1)")
        ->check(tools::at_least(1, "processes"))
        ->type_name("N")
        ->group("Plan");
    line.app().add_flag("--json", json, "machine-readable (docs/formats/plan.md)")->group("Plan");
    add_figures(line, figures);
    if (const std::optional<int> done = line.parse(argc, argv)) return *done;
    const config::Config config = config::load_config(arguments.files, arguments.settings);
    const train::TrainPlan plan =
        train::make_plan(config, train::resolve_vocab_size(config), world);
    const train::CheckpointReport report = train::report_checkpoints(config, plan, figures);
    std::cout << (json ? train::to_json(plan, report)
                       : train::describe(plan) + train::describe(report));
    return int(ExitCode::kDone);
  });
}
