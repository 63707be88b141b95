#include "launch/process.hpp"

#include <chrono>
#include <csignal>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pecan/core/error.hpp>
#include <pecan/core/file_system.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::launch {
namespace {

using Strings = std::vector<std::string>;

constexpr double kLongS = 60;  // against hangs only

bool nowhere(const std::string& /*host*/) {
  return false;
}

/// All that a child prints, and its exit code.
std::pair<std::string, int> finish(Child child) {
  std::string text;
  while (read_available(child.out, [&](std::string_view more) { text += more; })) usleep(1000);
  int status = 0;
  waitpid(child.pid, &status, 0);
  return {text, exit_code_of(status)};
}

TEST_CASE("a process leads its group, without input, and dies with this one", "[launch]") {
  const auto [text, code] = finish(start_process(
      Strings{"sh", "-c", "read x && echo input; cut -d\" \" -f1,5 /proc/$$/stat; exit 7"},
      Grouping::kGroup));
  CHECK(code == 7);
  const std::size_t blank = text.find(' ');
  REQUIRE(blank != std::string::npos);
  CHECK(text == fmt::format("{0} {0}\n", text.substr(0, blank)));
  CHECK(finish(start_process(Strings{"sh", "-c", "kill -KILL $$"}, Grouping::kGroup)).second ==
        137);
  CHECK_THROWS_AS(start_process(Strings{"/nowhere/program"}, Grouping::kGroup), ConfigError);

  // A parent that is killed: the child goes too.
  int told[2];
  REQUIRE(pipe(told) == 0);
  const pid_t parent = fork();
  if (parent == 0) {
    const Child child = start_process(Strings{"sleep", "60"}, Grouping::kGroup);
    static_cast<void>(!write(told[1], &child.pid, sizeof(child.pid)));
    pause();
    _exit(0);
  }
  pid_t child = 0;
  REQUIRE(read(told[0], &child, sizeof(child)) == ssize_t(sizeof(child)));
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  const auto state = [&] {
    const auto text_of = read_text(*make_posix_file_system(), fmt::format("/proc/{}/stat", child));
    return text_of.ok() && text_of.value().find(") Z") == std::string::npos;
  };
  const auto start = std::chrono::steady_clock::now();
  while (state() && std::chrono::steady_clock::now() - start < std::chrono::seconds(60))
    usleep(1000);
  CHECK_FALSE(state());
  close(told[0]);
  close(told[1]);
}

TEST_CASE("orphans are adopted and ended", "[launch]") {
  // In a process of its own: the test program has other children.
  const pid_t supervisor = fork();
  if (supervisor == 0) {
    adopt_orphans();
    Child child = start_process(Strings{"sh", "-c", "sleep 60 & echo $!"}, Grouping::kSession);
    std::string pid;
    while (pid.find('\n') == std::string::npos) {
      read_available(child.out, [&](std::string_view more) { pid += more; });
      usleep(1000);
    }
    const int killed = end_children(0.1);
    _exit(killed == 1 && kill(std::stoi(pid), 0) != 0 ? 0 : 1);
  }
  int status = 0;
  waitpid(supervisor, &status, 0);
  CHECK(exit_code_of(status) == 0);
}

TEST_CASE("tasks run on hosts through the agent, at once, and in bounded time", "[launch]") {
  const test::TempDir dir;
  const std::string agent = dir / "agent";
  REQUIRE(write_text_atomically(
              *make_posix_file_system(),
              agent,
              "#!/bin/sh\nhost=$1; shift\n[ $host = lost ] && { echo no route >&2; exit 255; }\n"
              "[ $host = silent ] && exec sleep 60\necho $host; exec sh -c \"$*\"\n")
              .ok());
  const std::vector<HostTask> tasks = {{"a", "echo one; exit 3"}, {"lost", "true"}, {"b", "true"}};
  const auto answers = run_on_hosts(Strings{"sh", agent}, tasks, nowhere, kLongS);
  REQUIRE(answers.size() == 3);
  CHECK((answers[0].host == "a" && answers[0].exit_code == 3 && answers[0].output == "a\none\n"));
  CHECK((answers[1].exit_code == 255 && answers[1].errors == "no route\n"));
  CHECK((answers[2].host == "b" && answers[2].exit_code == 0 && answers[2].output == "b\n"));

  const std::vector<HostTask> silent = {{"silent", "true"}, {"a", "true"}};
  const auto start = std::chrono::steady_clock::now();
  const auto late = run_on_hosts(Strings{"sh", agent}, silent, nowhere, 0.5);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(50));
  CHECK((late[0].exit_code == -1 && late[1].exit_code == 0));

  const std::vector<HostTask> here = {{"localhost", "echo $((6 * 7))"}};
  const auto local = run_on_hosts(
      {}, here, [](const std::string&) { return true; }, kLongS);
  CHECK((local[0].exit_code == 0 && local[0].output == "42\n"));
  CHECK(run_on_hosts({}, {}, nowhere, kLongS).empty());
}

TEST_CASE("what an agent leaves behind does not hold up its answer", "[launch]") {
  const std::vector<HostTask> tasks = {{"localhost", "sleep 60 & echo $!"}};
  const auto start = std::chrono::steady_clock::now();
  const auto answers = run_on_hosts(
      {}, tasks, [](const std::string&) { return true; }, kLongS);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(50));
  REQUIRE(answers[0].exit_code == 0);
  kill(std::stoi(answers[0].output), SIGKILL);
}

}  // namespace
}  // namespace pecan::launch
