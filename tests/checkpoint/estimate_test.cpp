#include <algorithm>
#include <cmath>

#include <pecan/checkpoint/estimate.hpp>
#include <pecan/checkpoint/plan.hpp>

#include "checkpoint/job.hpp"
#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::checkpoint;

namespace {

config::CheckpointConfig config_of(int experts,
                                   config::WriteSharding sharding = config::WriteSharding::kEqual) {
  config::CheckpointConfig config;
  config.save_interval.steps = 1;
  config.pec.experts_per_checkpoint = experts;
  config.pec.sharding = sharding;
  return config;
}

/// The job of make_catalog as a bf16 run keeps it: masters, and weights that follow from them.
StateCatalog bf16_catalog(const test::CatalogShape& shape) {
  StateCatalog catalog = test::make_catalog(shape);
  std::vector<StateItem> derived;
  for (StateItem& item : catalog.items) {
    if (item.role != Role::kWeight) continue;
    if (item.unit.value > 0) {
      derived.push_back(item);
      derived.back().dtype = DType::kBF16;
      derived.back().derived = true;
    }
    item.dataset = "master";
    item.role = Role::kMaster;
    item.group = RoleGroup::kMaster;
  }
  catalog.items.insert(catalog.items.end(), derived.begin(), derived.end());
  catalog.validate();
  return catalog;
}

StateCatalog experts_only(const test::CatalogShape& shape) {
  StateCatalog catalog = test::make_catalog(shape);
  std::erase_if(catalog.items, [](const StateItem& item) { return item.unit.value == 0; });
  return catalog;
}

/// GPT with experts of two matrices with biases in some layers: GPT-2's shapes.
StateParameters gpt(std::int64_t layers,
                    std::int64_t hidden,
                    std::int64_t experts,
                    std::int64_t moe_layers) {
  const std::int64_t ffn = 4 * hidden;
  const std::int64_t one_ffn = 2 * hidden * ffn + ffn + hidden;
  const std::int64_t attention = 4 * (hidden * hidden + hidden) + 4 * hidden;
  return {moe_layers * experts * one_ffn,
          (50257 + 2048) * hidden + layers * attention + (layers - moe_layers) * one_ffn +
              moe_layers * experts * hidden + 2 * hidden};
}

/// Share of a full checkpoint with one expert, if so many of 14 bytes rotate.
double papers_share(const StateParameters& parameters, int num_experts, int rotating) {
  return double(papers_bytes(parameters, rotating, 1, num_experts)) /
         double(papers_bytes(parameters, rotating, num_experts, num_experts));
}

}  // namespace

TEST_CASE("the papers' accounting is equations 5 and 6, and gives the published shares",
          "[estimate]") {
  const StateParameters small{800, 100};
  CHECK(papers_bytes(small, kPapersBytes, 8, 8) == 900 * 14);
  CHECK(papers_bytes(small, kPapersBytes, 2, 8) == (100 + 800 / 4) * 14);
  CHECK(papers_bytes(small, 10, 2, 8) == 100 * 14 + 800 * 4 + 800 / 4 * 10);
  CHECK(papers_bytes({0, 100}, kPapersBytes, 0, 0) == 1400);
  CHECK(papers_rotating_bytes(ByteMode::kEq6) == 14);
  CHECK(papers_rotating_bytes(ByteMode::kMasterFull) == 10);   // 4 of the master stay
  CHECK(papers_rotating_bytes(ByteMode::kWeightsFull) == 12);  // 2 of the weight stay

  // GPT-350M-16E: eq. 6 saves 80.9 %; with the master in every checkpoint 57.8 % (published 57.7),
  // weights alone 0.884 (0.88) and moments alone 0.538 (0.54) of full.
  const StateParameters medium = gpt(24, 1024, 16, 12);
  CHECK(1 - papers_share(medium, 16, 14) == Approx(0.809).margin(5e-4));
  CHECK(1 - papers_share(medium, 16, 10) == Approx(0.578).margin(5e-4));
  CHECK(papers_share(medium, 16, 2) == Approx(0.884).margin(5e-4));
  CHECK(papers_share(medium, 16, 8) == Approx(0.538).margin(5e-4));
  CHECK(papers_share(medium, 16, 10) == Approx(0.422).margin(5e-4));
  // GPT-125M-8E with experts in all 12 layers: 54.28 % (published 54.2).
  CHECK(1 - papers_share(gpt(12, 768, 8, 12), 8, 10) == Approx(0.5428).margin(5e-4));
}

