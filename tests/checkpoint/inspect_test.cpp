#include <algorithm>

#include <nlohmann/json.hpp>

#include <pecan/checkpoint/exactness.hpp>
#include <pecan/checkpoint/inspect.hpp>
#include <pecan/checkpoint/plan.hpp>
#include <pecan/checkpoint/render.hpp>

#include "checkpoint/job.hpp"
#include "support/catch.hpp"
#include "support/memory_file_system.hpp"

using namespace pecan;
using namespace pecan::checkpoint;
using Catch::Matchers::Contains;
using test::Job;
using test::job_options;
using test::make_catalog;
using test::MemoryFileSystem;

namespace {

/// Trains `steps` steps of a run in `fs`, alone; what the recovery before them was.
Recovered train(MemoryFileSystem& fs,
                const StateCatalog& catalog,
                const test::JobOptions& options,
                int steps) {
  Recovered recovered;
  comm::run_thread_group(1, [&](comm::Group& world) {
    Job job(fs, catalog, options, world);
    recovered = job.recovered();
    recovered.identity.lock.reset();
    job.train(steps);
  });
  return recovered;
}

/// Two token slots of each expert a step, in a training of ten steps of eight slots a layer.
std::string extra_of(Step step) {
  const std::vector<std::int64_t> layer(4, 2 * step.value);
  return nlohmann::json{{"routed", {layer, layer}},
                        {"topk", 1},
                        {"global_batch_size", 2},
                        {"seq_length", 4},
                        {"train_iters", 10}}
      .dump();
}

std::string line_with(const std::string& text, const std::string& word) {
  const std::size_t at = text.find(word);
  if (at == std::string::npos) return "no line with " + word;
  const std::size_t begin = text.rfind('\n', at) + 1;
  return text.substr(begin, text.find('\n', at) - begin);
}

}  // namespace

TEST_CASE("a state is exact or mixed, and says what that means in a line", "[inspect]") {
  const StateCatalog catalog = make_catalog({2, 4, 1, 1});
  const auto plan = [&](std::int64_t moments_of_three) {
    RestorePlan restore{{Incarnation{1}, Step{9}}, {}};
    for (const UnitGroup& key : unit_groups(catalog)) {
      const bool third = key.first == UnitIndex{3} && key.second == RoleGroup::kMoments;
      const Step step{third ? moments_of_three : 9};
      restore.restores.push_back({key.first, key.second, {Incarnation{1}, step}, "", {}});
    }
    return restore;
  };
  const Exactness exact = exactness_of(plan(9), catalog);
  CHECK(exact == Exactness{Step{9}, 8, 0, 0});
  CHECK(exact.exact());
  CHECK(describe(exact, 0.0) ==
        "exact: everything is of step 9; on the same layout training goes on bit for bit as if it "
        "had not stopped");
  // One role group of one expert is enough.
  const Exactness mixed = exactness_of(plan(4), catalog);
  CHECK(mixed == Exactness{Step{9}, 8, 1, 5});
  CHECK(describe(mixed, 0.0125) ==
        "mixed: 1 of 8 experts are older than step 9, by up to 5 steps; their updates since are "
        "lost (PLT 1.250 %), and training goes on from there, but not bit for bit as if it had not "
        "stopped");
  CHECK_THAT(describe(mixed, {}), !Contains("PLT"));
}

TEST_CASE("the inspector says whether recoveries are exact", "[inspect]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({2, 4, 1, 1});
  test::JobOptions options = job_options(1);
  options.checkpoint.keep_latest_k = 10;
  options.extra = extra_of;
  // Full at 1; of each layer one expert more at 2, 3 and 4.
  train(fs, catalog, options, 4);
  const RunReport report = inspect_run(fs, "run", Verify::kNo);
  REQUIRE(report.checkpoints.size() == 4);
  const auto facts = [&](std::size_t c) { return report.checkpoints[c].recovery.value(); };
  CHECK(facts(0).exactness == Exactness{Step{1}, 8, 0, 0});
  CHECK(facts(0).plt == 0);
  CHECK(facts(1).exactness == Exactness{Step{2}, 8, 6, 1});
  CHECK(facts(3).exactness == Exactness{Step{4}, 8, 6, 3});
  // Experts of steps 1, 2, 3 and 4 lack 3, 2, 1 and 0 steps of two slots of the layer's 80.
  CHECK(*facts(3).plt == Approx(2.0 * (3 + 2 + 1) / 80));
  CHECK_FALSE(report.last_recovery.has_value());

  const std::string summary = render_summary(report, Format::kText);
  CHECK(line_with(summary, "recovery now") ==
        "  recovery now       " + describe(facts(3).exactness, facts(3).plt));
  CHECK_THAT(summary, !Contains("last recovery"));
  CHECK_THAT(render_show(report, Step{1}, Format::kText),
             Contains("recovery from it is exact: everything is of step 1"));
  CHECK_THAT(
      render_show(report, Step{2}, Format::kText),
      Contains("recovery from it is mixed: 6 of 8 experts are older than step 2, by up to 1"));
  auto json = nlohmann::json::parse(render_show(report, Step{4}, Format::kJson)).at("recovery");
  CHECK(json.at("exact") == false);
  CHECK(json.at("older_experts") == 6);
  CHECK(json.at("most_steps_older") == 3);
  CHECK(json.at("plt").get<double>() == Approx(0.15));
  CHECK(json.at("meaning") == describe(facts(3).exactness, facts(3).plt));
  json = nlohmann::json::parse(render_summary(report, Format::kJson));
  CHECK(json.at("last_recovery").is_null());
  CHECK(json.at("newest").at("recovery").at("older_experts") == 6);

  // The plan that a recovery makes says the same.
  const Recovered recovered = train(fs, catalog, options, 0);
  CHECK(exactness_of(recovered.report.plan, catalog) == facts(3).exactness);
}

TEST_CASE("the inspector tells of the recovery that the newest start began with", "[inspect]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({2, 4, 1, 1});
  test::JobOptions options = job_options(4);
  train(fs, catalog, options, 2);
  options.extra = [](Step) {
    return R"({"recovery": {"step": 2, "experts": 8, "older_experts": 3, "most_steps_older": 7,
               "plt_now": 0.02}})";
  };
  train(fs, catalog, options, 1);
  const RunReport report = inspect_run(fs, "run", Verify::kNo);
  REQUIRE(report.last_recovery.has_value());
  CHECK(report.last_recovery->exactness == Exactness{Step{2}, 8, 3, 7});
  const std::string summary = render_summary(report, Format::kText);
  CHECK_THAT(line_with(summary, "last recovery"),
             Contains("mixed: 3 of 8 experts are older than step 2, by up to 7 steps") &&
                 Contains("PLT 2.000 %"));
  CHECK_THAT(line_with(summary, "recovery now"), Contains("exact: everything is of step 3"));
  const auto json = nlohmann::json::parse(render_summary(report, Format::kJson));
  CHECK(json.at("last_recovery").at("exact") == false);
  CHECK(json.at("last_recovery").at("plt") == 0.02);
}
