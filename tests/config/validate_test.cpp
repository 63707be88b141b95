#include <pecan/config/config.hpp>

#include "support/catch.hpp"

namespace pecan::config {
namespace {

std::string refusal(const std::string& yaml, int world_size) {
  const Config config = parse_config(yaml);
  try {
    validate_for_world(config, world_size);
    return "";
  } catch (const ConfigError& e) {
    return e.what();
  }
}

std::string moe(int experts, int expert_parallel, int batch = 8, int micro = 1) {
  return fmt::format(
      "moe: {{num_experts: {}}}\nparallel: {{expert_model_parallel_size: {}}}\n"
      "training: {{global_batch_size: {}, micro_batch_size: {}}}\n",
      experts,
      expert_parallel,
      batch,
      micro);
}

TEST_CASE("layouts that do not fit the number of ranks are refused with what fits", "[config]") {
  CHECK(refusal(moe(64, 8), 8).empty());
  CHECK(refusal(moe(64, 2), 8).empty());
  CHECK(refusal("", 1).empty());
  CHECK(refusal(moe(6, 3), 4) ==
        "parallel.expert_model_parallel_size=3 does not divide the 4 ranks (every copy of the "
        "experts is complete); use an expert_model_parallel_size of "
        "1 or 2, or start 3 or 6 ranks");
  CHECK(refusal(moe(8, 4), 2) ==
        "parallel.expert_model_parallel_size=4 does not divide the 2 ranks (every copy of the "
        "experts is complete); use an expert_model_parallel_size of "
        "1 or 2, or start 4 ranks");
  CHECK(refusal(moe(8, 1, 12, 2), 4) ==
        "training.global_batch_size=12 is not divisible by micro_batch_size=2 x 4 data-parallel "
        "ranks (all ranks compute "
        "equally many micro-batches); use 8 or 16");
  CHECK(refusal("", 0) == "a world of 0 ranks cannot train; start at least 1");
}

TEST_CASE("exactly the legal layouts are accepted, over all small worlds", "[config]") {
  for (int world = 1; world <= 8; ++world) {
    for (int experts = 1; experts <= 12; ++experts) {
      for (int ep = 1; ep <= 8; ++ep) {
        Config config;
        config.moe.num_experts = experts;
        config.parallel.expert_model_parallel_size = ep;
        config.training.global_batch_size = 8 * 3 * 5 * 7;
        bool accepted = true;
        try {
          validate_for_world(config, world);
        } catch (const ConfigError&) {
          accepted = false;
        }
        const bool legal = world % ep == 0 && experts % ep == 0;
        if (accepted != legal)
          FAIL_CHECK(fmt::format("world {} experts {} ep {}", world, experts, ep));
      }
    }
  }
}

}  // namespace
}  // namespace pecan::config