TEST_CASE("bytes of checkpoints by rank, policy and mode are those counted by hand", "[estimate]") {
  // Ranks 0 and 2 hold experts 0 and 1, ranks 1 and 3 experts 2 and 3, of 48 + 48 + 8 bytes; all
  // hold a weight of 192 and a counter of 40 bytes; moments of 192 bytes are in four shares.
  const StateCatalog catalog = test::make_catalog({2, 4, 2, 2});
  for (const auto sharding : {config::WriteSharding::kRank0, config::WriteSharding::kAdaptive}) {
    const CheckpointEstimate estimate = estimate_checkpoints(catalog, config_of(1, sharding));
    CHECK(estimate.num_experts == 4);
    CHECK(estimate.experts == 1);
    CHECK(estimate.is_partial());
    CHECK(estimate.num_phases == 4);
    CHECK(estimate.phases_seen == 4);
    CHECK_FALSE(estimate.follows_tokens);
    CHECK(estimate.plain_full_bytes == 8 * 104 + 192 + 192 + 40);
    CHECK(estimate.replicated_bytes == 8 * 104 + 192 + 40);

    REQUIRE(estimate.policies.size() == 3);
    const auto& [rank0, equal, adaptive] =
        std::tie(estimate.policies[0], estimate.policies[1], estimate.policies[2]);
    CHECK(rank0.full.max_rank_bytes == 192 + 40 + 48 + 4 * 104);
    CHECK(rank0.full.total_bytes == 1256);
    CHECK(rank0.full.mean_rank_bytes == Approx(314));
    CHECK(rank0.full.imbalance == Approx(696.0 / 314));
    CHECK(equal.full.max_rank_bytes == 2 * 104 + 48 + 192);
    CHECK(adaptive.full.max_rank_bytes == 2 * 104 + 48 + 192);
    // One expert of each layer, on ranks 0 and 1 in turn.
    CHECK(rank0.partial.max_rank_bytes == 192 + 40 + 48 + 104);
    CHECK(equal.partial.max_rank_bytes == 104 + 48 + 192);
    CHECK(adaptive.partial.max_rank_bytes == 48 + 192);  // by a rank without an expert
    CHECK(adaptive.partial.total_bytes == 2 * 104 + 192 + 192 + 40);
    CHECK(adaptive.partial.imbalance == Approx(240 / 158.0));
    const bool is_rank0 = sharding == config::WriteSharding::kRank0;
    CHECK(estimate.full == (is_rank0 ? rank0 : adaptive).full);
    CHECK(estimate.partial == (is_rank0 ? rank0 : adaptive).partial);
    CHECK(estimate.snapshot == estimate.partial);
    CHECK(sharding_remark(estimate).empty());

    // The weight is the master, so that both modes keep its 48 bytes of the 6 other experts.
    REQUIRE(estimate.modes.size() == 3);
    CHECK(estimate.modes[0].partial.total_bytes == 632);
    CHECK(estimate.modes[1].partial.total_bytes == 632 + 6 * 48);
    CHECK(estimate.modes[2].partial == estimate.modes[1].partial);
    for (const ModeEstimate& mode : estimate.modes) CHECK(mode.full_bytes == 1256);
  }
}

