#include "checkpoint/lineage.hpp"

#include <chrono>
#include <thread>

#include "support/catch.hpp"
#include "support/faulty_file_system.hpp"
#include "support/memory_file_system.hpp"
#include "support/support.hpp"

using namespace pecan;
using namespace pecan::checkpoint;
using std::chrono::milliseconds;

namespace {

constexpr LockOptions kQuiet{std::chrono::hours(1), milliseconds(0)};
constexpr LockOptions kFast{milliseconds(2), milliseconds(60)};

LockState stored(FileSystem& fs) {
  const Result<std::string> text = read_text(fs, "run/lock.json");
  return text.ok() ? parse_lock(text.value()).value_or(LockState{}) : LockState{};
}

}  // namespace

TEST_CASE("the lock's text is read back, and a flipped bit anywhere in it is found", "[lineage]") {
  const LockState state{"00ff", Incarnation{3}, "abcd", 17, false};
  const std::string text = to_json(state);
  const auto back = parse_lock(text);
  REQUIRE(back);
  CHECK(back->run_id == "00ff");
  CHECK(back->incarnation == Incarnation{3});
  CHECK(back->owner == "abcd");
  CHECK(back->heartbeat == 17);
  CHECK_FALSE(back->clean);
  for (std::size_t bit = 0; bit < 8 * (text.size() - 1); ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = char(flipped[bit / 8] ^ (1 << bit % 8));
    const auto parsed = parse_lock(flipped);
    // White space outside of the values is all that may differ unseen.
    if (parsed) REQUIRE(to_json(*parsed) == text);
  }
  CHECK_FALSE(parse_lock(""));
  CHECK_FALSE(parse_lock("[1,2]"));
}

TEST_CASE("a lock is released at a regular end and taken at once by the next", "[lineage]") {
  test::MemoryFileSystem fs;
  REQUIRE(fs.create_directories("run").ok());
  CHECK_FALSE(RunLock::await_holder(fs, "run", kQuiet).exists);
  {
    const RunLock lock(fs, "run", "id", Incarnation{0}, kQuiet);
    CHECK_FALSE(stored(fs).clean);
  }
  const auto begin = std::chrono::steady_clock::now();
  const FormerHolder former =
      RunLock::await_holder(fs, "run", {milliseconds(1), std::chrono::seconds(30)});
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(10));
  REQUIRE(former.state);
  CHECK(former.state->clean);
  CHECK(former.state->run_id == "id");
}

TEST_CASE("a live holder is found by its heartbeat, a dead one is not waited for for ever",
          "[lineage]") {
  test::MemoryFileSystem fs;
  REQUIRE(fs.create_directories("run").ok());
  {
    const RunLock lock(fs, "run", "id", Incarnation{4}, kFast);
    CHECK_THROWS_WITH(RunLock::await_holder(fs, "run", kFast),
                      Catch::Matchers::Contains("another process is using the run directory"));
  }
  // A holder that was killed: its lock stands, but nothing beats.
  REQUIRE(write_text_atomically(fs, "run/lock.json", to_json({"id", Incarnation{4}, "x", 9, false}))
              .ok());
  const FormerHolder former = RunLock::await_holder(fs, "run", kFast);
  REQUIRE(former.state);
  CHECK(former.state->incarnation == Incarnation{4});
  // A damaged lock still holds until it is known to be dead.
  REQUIRE(write_text_atomically(fs, "run/lock.json", "damaged").ok());
  const FormerHolder damaged = RunLock::await_holder(fs, "run", kFast);
  CHECK(damaged.exists);
  CHECK_FALSE(damaged.state);
}

TEST_CASE("an older holder finds itself fenced, and leaves the lock to the newer", "[lineage]") {
  test::MemoryFileSystem fs;
  REQUIRE(fs.create_directories("run").ok());
  {
    RunLock older(fs, "run", "id", Incarnation{0}, kQuiet);
    RunLock beating(fs, "run", "id", Incarnation{1}, kFast);
    CHECK_FALSE(older.fenced());
    CHECK_FALSE(older.check().ok());
    CHECK(older.fenced());
    CHECK(beating.check().ok());
    // A holder that beats notices by itself.
    const RunLock newest(fs, "run", "id", Incarnation{2}, kQuiet);
    for (int i = 0; i < 2000 && !beating.fenced(); ++i) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    CHECK(beating.fenced());
    CHECK(stored(fs).incarnation == Incarnation{2});
    CHECK_FALSE(stored(fs).clean);
  }
  CHECK(stored(fs).incarnation == Incarnation{2});
  CHECK(stored(fs).clean);
}

TEST_CASE("a lock that cannot be written or released is reported", "[lineage]") {
  test::MemoryFileSystem memory;
  test::FaultyFileSystem fs(memory);
  REQUIRE(fs.create_directories("run").ok());
  fs.inject({test::Call::kOpen, StatusCode::kPermission, 1, true, "lock.json", {}, 0});
  CHECK_THROWS_WITH(RunLock(fs, "run", "id", Incarnation{0}, kQuiet),
                    Catch::Matchers::Contains("the run's lock cannot be written"));
  fs.clear();
  const test::ExpectLog log;
  {
    const RunLock lock(fs, "run", "id", Incarnation{0}, kQuiet);
    fs.inject({test::Call::kWrite, StatusCode::kNoSpace, 1, true, "lock.json", {}, 0});
  }
  CHECK(log.contains("was not released"));
}

TEST_CASE("the lineage holds of each incarnation what came before the next continued",
          "[lineage]") {
  const auto version = [](int incarnation, int step) {
    return Version{Incarnation{incarnation}, Step{step}};
  };
  const std::vector<LineageEntry> lineage{{Incarnation{0}, true, {}},
                                          {Incarnation{2}, false, version(0, 100)},
                                          {Incarnation{3}, false, version(2, 150)}};
  CHECK(in_lineage(version(0, 100), lineage));
  CHECK_FALSE(in_lineage(version(0, 101), lineage));
  CHECK_FALSE(in_lineage(version(1, 50), lineage));
  CHECK(in_lineage(version(2, 150), lineage));
  CHECK_FALSE(in_lineage(version(2, 160), lineage));
  CHECK(in_lineage(version(3, 1000), lineage));
  CHECK_FALSE(in_lineage(version(4, 160), lineage));
}
