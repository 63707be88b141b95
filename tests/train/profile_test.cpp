#include <map>
#include <set>
#include <sstream>

#include "train/lab.hpp"
#include "train/profile_session.hpp"

namespace pecan::test {
namespace {

using nlohmann::json;

json trace(const Lab& lab, const std::string& run, int rank) {
  std::ifstream in(train::trace_path(lab.path(run), Rank{rank}));
  REQUIRE(in.good());
  return json::parse(in);
}

/// Nanoseconds of a trace's time, which is written with three decimals of a microsecond.
std::int64_t ns(const json& event, const char* key) {
  return std::llround(event.at(key).get<double>() * 1000);
}

/// What breaks the rule that spans of a thread nest, and that what begins in flight ends.
std::string disorder(const json& events) {
  std::map<std::pair<int, int>, std::vector<std::pair<std::int64_t, std::string>>> open;
  std::map<std::string, std::int64_t> flying;
  for (const json& event : events) {
    const std::string phase = event.at("ph");
    if (phase == "b") flying[event.at("id")] = ns(event, "ts");
    if (phase == "e") {
      const auto begun = flying.find(event.at("id"));
      if (begun == flying.end() || begun->second > ns(event, "ts")) return event.dump();
      flying.erase(begun);
    }
    if (phase != "X") continue;
    const std::int64_t begin = ns(event, "ts"), end = begin + ns(event, "dur");
    auto& stack = open[{event.at("pid"), event.at("tid")}];
    while (!stack.empty() && stack.back().first <= begin) stack.pop_back();
    if (end < begin || (!stack.empty() && stack.back().first < end)) return event.dump();
    stack.emplace_back(end, event.at("name"));
  }
  return flying.empty() ? "" : flying.begin()->first + " never ends";
}

std::int64_t arg(const json& event, const char* key) {
  return event.at("args").value(key, std::int64_t{0});
}

ExitCode train_profiled(Lab& lab,
                        const std::string& name,
                        const std::vector<std::string>& settings,
                        const train::ProfileOptions& profile,
                        std::string* output = nullptr) {
  std::ostringstream out;
  std::vector<ExitCode> codes(kWorld);
  const config::Config config = lab.config(settings);
  comm::run_thread_group(kWorld, [&](comm::Group& world) {
    const train::RunOptions options{.run_directory = lab.path(name),
                                    .out = world.rank().value == 0 ? &out : nullptr,
                                    .profile = profile};
    codes[std::size_t(world.rank().value)] = train::run(config, options, lab.fs(), world);
  });
  if (output != nullptr) *output = out.str();
  return codes[0];
}

}  // namespace

TEST_CASE("a profile holds the steps asked for, nested, with the work that the model has",
          "[profile]") {
  Lab lab;
  const std::vector<std::string> settings = {
      "training.train_iters=7", "training.threads=1", "checkpoint.save_interval=3"};
  std::string output;
  REQUIRE(train_profiled(lab, "run", settings, {Step{2}, Step{5}}, &output) == ExitCode::kDone);
  std::int64_t product_flops = 0, attention_flops = 0;
  for (int rank = 0; rank < kWorld; ++rank) {
    CAPTURE(rank);
    const json document = trace(lab, "run", rank);
    const json& events = document.at("traceEvents");
    CHECK(disorder(events) == "");
    CHECK(document.at("otherData").at("cut_spans") == 0);
    std::vector<std::int64_t> steps;
    std::int64_t in_steps = 0, self = 0;
    std::set<std::string> names;
    for (const json& event : events) {
      CHECK(event.at("pid") == rank);
      if (event.at("ph") != "X") continue;
      const std::string name = event.at("name");
      names.insert(name);
      if (name == "step") {
        steps.push_back(arg(event, "step"));
        in_steps += ns(event, "dur");
      }
      if (name.find("matmul") != std::string::npos) product_flops += arg(event, "flops");
      if (name.starts_with("attention")) attention_flops += arg(event, "flops");
    }
    CHECK(steps == std::vector<std::int64_t>{2, 3, 4, 5});
    for (const json& sum : document.at("otherData").at("sums"))
      if (sum.at("thread") == "main") self += sum.at("self_ns").get<std::int64_t>();
    CHECK(self == in_steps);
    for (const char* name : {"data",
                             "forward",
                             "layer",
                             "head",
                             "backward",
                             "layer backward",
                             "exchange",
                             "norms",
                             "vote",
                             "update",
                             "begin save",
                             "snapshot",
                             "persist",
                             "adamw_update",
                             "all_to_all_v dispatch",
                             "all_reduce gradients",
                             "all_reduce grad_norm",
                             "all_reduce step_flags"}) {
      CAPTURE(name);
      CHECK(names.contains(name));
    }
    CHECK(names.contains("commit") == (rank == 0));
  }
  // From the configuration: 8 sequences of 16 tokens a step, 2 layers, hidden 16, 2 heads, 8
  // experts of 8, of which 2 a token, 50 words padded to 56. Each weight is multiplied three times.
  const std::int64_t steps = 4, tokens = 8 * 16, layers = 2, hidden = 16;
  const std::int64_t weights =
      layers * (4 * hidden * hidden + 8 * hidden + 2 * 3 * hidden * 8) + 56 * hidden;
  CHECK(product_flops == steps * 3 * 2 * tokens * weights);
  // Each token and those before it, in products with two forward and five backward.
  CHECK(attention_flops == steps * layers * 8 * (16 * 17 / 2) * (2 + 5) * 2 * hidden);
  // Printed and kept.
  const Result<std::string> table = read_text(lab.fs(), lab.path("run/profile/operators.txt"));
  REQUIRE(table.ok());
  CHECK(output.find(table.value()) != std::string::npos);
  CHECK(table.value().starts_with("profile     4 steps of rank 0 with 1 threads"));
}

TEST_CASE("a profile's bytes are those that the metrics tell of the same steps", "[profile]") {
  Lab lab;
  // All steps: metrics and profile begin and end a step at the same collectives.
  REQUIRE(train_profiled(lab,
                         "run",
                         {"training.train_iters=3",
                          "parallel.tensor_model_parallel_size=2",
                          "parallel.sequence_parallel=true",
                          "parallel.overlap_grad_reduce=true",
                          "parallel.data_parallel_sharding_strategy=optim"},
                         {Step{1}, Step{3}}) == ExitCode::kDone);
  std::map<std::string, std::int64_t> told, profiled;
  for (const json& record : lab.metrics("run", "step")) {
    for (const auto& [purpose, traffic] : record.at("traffic").items())
      told[purpose] += traffic.at("bytes").get<std::int64_t>();
  }
  const json document = trace(lab, "run", 0);
  CHECK(disorder(document.at("traceEvents")) == "");
  for (const json& sum : document.at("otherData").at("sums")) {
    if (sum.at("kind") == "collective")
      profiled[sum.at("detail")] += sum.at("bytes").get<std::int64_t>();
  }
  std::erase_if(told, [](const auto& entry) { return entry.second == 0; });
  std::erase_if(profiled, [](const auto& entry) { return entry.second == 0; });
  CHECK(profiled.size() >= 5);
  CHECK(profiled == told);
}

TEST_CASE("without steps a profile is of what follows the first two, and training stays the same",
          "[profile]") {
  Lab lab;
  const std::vector<std::string> settings = {"training.train_iters=5",
                                             "logging.content_hash_interval=5"};
  REQUIRE(train_profiled(lab, "profiled", settings, {}) == ExitCode::kDone);
  REQUIRE(lab.train("plain", settings) == ExitCode::kDone);
  const json facts = trace(lab, "profiled", 0).at("otherData");
  CHECK(facts.at("first_step") == 3);
  CHECK(facts.at("last_step") == 5);
  CHECK(facts.at("world") == kWorld);
  CHECK(lab.metrics("profiled", "content") == lab.metrics("plain", "content"));
  CHECK_FALSE(lab.fs().exists(lab.path("plain/profile")));
}

TEST_CASE("a profile of steps that are not trained is refused with a warning", "[profile]") {
  Lab lab;
  const ExpectLog log;
  REQUIRE(train_profiled(lab, "run", {"training.train_iters=2"}, {Step{8}, Step{9}}) ==
          ExitCode::kDone);
  CHECK(log.contains("trained none of the steps 8 to 9"));
  CHECK_FALSE(lab.fs().exists(lab.path("run/profile")));
}

TEST_CASE("the table tells rates and the nearer limit", "[profile]") {
  const device::MachineLimits limits{
      .f32_flops = 100e9, .f64_flops = 50e9, .bf16_flops = 200e9, .memory_bytes = 10e9};
  constexpr std::int64_t kSecond = 1'000'000'000;
  std::vector<ProfileRow> rows(4);
  rows[0] = {.kind = SpanKind::kStep,
             .name = "step",
             .calls = 2,
             .self_ns = kSecond,
             .total_ns = 4 * kSecond};
  rows[1] = {.kind = SpanKind::kOperator,
             .name = "product",
             .calls = 3,
             .self_ns = 2 * kSecond,
             .total_ns = 2 * kSecond,
             .bytes = 2 * kSecond,
             .f32_flops = 60 * kSecond,
             .bf16_flops = 80 * kSecond};
  rows[2] = {.kind = SpanKind::kOperator,
             .name = "copy",
             .calls = 1,
             .self_ns = kSecond / 2,
             .total_ns = kSecond / 2,
             .bytes = 4 * kSecond};
  rows[3] = {.kind = SpanKind::kCollective,
             .name = "all_reduce",
             .detail = "gradients",
             .calls = 1,
             .self_ns = kSecond / 2,
             .total_ns = kSecond / 2,
             .flight_ns = kSecond,
             .bytes = 3 * kSecond};
  const std::string text = train::describe(rows, {}, limits, 2);
  CAPTURE(text);
  const auto line = [&](const std::string& start) {
    std::istringstream in(text);
    std::vector<std::string> words;
    for (std::string each; std::getline(in, each);) {
      if (!each.starts_with(start)) continue;
      std::istringstream parts(each);
      for (std::string word; parts >> word;) words.push_back(word);
    }
    return words;
  };
  using Words = std::vector<std::string>;
  CHECK(line("product") == Words{"product", "3", "2.0000", "50.0%", "70.0", "1.0", "50%", "flops"});
  CHECK(line("copy") == Words{"copy", "1", "0.5000", "12.5%", "8.0", "80%", "bytes"});
  CHECK(line("all_reduce") == Words{"all_reduce", "gradients", "1", "0.5000", "12.5%", "3.0"});
  CHECK(line("step") == Words{"step,", "rest", "2", "1.0000", "25.0%"});
  // Of a device no limits are known.
  const std::string of_device = train::describe(rows, {}, std::nullopt, 2);
  CHECK(of_device.find("limits      of the device are not measured") != std::string::npos);
  CHECK(of_device.find("50% flops") == std::string::npos);
  CHECK(of_device.find(" 70.0      1.0") != std::string::npos);
}

}  // namespace pecan::test