TEST_CASE("weights that masters give count in the mode that keeps them only", "[estimate]") {
  const StateCatalog catalog = bf16_catalog({2, 4, 2, 2});
  const std::int64_t parameters = 8 * 12 + 48;
  CHECK(count_parameters(catalog).total() == parameters);
  const CheckpointEstimate estimate = estimate_checkpoints(catalog, config_of(1));
  CHECK(estimate.plain_full_bytes == 1256);
  CHECK(estimate.full.total_bytes == 1256);
  CHECK(estimate.papers_full_bytes == 14 * parameters);
  REQUIRE(estimate.modes.size() == 3);
  CHECK(estimate.modes[0].always_saved.empty());
  CHECK(estimate.modes[0].partial.total_bytes == 632);
  CHECK(estimate.modes[0].papers_bytes == 14 * (48 + 8 * 12 / 4));
  CHECK(estimate.modes[1].always_saved == std::vector{RoleGroup::kMaster});
  CHECK(estimate.modes[1].partial.total_bytes == 632 + 6 * 48);
  CHECK(estimate.modes[1].full_bytes == 1256);
  CHECK(estimate.modes[2].always_saved == std::vector{RoleGroup::kWeight});
  CHECK(estimate.modes[2].partial.total_bytes == 632 + 8 * 24);
  CHECK(estimate.modes[2].full_bytes == 1256 + 8 * 24);

  config::CheckpointConfig with_weights = config_of(1);
  with_weights.pec.always_saved = {"weight"};
  const CheckpointEstimate configured = estimate_checkpoints(catalog, with_weights);
  CHECK(configured.full.total_bytes == 1256 + 8 * 24);
  CHECK(configured.partial.total_bytes == 632 + 8 * 24);
  CHECK(configured.plain_full_bytes == 1256);
}

TEST_CASE("loads of experts are uneven where equation 9 says so", "[estimate]") {
  int even = 0, uneven = 0;
  for (const int layers : {1, 2, 3, 4}) {
    for (const auto& [ep, edp] : {std::pair(1, 2), {2, 1}, {2, 2}, {4, 1}, {4, 2}}) {
      for (int budget = 1; budget < 4; ++budget) {
        const CheckpointEstimate estimate =
            estimate_checkpoints(experts_only({layers, 4, ep, edp}), config_of(budget));
        const bool balanced = budget * layers % ep == 0 && budget * layers / ep % edp == 0;
        CAPTURE(layers, ep, edp, budget);
        CHECK((estimate.partial.imbalance < 1 + 1e-9) == balanced);
        ++(balanced ? even : uneven);
      }
    }
  }
  CHECK(even >= 15);
  CHECK(uneven >= 15);
  // Three experts on two ranks: two and one.
  CHECK(estimate_checkpoints(experts_only({3, 4, 2, 1}), config_of(1)).partial.imbalance ==
        Approx(2 / 1.5));
  // Two experts of one expert-parallel rank on three replicas.
  CHECK(estimate_checkpoints(experts_only({2, 4, 1, 3}), config_of(1)).partial.imbalance ==
        Approx(1 / (2 / 3.0)));
}

TEST_CASE("snapshots may hold more than what storage takes of them", "[estimate]") {
  config::CheckpointConfig config = config_of(1);
  config.non_persistent_save_interval.steps = 1;
  config.pec.experts_per_snapshot = 3;
  const CheckpointEstimate estimate =
      estimate_checkpoints(test::make_catalog({2, 4, 2, 2}), config);
  CHECK(estimate.experts_in_snapshot == 3);
  CHECK(estimate.snapshot.total_bytes == 6 * 104 + 424);
  CHECK(estimate.partial.total_bytes == 2 * 104 + 424);
}

TEST_CASE("a checkpoint of all experts is no partial one", "[estimate]") {
  for (const int budget : {0, 4}) {
    const CheckpointEstimate estimate =
        estimate_checkpoints(test::make_catalog({2, 4, 2, 2}), config_of(budget));
    CHECK_FALSE(estimate.is_partial());
    CHECK(estimate.modes.empty());
    CHECK(estimate.partial == estimate.full);
    CHECK(estimate.snapshot == estimate.full);
  }
  StateCatalog dense = test::make_catalog({1, 4, 1, 2});
  std::erase_if(dense.items, [](const StateItem& item) { return item.unit.value > 0; });
  dense.units.resize(1);
  dense.num_moe_layers = dense.num_experts = 0;
  const CheckpointEstimate estimate = estimate_checkpoints(dense, config_of(0));
  CHECK_FALSE(estimate.is_partial());
  CHECK(estimate.full.total_bytes == 2 * 96 + 40);
  CHECK(estimate.papers_full_bytes == 14 * 24);
}

