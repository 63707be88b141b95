#include "launch/run_files.hpp"

#include <filesystem>
#include <fstream>
#include <string>

#include <sys/wait.h>
#include <unistd.h>

#include <pecan/core/file_system.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::launch {
namespace {

std::string text_of(const std::string& path) {
  const Result<std::string> text = read_text(*make_posix_file_system(), path);
  return text.ok() ? text.value() : "<none>";
}

TEST_CASE("the newest checkpointed step is that of the newest whole directory", "[launch]") {
  const test::TempDir dir;
  CHECK(newest_checkpointed_step(dir.path()) == -1);
  for (const char* name : {"step-00000004",
                           "step-00000012",
                           "step-00000020.partial",
                           "abandoned-1-step-00000030",
                           "step-x"})
    std::filesystem::create_directories(dir / (std::string("checkpoints/") + name));
  std::ofstream(dir / "checkpoints/step-00000040") << "a file";
  CHECK(newest_checkpointed_step(dir.path()) == 12);
}

TEST_CASE("the number of the next start follows the lock's", "[launch]") {
  const test::TempDir dir;
  CHECK(expected_incarnation(dir.path()) == 0);
  std::ofstream(dir / "lock.json") << R"({"format":"pecan-lock","incarnation":4})";
  CHECK(expected_incarnation(dir.path()) == 5);
  std::ofstream(dir / "lock.json") << "[1,";
  CHECK(expected_incarnation(dir.path()) == 0);
}

TEST_CASE("metrics tell where a start went on and how far it came", "[launch]") {
  CHECK(parse_start_metrics("") == StartMetrics{});
  const std::string lines =
      "ep\":9,\"kind\":\"step\"}\n"  // the rest of a line that began before
      R"({"schema":1,"world":4})"
      "\n"
      R"({"incarnation":1,"kind":"recovery","stale":[{"step":2}],"step":8})"
      "\n"
      R"({"incarnation":1,"kind":"step","step":9})"
      "\n"
      R"({"incarnation":1,"kind":"step","step":10})"
      "\n"
      R"({"incarnation":1,"kind":"checkpoint","step":12})"
      "\n"
      R"({"committed":true,"incarnation":1,"kind":"snapshot","step":9})"
      "\n"
      R"({"committed":false,"incarnation":1,"kind":"snapshot","step":10})"
      "\n"
      R"({"incarnation":1,"kind":"step","st)";
  CHECK(parse_start_metrics(lines) == StartMetrics{8, 10, 9, {}});
  CHECK(parse_start_metrics(R"({"incarnation":1,"kind":"step","step":10})"
                            "\n"
                            R"({"kind":"divergence","step":11,"reason":"spike","repeatable":true})"
                            "\n") == StartMetrics{{}, 10, {}, Divergence{11, true}});
  for (const char* line : {R"({"kind":"divergence","step":11,"repeatable":false})",
                           R"({"kind":"divergence","step":11,"repeatable":"true"})",
                           R"({"kind":"divergence","step":11})"}) {
    CHECK(parse_start_metrics(line) == StartMetrics{{}, {}, {}, Divergence{11, false}});
  }
  CHECK(parse_start_metrics(R"({"kind":"divergence","repeatable":true})") == StartMetrics{});
  const test::TempDir dir;
  CHECK(metrics_size(dir.path()) == 0);
  CHECK(read_start_metrics(dir.path(), 0) == StartMetrics{});
  const std::string before = R"({"incarnation":0,"kind":"step","step":30})"
                             "\n";
  std::ofstream(dir / "metrics.jsonl") << before << lines;
  CHECK(metrics_size(dir.path()) == before.size() + lines.size());
  CHECK(read_start_metrics(dir.path(), before.size()) == StartMetrics{8, 10, 9, {}});
  CHECK(read_start_metrics(dir.path(), before.size() + lines.size()) == StartMetrics{});
  CHECK(read_start_metrics(dir.path(), 1 << 20) == StartMetrics{});
}

TEST_CASE("times of events are those of the calendar", "[launch]") {
  CHECK(time_text(0) == "1970-01-01T00:00:00.000Z");
  CHECK(time_text(951'827'696'007) == "2000-02-29T12:34:56.007Z");
  CHECK(time_text(4'102'444'799'999) == "2099-12-31T23:59:59.999Z");
}

TEST_CASE("events are whole lines, behind whatever stands there", "[launch]") {
  const test::TempDir dir;
  std::ofstream(dir / "events.jsonl") << "{\"event\":\"cu";
  {
    EventLog log(dir.path());
    CHECK(log.write("start", {{"start", 0}, {"host", "a\xff\nb"}}));
  }
  {
    EventLog log(dir.path());
    CHECK(log.write("done", {{"step", 4}}));
  }
  const std::string text = text_of(dir / "events.jsonl");
  std::istringstream lines(text);
  std::string line;
  std::getline(lines, line);
  CHECK(line == "{\"event\":\"cu");
  std::getline(lines, line);
  CHECK(line.starts_with("{\"time\":\"20"));
  CHECK(nlohmann::json::parse(line)["event"] == "start");
  std::getline(lines, line);
  CHECK(nlohmann::json::parse(line)["step"] == 4);
  CHECK_FALSE(std::getline(lines, line));
  CHECK_THROWS_AS(EventLog(dir / "nowhere"), CheckpointError);
}

TEST_CASE("one process supervises a run, and tells its successor of the job", "[launch]") {
  const test::TempDir dir;
  int ready[2], go[2];
  REQUIRE((pipe(ready) == 0 && pipe(go) == 0));
  const pid_t first = fork();
  if (first == 0) {
    LaunchLock lock(dir.path());
    lock.note_mpirun(4711);
    char token = 'r';
    static_cast<void>(!write(ready[1], &token, 1));
    static_cast<void>(!read(go[0], &token, 1));
    _exit(0);  // as a killed process: nothing is tidied up
  }
  char token = 0;
  REQUIRE(read(ready[0], &token, 1) == 1);
  std::string refusal;
  try {
    const LaunchLock second(dir.path());
  } catch (const CheckpointError& error) {
    refusal = error.what();
  }
  CHECK_THAT(refusal, Catch::Contains(fmt::format("pecan-launch {} on ", first)));
  CHECK_THAT(refusal, Catch::Contains("supervises the run") && Catch::Contains("--run-dir"));
  static_cast<void>(!write(go[1], &token, 1));
  waitpid(first, nullptr, 0);
  {
    LaunchLock second(dir.path());
    char host[256] = {};
    gethostname(host, 255);
    CHECK(second.former().mpirun_pid == 4711);
    CHECK(second.former().host == host);
    second.note_mpirun(0);
  }
  CHECK(LaunchLock(dir.path()).former().mpirun_pid == 0);
  for (const int fd : {ready[0], ready[1], go[0], go[1]}) close(fd);
}

TEST_CASE("a run's mark is the same for every way to write its folder", "[launch]") {
  const test::TempDir dir;
  std::filesystem::create_directories(dir / "run");
  std::filesystem::create_directory_symlink(dir / "run", dir / "link");
  const std::string mark = supervision_marker(dir / "run");
  CHECK(mark.size() == std::string("PECAN_SUPERVISED=").size() + 16);
  CHECK(supervision_marker(dir / "run/../link") == mark);
  CHECK(supervision_marker(dir / "other") != mark);
}

}  // namespace
}  // namespace pecan::launch
