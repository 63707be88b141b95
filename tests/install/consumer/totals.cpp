// usage: totals CONFIG WORLD. Prints the plan's totals; every layer is linked through pecan::train.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <pecan/config/config.hpp>

#include <pecan/train/plan.hpp>

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    const std::vector<std::string> files{argv[1]};
    const auto config = pecan::config::load_config(files, {});
    const auto plan = pecan::train::make_plan(
        config, pecan::train::resolve_vocab_size(config), std::atoi(argv[2]));
    std::printf("total %lld\nactive %lld\nranks %d\n",
                static_cast<long long>(plan.parameters.total),
                static_cast<long long>(plan.parameters.active),
                plan.mesh.world);
    return 0;
  } catch (const pecan::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return int(error.exit_code());
  }
}