TEST_CASE("a rotation too long to plan is cut short", "[estimate]") {
  const StateCatalog catalog = test::make_catalog({2, 8, 2, 1});
  CHECK(estimate_checkpoints(catalog, config_of(1)).phases_seen == 8);
  CHECK(estimate_checkpoints(catalog, config_of(1), 0).phases_seen == 2);
  CHECK(estimate_checkpoints(catalog, config_of(1), 0).num_phases == 8);
  config::CheckpointConfig by_tokens = config_of(1);
  by_tokens.pec.selection = "load_aware";
  CHECK(estimate_checkpoints(catalog, by_tokens).follows_tokens);
}

TEST_CASE("policies that change nothing are named", "[estimate]") {
  CheckpointEstimate estimate;
  const auto set = [&](std::int64_t rank0, std::int64_t equal, std::int64_t adaptive) {
    const auto policy = [](std::int64_t bytes) {
      const WriteLoad load{bytes, bytes};
      return PolicyEstimate{config::WriteSharding::kRank0, load, load};
    };
    estimate.policies = {policy(rank0), policy(equal), policy(adaptive)};
  };
  estimate.full.total_bytes = 100'000;
  set(100'000, 100'000, 100'000);
  CHECK_THAT(sharding_remark(estimate), Catch::Contains("one rank alone holds each block"));
  estimate.replicated_bytes = 2000;
  set(100'000, 99'950, 99'940);
  CHECK_THAT(sharding_remark(estimate), Catch::Contains("no policy") && Catch::Contains("2 %"));
  set(100'000, 50'000, 50'000);
  CHECK(sharding_remark(estimate) == "adaptive changes nothing against equal");
  set(50'000, 50'000, 40'000);
  CHECK(sharding_remark(estimate) == "equal changes nothing against rank0");
  set(100'000, 50'000, 40'000);
  CHECK(sharding_remark(estimate).empty());

  // One rank holds everything.
  CHECK_THAT(sharding_remark(estimate_checkpoints(test::make_catalog({1, 4, 1, 1}), config_of(1))),
             Catch::Contains("one rank alone"));
}

TEST_CASE("overhead and best interval are those of the formulas", "[estimate]") {
  CHECK(save_overhead_s(3, 1) == 2);
  CHECK(save_overhead_s(1, 3) == 0);
  // 2 s a save, a failure an hour: sqrt(2 * 2 * 3600) = 120 s.
  const double rate = 1.0 / 3600;
  CHECK(optimal_interval_s(2, rate) == Approx(120));
  CHECK(optimal_interval_s(0, rate) == 0);
  // 12000 s: 100 saves of 2 s, and 3.33 failures of 30 s and half an interval each.
  CHECK(total_overhead_s(2, 120, 12000, rate, 30) == Approx(200 + 300));
  for (const double other : {60.0, 119.0, 121.0, 240.0})
    CHECK(total_overhead_s(2, other, 12000, rate, 30) > total_overhead_s(2, 120, 12000, rate, 30));
}

TEST_CASE("costs follow from the most loaded rank and the given figures", "[estimate]") {
  CheckpointEstimate estimate;
  estimate.num_experts = 8;
  estimate.experts = 2;
  estimate.full.max_rank_bytes = 6'000'000'000;
  estimate.snapshot.max_rank_bytes = 2'000'000'000;
  estimate.partial.max_rank_bytes = 1'000'000'000;
  config::CheckpointConfig config = config_of(2);
  config.save_interval.steps = 32;
  RunFigures figures{.copy_gb_per_s = 2,
                     .write_gb_per_s = 0.5,
                     .step_ms = 2000,
                     .mtbf_hours = 2,
                     .restart_s = 100};
  const CostEstimate costs = estimate_costs(estimate, config, 1280, figures);
  CHECK(costs.full.snapshot_s.value() == Approx(3));
  CHECK(costs.full.persist_s.value() == Approx(12));
  CHECK(costs.full.overhead_s.value() == Approx(1));
  CHECK(costs.full.min_interval_s.value() == Approx(15));  // one buffer: one after the other
  // sqrt(2 * 1 * 7200) = 120 s.
  CHECK(costs.full.optimal.value().steps == 60);
  CHECK(costs.full.optimal->seconds.value() == Approx(120));
  CHECK(costs.full.optimal->lost_steps == 30);
  CHECK(costs.full.optimal->plt == 0);
  // 2560 s of training: 2560/120 saves of 1 s, and 2560/7200 failures of 100 + 60 s.
  CHECK(costs.full.optimal->total_overhead_s.value() == Approx(2560.0 / 120 + 2560.0 / 7200 * 160));
  CHECK(costs.full.optimal->overhead_share.value() == Approx(1.0 / 120 + 160.0 / 7200));
  CHECK(costs.full.configured.value().seconds.value() == Approx(64));
  CHECK(costs.full.configured->total_overhead_s.value() ==
        Approx(2560.0 / 64 + 2560.0 / 7200 * 132));
  CHECK(costs.expected_failures.value() == Approx(2560.0 / 7200));

  // The partial one hides: then storage bounds the interval, 1 + 2 s in steps of 2 s.
  CHECK(costs.partial.overhead_s.value() == 0);
  CHECK(costs.partial.min_interval_s.value() == Approx(3));
  CHECK(costs.partial.optimal.value().steps == 2);
  CHECK(costs.partial.optimal->total_overhead_s.value() == Approx(2560.0 / 7200 * 102));
  // The anchor of papers on PEC: 3.75 %.
  CHECK(costs.partial.configured.value().plt == Approx(0.0375));
  CHECK(costs.partial.configured->lost_steps == 16);

  SECTION("storage that is slower than the best interval sets it") {
    figures.write_gb_per_s = 0.01;  // 600 s
    const CostEstimate slow = estimate_costs(estimate, config, 1280, figures);
    CHECK(slow.full.optimal.value().steps == 302);  // ceil(603 / 2)
  }
  SECTION("an interval in seconds") {
    config.save_interval = {0, 5};
    CHECK(estimate_costs(estimate, config, 1280, figures).full.configured.value().steps == 3);
    figures.step_ms.reset();
    CHECK_FALSE(estimate_costs(estimate, config, 1280, figures).full.configured);
  }
  SECTION("snapshots in memory cost as often as they are taken, and overlap with writing") {
    config.non_persistent_save_interval.steps = 8;
    const CostEstimate memory = estimate_costs(estimate, config, 1280, figures);
    CHECK(memory.full.min_interval_s.value() == Approx(12));
    CHECK(memory.full.configured.value().total_overhead_s.value() ==
          Approx(2560.0 / 16 + 2560.0 / 7200 * 132));
  }
  SECTION("what needs a figure that is not given is left out") {
    const CostEstimate none = estimate_costs(estimate, config, 1280, {});
    CHECK_FALSE((none.full.snapshot_s || none.full.persist_s || none.full.overhead_s ||
                 none.full.min_interval_s || none.full.optimal || none.expected_failures));
    CHECK(none.partial.configured.value().plt == Approx(0.0375));
    CHECK_FALSE((none.partial.configured->seconds || none.partial.configured->total_overhead_s));
    const CostEstimate timeless = estimate_costs(estimate, config, 1280, {.copy_gb_per_s = 2});
    CHECK(timeless.full.snapshot_s.value() == Approx(3));
    CHECK_FALSE((timeless.full.overhead_s || timeless.full.min_interval_s));
    figures.write_gb_per_s.reset();
    const CostEstimate unbounded = estimate_costs(estimate, config, 1280, figures);
    CHECK(unbounded.partial.optimal.value().steps == 1);
    config.save_interval = {};
    CHECK_FALSE(estimate_costs(estimate, config, 1280, figures).full.configured);
  }
}
