#include "launch/policy.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace pecan::launch {
namespace {

using Strings = std::vector<std::string>;

TEST_CASE("every exit code has its ending and consequence", "[launch]") {
  struct Case {
    int code;
    Ending ending;
    bool restart;
    std::string name;
  };
  for (const Case& c : std::vector<Case>{{0, Ending::kDone, false, "done"},
                                         {75, Ending::kStopped, false, "stopped"},
                                         {2, Ending::kRefused, false, "refused"},
                                         {3, Ending::kRefused, false, "refused"},
                                         {4, Ending::kCheckpoint, true, "checkpoint"},
                                         {5, Ending::kPeerLost, true, "peer_lost"},
                                         {6, Ending::kDiverged, true, "diverged"},
                                         {70, Ending::kInternal, true, "internal"},
                                         {129, Ending::kSignal, true, "signal"},
                                         {137, Ending::kSignal, true, "signal"},
                                         {139, Ending::kSignal, true, "signal"},
                                         {143, Ending::kSignal, true, "signal"},
                                         {192, Ending::kSignal, true, "signal"},
                                         {205, Ending::kHostLost, true, "host_lost"},
                                         {1, Ending::kOther, true, "other"},
                                         {128, Ending::kOther, true, "other"},
                                         {193, Ending::kOther, true, "other"},
                                         {255, Ending::kOther, true, "other"}}) {
    CAPTURE(c.code);
    CHECK(classify(c.code) == c.ending);
    CHECK(calls_for_restart(c.ending) == c.restart);
    CHECK(name_of(c.ending) == c.name);
  }
  CHECK(calls_for_restart(Ending::kHung));
  CHECK(name_of(Ending::kHung) == "hung");
}

TEST_CASE("an exit code that heartbeats contradict is none of pecan-train's", "[launch]") {
  const auto beats = [](std::vector<RunPhase> phases) {
    std::vector<HeartbeatRecord> all;
    for (const RunPhase phase : phases) {
      all.emplace_back();
      all.back().rank = Rank{int(all.size()) - 1};
      all.back().phase = phase;
    }
    return all;
  };
  using enum RunPhase;
  CHECK_FALSE(contradicts(Ending::kDone, beats({kDone, kDone}), 2));
  CHECK(contradicts(Ending::kDone, beats({kDone, kDraining}), 2));
  CHECK(contradicts(Ending::kDone, beats({kTraining, kDone}), 2));
  CHECK_FALSE(contradicts(Ending::kDone, beats({kTraining}), 2));
  CHECK_FALSE(contradicts(Ending::kDone, {}, 2));
  CHECK_FALSE(contradicts(Ending::kStopped, beats({kDraining, kDone}), 2));
  CHECK(contradicts(Ending::kStopped, beats({kDraining, kTraining}), 2));
  CHECK_FALSE(contradicts(Ending::kSignal, beats({kTraining, kTraining}), 2));
}

TEST_CASE("restarts in a row without a checkpoint are counted, and wait longer", "[launch]") {
  config::ElasticConfig config;
  config.max_restarts = 5;
  config.restart_backoff_s = 2;
  config.restart_backoff_max_s = 7;
  RestartPolicy policy(config, 10);
  struct Case {
    std::int64_t step;
    Progress progress;
    bool restart;
    int in_row;
    double backoff_s;
  };
  int row = 0;
  for (const Case& c : std::vector<Case>{{10, Progress::kNone, true, 1, 0},
                                         {10, Progress::kNone, true, 2, 2},
                                         {10, Progress::kNone, true, 3, 4},
                                         {12, Progress::kMade, true, 1, 0},
                                         {12, Progress::kNone, true, 2, 2},
                                         {11, Progress::kNone, true, 3, 4},  // rolled back
                                         {12, Progress::kNone, true, 4, 7},
                                         {12, Progress::kNone, true, 5, 7},
                                         {12, Progress::kNone, false, 5, 0}}) {
    CAPTURE(row++);
    const RestartPolicy::Decision decision = policy.after_failure(c.step);
    CHECK(decision == RestartPolicy::Decision{c.progress, c.restart, c.in_row, c.backoff_s});
  }
}

TEST_CASE("without restarts the first failure is the last, unless it brought a checkpoint",
          "[launch]") {
  config::ElasticConfig config;
  config.max_restarts = 0;
  RestartPolicy policy(config, -1);
  CHECK_FALSE(policy.after_failure(-1).restart);
  // No restart in a row is allowed, and progress does not change that.
  CHECK_FALSE(policy.after_failure(3).restart);
}

TEST_CASE("a first checkpoint is progress", "[launch]") {
  RestartPolicy policy({}, -1);
  CHECK(policy.after_failure(-1).progress == Progress::kNone);
  CHECK(policy.after_failure(0).progress == Progress::kMade);
  CHECK(policy.after_failure(0).progress == Progress::kNone);
}

TEST_CASE("no start repeats one that diverged for the second time", "[launch]") {
  using enum DivergencePolicy::Verdict;
  struct Case {
    Divergence divergence;
    DivergencePolicy::Verdict verdict;
  };
  for (const std::vector<Case>& cases : std::vector<std::vector<Case>>{
           {{{8, true}, kRepeatable}},
           // Once more, as the hardware may have been to blame; then it must have got further.
           {{{8, false}, kRestart}, {{8, false}, kNotPassed}},
           {{{8, false}, kRestart}, {{6, false}, kNotPassed}},
           {{{8, false}, kRestart}, {{9, false}, kRestart}, {{9, false}, kNotPassed}},
           {{{8, false}, kRestart}, {{8, true}, kRepeatable}},
           {{{8, false}, kRestart}, {{12, true}, kRepeatable}}}) {
    DivergencePolicy policy;
    for (const Case& c : cases) {
      CAPTURE(c.divergence.step, c.divergence.repeatable);
      CHECK(policy.after(c.divergence) == c.verdict);
    }
  }
}

TEST_CASE("a host to blame twice in a row without progress is set aside", "[launch]") {
  HostRecord record;
  const auto blame = [&](const Strings& hosts, Progress progress = Progress::kNone) {
    return record.after_failure(hosts, progress);
  };
  CHECK(blame({"a"}).empty());
  CHECK(blame({"b"}).empty());
  CHECK(blame({"a"}).empty());  // b lay between
  CHECK(blame({"a"}, Progress::kMade).empty());
  CHECK_FALSE(record.is_set_aside("a"));
  CHECK(blame({"a", "c"}) == Strings{"a"});
  CHECK(record.is_set_aside("a"));
  CHECK(blame({"a", "c"}) == Strings{"c"});
  CHECK(blame({}).empty());
  CHECK(blame({"b"}).empty());
  CHECK(blame({}).empty());
  CHECK(blame({"b"}).empty());  // a failure of nobody lay between
  CHECK(record.is_set_aside("a"));
}

TEST_CASE("a host set aside is used where nothing else holds a layout", "[launch]") {
  const auto config = config::parse_config(
      "model: {num_layers: 2, hidden_size: 64, num_attention_heads: 4, vocab_size: 100}\n"
      "data: {data_path: x}\n"
      "elastic: {layouts: [{world_size: 4}, {world_size: 2}]}");
  HostRecord record;
  for (int i = 0; i < 2; ++i) record.after_failure(Strings{"a"}, Progress::kNone);
  REQUIRE(record.is_set_aside("a"));
  const auto names = [](const std::optional<Assignment>& assignment) {
    std::string all;
    if (assignment) {
      for (const Host& host : assignment->hosts) all += host.name;
    }
    return all;
  };
  using Hosts = std::vector<Host>;
  CHECK(names(record.assign(config, Hosts{{"a", 2}, {"b", 2}, {"c", 2}})) == "bc");  // a spare
  CHECK(names(record.assign(config, Hosts{{"a", 2}, {"b", 2}})) == "b");  // a smaller layout
  CHECK(names(record.assign(config, Hosts{{"a", 2}, {"b", 1}})) == "a");
  CHECK(names(record.assign(config, Hosts{{"a", 1}})).empty());
}

TEST_CASE("a host set aside is taken back where it alone has a rank's snapshots", "[launch]") {
  const auto blamed = [](const Strings& hosts) {
    HostRecord record;
    for (int i = 0; i < 2; ++i) record.after_failure(hosts, Progress::kNone);
    return record;
  };
  struct Case {
    Strings set_aside;
    SnapshotHolders held;
    Strings back;
  };
  int row = 0;
  for (const Case& c : std::vector<Case>{
           {{"b"}, {}, {}},
           {{"b"}, {{"a", {0, 1}}, {"b", {2, 3}}, {"c", {4, 5}}}, {"b"}},  // no copies
           // Copies on the next host each; then that one is lost too, or has lost its memory.
           {{"b"}, {{"a", {0, 1, 4, 5}}, {"b", {0, 1, 2, 3}}, {"c", {2, 3, 4, 5}}}, {}},
           {{"b"}, {{"a", {0, 1, 4, 5}}, {"b", {0, 1, 2, 3}}}, {"b"}},
           {{"b"}, {{"a", {0, 1, 4, 5}}}, {}},
           // Not where another part is lost for good.
           {{"b"}, {{"b", {2, 3}}, {"c", {4, 5}}}, {}},
           // One of two is enough, and both where both are needed.
           {{"b", "c"}, {{"a", {0}}, {"b", {1, 2}}, {"c", {2}}}, {"b"}},
           {{"b", "c"}, {{"a", {0}}, {"b", {1}}, {"c", {2}}}, {"b", "c"}},
       }) {
    CAPTURE(row++);
    HostRecord record = blamed(c.set_aside);
    CHECK(record.take_back(c.held) == c.back);
    for (const std::string& host : c.set_aside)
      CHECK(record.is_set_aside(host) == (std::ranges::count(c.back, host) == 0));
  }
}

TEST_CASE("a host is taken back once until the run makes progress, and not to what is past",
          "[launch]") {
  const SnapshotHolders held = {{"a", {0}}, {"b", {1}}};
  HostRecord record;
  const auto fail = [&](const Strings& hosts, Progress progress = Progress::kNone) {
    return record.after_failure(hosts, progress);
  };
  fail({"b"});
  CHECK(fail({"b"}) == Strings{"b"});
  CHECK(record.take_back(held) == Strings{"b"});
  CHECK(record.take_back(held).empty());
  CHECK(fail({"b"}) == Strings{"b"});  // the third time in a row
  CHECK(record.take_back(held).empty());
  CHECK(record.is_set_aside("b"));

  record = {};
  fail({"b"});
  fail({"b"});
  // The run goes on without it: its memory is of the past.
  CHECK(fail({"a"}, Progress::kMade).empty());
  CHECK(record.take_back(held).empty());

  record = {};
  fail({"b"});
  fail({"b"});
  CHECK(record.take_back(held) == Strings{"b"});
  // With it the run makes progress: all begins anew.
  CHECK(fail({"b"}, Progress::kMade).empty());
  CHECK(fail({"b"}) == Strings{"b"});
  CHECK(record.take_back(held) == Strings{"b"});
}

}  // namespace
}  // namespace pecan::launch
