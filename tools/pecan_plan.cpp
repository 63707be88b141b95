// pecan-plan: what a configuration needs, without allocating it.

#include <iostream>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <pecan/config/config.hpp>

#include <pecan/train/plan.hpp>

int main(int argc, char** argv) {
  using namespace pecan;
  std::vector<std::string> configs, settings;
  int world = 1;
  bool json = false;
  CLI::App app{
      "Prints parameters, memory and checkpoint bytes of a configuration; allocates nothing.",
      "pecan-plan"};
  app.add_option("--config", configs, "YAML file; several are merged left to right")
      ->required()
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--set", settings, "key.path=value, over the files")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--world", world, "number of ranks (default: 1)")->check(CLI::PositiveNumber);
  app.add_flag("--json", json, "machine-readable");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? int(ExitCode::kDone) : int(ExitCode::kUsage);
  }
  try {
    const config::Config config = config::load_config(configs, settings);
    const train::TrainPlan plan =
        train::make_plan(config, train::resolve_vocab_size(config), world);
    std::cout << (json ? train::to_json(plan) : train::describe(plan));
    return int(ExitCode::kDone);
  } catch (const Error& error) {
    std::cerr << "pecan-plan: " << error.what() << std::endl;
    return int(error.exit_code());
  }
}
