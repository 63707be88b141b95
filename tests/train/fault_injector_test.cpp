#include "train/fault_injector.hpp"

#include <chrono>
#include <set>

#include "support/catch.hpp"
#include "support/memory_file_system.hpp"
#include "support/support.hpp"
#include "train/faulty_disk.hpp"
#include "train/lab.hpp"

using namespace pecan;
using namespace pecan::train;
using test::ExpectLog;
using test::Lab;

namespace {

std::vector<config::Fault> faults(const std::string& text) {
  return config::faults_of({}, text);
}

}  // namespace

TEST_CASE("random steps and ranks follow from seed, place and start alone", "[train]") {
  std::set<std::int64_t> steps;
  std::set<int> ranks;
  for (int seed = 0; seed < 200; ++seed) {
    const auto list = faults(fmt::format("kill step=4-9 rank=random start=every seed={}", seed));
    const auto resolved = resolve_faults(list, Incarnation{3}, 5);
    REQUIRE(resolved.size() == 1);
    steps.insert(resolved[0].step);
    ranks.insert(resolved[0].rank);
    const auto again = resolve_faults(list, Incarnation{3}, 5);
    CHECK(again[0].step == resolved[0].step);
    CHECK(again[0].rank == resolved[0].rank);
  }
  CHECK(steps == std::set<std::int64_t>{4, 5, 6, 7, 8, 9});
  CHECK(ranks == std::set<int>{0, 1, 2, 3, 4});
  // Other starts, and other places in the list, draw anew.
  const auto list = faults("nan step=1-1000 start=every; nan step=1-1000 start=every");
  const auto first = resolve_faults(list, Incarnation{0}, 2);
  CHECK(first[0].step != first[1].step);
  CHECK(first[0].step != resolve_faults(list, Incarnation{1}, 2)[0].step);
}

TEST_CASE("a fault strikes its start, and its rank, its node or all ranks", "[train]") {
  const auto list = faults(
      "kill step=1 start=2; kill step=1; exit step=1 start=every rank=every;"
      "stop step=1 node=n1 start=every");
  CHECK(resolve_faults(list, Incarnation{0}, 2).size() == 3);
  const auto resolved = resolve_faults(list, Incarnation{2}, 2);
  REQUIRE(resolved.size() == 3);
  CHECK(resolved[0].strikes(Rank{0}, "n1"));
  CHECK_FALSE(resolved[0].strikes(Rank{1}, "n1"));
  CHECK(resolved[1].strikes(Rank{1}, "n2"));
  CHECK(resolved[2].strikes(Rank{7}, "n1"));
  CHECK_FALSE(resolved[2].strikes(Rank{0}, "n2"));
  CHECK(resolved[0].text() == "kill at step 1 on rank 0");
  CHECK(resolved[2].text() == "stop at step 1 on host n1");
}

TEST_CASE("faults that could never strike are refused", "[train]") {
  const auto refusal = [](const std::string& text, const std::vector<std::string>& settings) {
    try {
      check_faults(faults(text), config::parse_config("", settings));
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const std::vector<std::string> no_saves{"checkpoint.save_interval=0"};
  for (const char* text :
       {"kill step=2 phase=vote", "corrupt step=2", "fill_disk step=2", "slow_disk step=2"}) {
    CHECK_THAT(refusal(text, no_saves), Catch::Contains("checkpoint.save_interval=0 writes none"));
    CHECK(refusal(text, {"checkpoint.save_interval=2"}).empty());
  }
  CHECK(refusal("kill step=2", no_saves).empty());
  CHECK_THAT(refusal("nan step=11", {"training.train_iters=10"}),
             Catch::Contains("train_iters=10"));
  const std::vector<std::string> saves{"training.train_iters=10", "checkpoint.save_interval=2"};
  CHECK_THAT(refusal("kill step=10 phase=vote", saves), Catch::Contains("has no phases"));
  CHECK(refusal("kill step=9 phase=vote", saves).empty());
  CHECK(refusal("kill step=10", {"training.train_iters=10"}).empty());
}

TEST_CASE("a full disk refuses writes and nothing else, and a slow one takes its time", "[train]") {
  test::MemoryFileSystem inner;
  FaultyDisk disk(inner);
  REQUIRE(disk.create_directories("/d").ok());
  Result<std::unique_ptr<File>> file = disk.open("/d/f", OpenMode::kCreate);
  REQUIRE(file.ok());
  const std::vector<std::byte> bytes(1000, std::byte(7));
  CHECK(file.value()->write_at(0, bytes).ok());
  disk.fill();
  const Status full = file.value()->write_at(1000, bytes);
  CHECK(full.code == StatusCode::kNoSpace);
  CHECK_THAT(full.message, Catch::Contains("writing /d/f failed: No space left on device"));
  CHECK(file.value()->size().value() == 1000);
  std::vector<std::byte> read(1000);
  CHECK(file.value()->read_at(0, read).value() == 1000);
  CHECK(file.value()->sync().ok());
  CHECK(disk.rename("/d/f", "/d/g").ok());
  disk.mend();
  disk.slow_down(10'000);
  const auto begin = std::chrono::steady_clock::now();
  CHECK(file.value()->write_at(1000, bytes).ok());
  CHECK(std::chrono::steady_clock::now() - begin >= std::chrono::milliseconds(100));
  CHECK(file.value()->size().value() == 2000);
}

TEST_CASE("faults are announced, and one for a rank that is not there is a warning", "[train]") {
  Lab lab;
  const ExpectLog expected;
  CHECK(lab.train("run",
                  {"training.train_iters=2",
                   "fault.inject=[kill step=2 rank=7, nan step=1 start=3]"}) == ExitCode::kDone);
  CHECK(expected.contains("injected on purpose into start 0: kill at step 2 on rank 7"));
  CHECK(expected.contains("\"kill at step 2 on rank 7\" strikes nobody: this start has 4 ranks"));
  CHECK_FALSE(expected.contains("nan"));
}

TEST_CASE("a full disk fails saves and not the training, until its end", "[train]") {
  Lab lab;
  const ExpectLog expected;
  CHECK_THROWS_WITH(
      lab.train("run", {"training.train_iters=12", "fault.inject=[fill_disk step=6 rank=2]"}),
      Catch::Contains("the state of step 12 could not be written"));
  const auto saves = lab.metrics("run", "checkpoint");
  REQUIRE(saves.size() == 3);
  CHECK(saves[0].at("committed") == true);
  CHECK(saves[1].at("committed") == false);
  CHECK(saves[2].at("committed") == false);
  CHECK(expected.contains("No space left on device"));
  CHECK(lab.metrics("run", "step").size() == 12);
}

TEST_CASE("a corrupted shard is one that a recovery finds and works round", "[train]") {
  Lab lab;
  for (int seed = 0; seed < 6; ++seed) {
    CAPTURE(seed);
    const ExpectLog expected;
    const std::string name = fmt::format("run{}", seed);
    CHECK(lab.train(name,
                    {"training.exit_interval=12",
                     fmt::format("fault.inject=[corrupt step=10 rank=1 seed={}]", seed)}) ==
          ExitCode::kStoppedOnRequest);
    CHECK(expected.contains("strikes: bit "));
    CHECK(lab.train(name, {}, checkpoint::ResumeMode::kFromFailure) == ExitCode::kDone);
    const auto recovery = lab.metrics(name, "recovery").at(0);
    CHECK_FALSE(recovery.at("damages").empty());
    CHECK((recovery.at("step") == 8 || !recovery.at("stale").empty()));
    CHECK(lab.metrics(name, "step").back().at("step") == 20);
  }
}
