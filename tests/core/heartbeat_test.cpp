#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pecan/core/file_system.hpp>
#include <pecan/core/heartbeat.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan {
namespace {

std::string bytes_of(const std::string& path) {
  const Result<std::string> text = read_text(*make_posix_file_system(), path);
  return text.ok() ? text.value() : "<none>";
}

template <typename Number>
Number number_at(const std::string& bytes, std::size_t offset) {
  Number number{};
  std::memcpy(&number, bytes.data() + offset, sizeof(number));
  return number;
}

TEST_CASE("a heartbeat's bytes are those of its document", "[heartbeat]") {
  const test::TempDir dir;
  const std::string path = dir / "heartbeat/rank-00003";
  Heartbeat heartbeat(dir.path(), Rank{3}, 8);
  CHECK_FALSE(std::filesystem::exists(path));
  heartbeat.start();
  const std::int64_t before = std::time(nullptr);
  REQUIRE(heartbeat.claim(Incarnation{5}).ok());
  heartbeat.enter(RunPhase::kTraining);
  heartbeat.enter(812, "all_to_all_v", "dispatch", LayerId{7}, Step{120});
  const std::string bytes = bytes_of(path);
  REQUIRE(bytes.size() == 184);
  CHECK(bytes.substr(0, 8) == "PcnBeat1");
  CHECK(number_at<std::uint32_t>(bytes, 8) == 1);
  CHECK(number_at<std::int32_t>(bytes, 12) == 3);
  CHECK(number_at<std::int64_t>(bytes, 16) == getpid());
  CHECK(number_at<std::int32_t>(bytes, 24) == 8);
  CHECK(number_at<std::int32_t>(bytes, 28) == 5);
  char host[65] = {};
  REQUIRE(gethostname(host, 64) == 0);
  CHECK(std::string(bytes.c_str() + 32) == host);
  CHECK(number_at<std::uint32_t>(bytes, 96) == 2);
  CHECK(number_at<std::int32_t>(bytes, 100) == 7);
  CHECK(number_at<std::int64_t>(bytes, 104) == 120);
  CHECK(number_at<std::int64_t>(bytes, 112) >= before - 1);
  CHECK(number_at<std::int64_t>(bytes, 112) <= std::time(nullptr));
  CHECK(std::string(bytes.c_str() + 120) == "all_to_all_v");
  CHECK(std::string(bytes.c_str() + 144) == "dispatch");
  CHECK(number_at<std::uint64_t>(bytes, 176) == 812);
}

TEST_CASE("heartbeats are read as they were written, by rank", "[heartbeat]") {
  const test::TempDir dir;
  Heartbeat second(dir.path(), Rank{1}, 2), first(dir.path(), Rank{0}, 2);
  second.start();
  first.start();
  second.enter(9, "broadcast", "setup", kNoLayer, Step{0});
  const auto beats = read_heartbeats(dir.path());
  REQUIRE(beats.size() == 2);
  CHECK(beats[0].rank == Rank{0});
  CHECK(beats[0].sequence == 0);
  CHECK(beats[0].operation.empty());
  CHECK(beats[0].incarnation == Incarnation{-1});
  CHECK(beats[0].phase == RunPhase::kStarting);
  CHECK(beats[1].rank == Rank{1});
  CHECK(beats[1].sequence == 9);
  CHECK(beats[1].purpose == "setup");
  CHECK(beats[1].layer == kNoLayer);
  CHECK(beats[1].world == 2);
  CHECK(beats[1].pid == getpid());
}

TEST_CASE("longer names are cut, and never run into the next field", "[heartbeat]") {
  const test::TempDir dir;
  Heartbeat heartbeat(dir.path(), Rank{0}, 1);
  heartbeat.start();
  heartbeat.enter(1, std::string(100, 'o'), std::string(100, 'p'), LayerId{1}, Step{1});
  const auto beats = read_heartbeats(dir.path());
  REQUIRE(beats.size() == 1);
  CHECK(beats[0].operation == std::string(23, 'o'));
  CHECK(beats[0].purpose == std::string(31, 'p'));
  heartbeat.enter(2, "send", "loss", LayerId{1}, Step{1});
  CHECK(read_heartbeats(dir.path())[0].operation == "send");
}

TEST_CASE("what is no heartbeat is left out", "[heartbeat]") {
  const test::TempDir dir;
  CHECK(read_heartbeats(dir.path()).empty());
  Heartbeat heartbeat(dir.path(), Rank{0}, 9);
  heartbeat.start();
  const std::string good = bytes_of(dir / "heartbeat/rank-00000");
  REQUIRE(parse_heartbeat(good).ok());
  const auto write = [&](const std::string& name, const std::string& bytes) {
    std::ofstream(dir / ("heartbeat/" + name), std::ios::binary) << bytes;
  };
  write("rank-00001", "");
  write("rank-00002", good.substr(0, 183));
  write("rank-00003", std::string(4096, '\xff'));
  write("rank-00004", good);  // of rank 0
  write("rank-5", good);
  write("notes", good);
  std::filesystem::create_directories(dir / "heartbeat/rank-00007");
  CHECK(read_heartbeats(dir.path()).size() == 1);
  // Each field by itself.
  const auto damaged = [&](std::size_t offset, const std::string& bytes) {
    std::string text = good;
    text.replace(offset, bytes.size(), bytes);
    return parse_heartbeat(text).status().code;
  };
  CHECK(damaged(0, "X") == StatusCode::kCorrupt);
  CHECK(damaged(8, "\x02") == StatusCode::kInvalid);
  CHECK(damaged(12, "\x09") == StatusCode::kCorrupt);  // rank beyond the world
  CHECK(damaged(15, "\xff") == StatusCode::kCorrupt);  // rank below 0
  CHECK(damaged(23, "\xff") == StatusCode::kCorrupt);  // pid below 0
  CHECK(damaged(32, std::string(64, 'h')) == StatusCode::kCorrupt);
  CHECK(damaged(32, "a b") == StatusCode::kCorrupt);
  CHECK(damaged(96, "\x05") == StatusCode::kCorrupt);   // phase
  CHECK(damaged(111, "\xff") == StatusCode::kCorrupt);  // step below 0
  CHECK(damaged(120, std::string(24, 'o')) == StatusCode::kCorrupt);
  CHECK(damaged(144, std::string(32, 'p')) == StatusCode::kCorrupt);
}

TEST_CASE("a file that another process holds is taken only by who owns the run", "[heartbeat]") {
  const test::TempDir dir;
  int ready[2], done[2];
  REQUIRE((pipe(ready) == 0 && pipe(done) == 0));
  const pid_t other = fork();
  if (other == 0) {
    Heartbeat heartbeat(dir.path(), Rank{0}, 1);
    heartbeat.start();
    heartbeat.enter(7, "broadcast", "setup", kNoLayer, Step{1});
    char token = 'r';
    static_cast<void>(!write(ready[1], &token, 1));
    static_cast<void>(!read(done[0], &token, 1));
    _exit(0);
  }
  char token = 0;
  REQUIRE(read(ready[0], &token, 1) == 1);
  {
    Heartbeat heartbeat(dir.path(), Rank{0}, 1);
    heartbeat.start();
    heartbeat.enter(1, "send", "test", kNoLayer, Step{0});
    REQUIRE(read_heartbeats(dir.path()).size() == 1);
    CHECK(read_heartbeats(dir.path())[0].pid == other);
    CHECK(read_heartbeats(dir.path())[0].sequence == 7);
    REQUIRE(heartbeat.claim(Incarnation{1}).ok());
    CHECK(read_heartbeats(dir.path())[0].pid == getpid());
    CHECK(read_heartbeats(dir.path())[0].operation == "send");
  }
  static_cast<void>(!write(done[1], &token, 1));
  waitpid(other, nullptr, 0);
  for (const int fd : {ready[0], ready[1], done[0], done[1]}) close(fd);
}

TEST_CASE("files of ranks that are no more go, when rank 0 owns the run", "[heartbeat]") {
  const test::TempDir dir;
  const auto has = [&](int rank) {
    return std::filesystem::exists(dir / fmt::format("heartbeat/rank-{:05}", rank));
  };
  for (int rank = 0; rank < 4; ++rank) {
    Heartbeat heartbeat(dir.path(), Rank{rank}, 4);
    heartbeat.start();
  }
  std::ofstream(dir / "heartbeat/notes") << "kept";
  Heartbeat second(dir.path(), Rank{1}, 2), first(dir.path(), Rank{0}, 2);
  first.start();
  second.start();
  REQUIRE(second.claim(Incarnation{1}).ok());
  CHECK(has(3));
  REQUIRE(first.claim(Incarnation{1}).ok());
  CHECK((has(0) && has(1) && !has(2) && !has(3)));
  CHECK(std::filesystem::exists(dir / "heartbeat/notes"));
  clear_heartbeats(dir.path());
  CHECK_FALSE((has(0) || has(1)));
  CHECK(std::filesystem::exists(dir / "heartbeat/notes"));
}

TEST_CASE("a run goes on without a heartbeat that cannot be written", "[heartbeat]") {
  const test::TempDir dir;
  std::ofstream(dir / "heartbeat") << "a file where the folder should be";
  Heartbeat heartbeat(dir.path(), Rank{0}, 1);
  heartbeat.start();
  heartbeat.enter(RunPhase::kTraining);
  heartbeat.enter(1, "send", "test", kNoLayer, Step{0});
  const Status status = heartbeat.claim(Incarnation{0});
  CHECK_FALSE(status.ok());
  CHECK(status.message.find("heartbeat") != std::string::npos);
  heartbeat.enter(2, "send", "test", kNoLayer, Step{0});
}

}  // namespace
}  // namespace pecan
