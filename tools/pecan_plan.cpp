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
                   "        [--world N] [--json]"},
      .description =
          {"Prints parameters, memory of a process, and checkpoint bytes of a configuration on N "
           "processes, and checks everything that pecan-train would refuse at its start. It is "
           "the same plan that pecan-train makes. It allocates nothing of the model's size and "
           "needs no MPI."},
      .exit_codes = {ExitCode::kDone, ExitCode::kUsage, ExitCode::kData, ExitCode::kInternal},
      .environment = {{"any NAME", "replaces ${NAME} in a value of the configuration"}},
      .files = {{"data.tokenizer_model",
                 "is read for the vocabulary's size, unless "
                 "model.vocab_size says it"}},
      .examples = {{"On 4 processes", "pecan-plan --config my.yaml --world 4"},
                   {"Another layout, for a script",
                    "pecan-plan --config my.yaml --world 8 --json "
                    "--set parallel.expert_model_parallel_size=8"}},
      .see_also = {"pecan-train(1)", "docs/formats/plan.md"}};
}

}  // namespace

int main(int argc, char** argv) {
  return tools::run_program("pecan-plan", [&] {
    tools::ConfigArguments arguments;
    int world = 1;
    bool json = false;
    tools::CommandLine line(manual());
    arguments.add_to(line, config::config_keys());
    line.app()
        .add_option("--world", world, "number of processes (default: 1)")
        ->check(tools::at_least(1, "processes"))
        ->type_name("N")
        ->group("Plan");
    line.app().add_flag("--json", json, "machine-readable (docs/formats/plan.md)")->group("Plan");
    if (const std::optional<int> done = line.parse(argc, argv)) return *done;
    const config::Config config = config::load_config(arguments.files, arguments.settings);
    const train::TrainPlan plan =
        train::make_plan(config, train::resolve_vocab_size(config), world);
    std::cout << (json ? train::to_json(plan) : train::describe(plan));
    return int(ExitCode::kDone);
  });
}
