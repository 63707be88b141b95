#include "launch/blame.hpp"

#include <array>
#include <cstdio>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/catch.hpp"

namespace pecan::launch {
namespace {

using Ints = std::vector<int>;
using Strings = std::vector<std::string>;

Culprits culprits_of(const Strings& lines) {
  OutputScan scan("vm");
  for (const std::string& line : lines) scan.read(line);
  return scan.culprits();
}

// As Open MPI 4.1 and pecan-train print them.
const std::string kSignal =
    "mpirun noticed that process rank 1 with PID 4242 on node n1 exited on signal 9 (Killed).";
const std::string kReturned = "  Process name: [[40425,1],3]";
const std::string kLost = "  Remote daemon: [[20937,0],1] on node mh3";
const std::string kAborted = "MPI_ABORT was invoked on rank 2 in communicator MPI_COMM_WORLD";
std::string waited(int rank, const std::string& what) {
  return fmt::format(
      "pecan-train: rank {} waited 2 s in all_reduce #12 (gradients, step 7): {}; see what was "
      "logged last there, or "
      "raise comm.timeout_s if such a wait is expected",
      rank,
      what);
}

TEST_CASE("output tells who is to blame, the surest sign first", "[launch]") {
  CHECK(culprits_of({}) == Culprits{});
  CHECK(culprits_of({"step 3/40 loss 5.9", "rank 1 is fine", "it waited for rank 3"}) ==
        Culprits{});
  CHECK(culprits_of({kSignal}).ranks == Ints{1});
  CHECK(culprits_of({kReturned}).ranks == Ints{3});
  CHECK(culprits_of({kAborted}).ranks == Ints{2});
  const Culprits lost = culprits_of({kLost, kLost});
  CHECK((lost.ranks.empty() && lost.hosts == Strings{"mh3"}));
  CHECK(culprits_of({kReturned, kAborted}).ranks == Ints{2});
  CHECK(
      culprits_of({kAborted, kReturned, kSignal, waited(0, "data is missing from rank 2")}).ranks ==
      Ints{1});
  CHECK(culprits_of({kSignal, kLost}).hosts == Strings{"mh3"});
  // Daemons are not ranks, and another job's first process is one of this job.
  CHECK(culprits_of({"  HNP daemon   : [[20937,0],0] on node vm"}) == Culprits{});
}

TEST_CASE("a host whose daemon does not get through is to blame, not mpirun's own", "[launch]") {
  const std::string report = "A process or daemon was unable to complete a TCP connection";
  CHECK(
      culprits_of(
          {report, "to another process:", "  Local host:    mh2", "  Remote host:   vm", kReturned})
          .hosts == Strings{"mh2"});
  CHECK(culprits_of({report, "  Local host:    vm", "  Remote host:   mh3"}).hosts ==
        Strings{"mh3"});
  CHECK(culprits_of({"  Local host:    mh2"}) == Culprits{});
  CHECK(culprits_of({report, "  Local host:    mh2", kLost}).hosts == Strings{"mh3"});
}

TEST_CASE("a lost daemon is told apart from what a rank returned", "[launch]") {
  const auto lost = [](const std::string& line) {
    OutputScan scan("vm");
    scan.read(line);
    return scan.lost_a_daemon();
  };
  CHECK(lost("ORTE was unable to reliably start one or more daemons."));
  CHECK(lost(kLost));
  CHECK_FALSE((lost(kSignal) || lost(kReturned) || lost(kAborted)));
}

TEST_CASE("hosts have long and short names", "[launch]") {
  CHECK((is_same_host("a", "a") && is_same_host("a.site", "a") && is_same_host("a", "a.site")));
  CHECK_FALSE((is_same_host("a.site", "a.other") || is_same_host("a", "b") ||
               is_same_host("a.site", "site")));
}

TEST_CASE("who is waited for and does not wait itself is to blame", "[launch]") {
  CHECK(culprits_of(
            {waited(0, "data is missing from rank 2, 3"), waited(3, "data is missing from rank 2")})
            .ranks == Ints{2});
  CHECK(culprits_of({waited(0, "data was not taken by rank 1")}).ranks == Ints{1});
  CHECK(culprits_of(
            {waited(10, "data is missing from rank 4, data was not taken by rank 12"), kAborted})
            .ranks == Ints{4, 12});
  // All wait for each other.
  CHECK(culprits_of(
            {waited(0, "data is missing from rank 1"), waited(1, "data is missing from rank 0")})
            .ranks == Ints{0, 1});
}

HeartbeatRecord beat(int rank,
                     std::uint64_t sequence,
                     const std::string& host = "n",
                     std::int64_t pid = 100) {
  HeartbeatRecord record;
  record.rank = Rank{rank};
  record.world = 4;
  record.pid = pid + rank;
  record.host = host;
  record.phase = RunPhase::kTraining;
  record.sequence = sequence;
  record.operation = "all_to_all_v";
  record.purpose = "dispatch";
  record.layer = LayerId{3};
  record.step = Step{12};
  return record;
}

TEST_CASE("ranks behind the furthest, or without a heartbeat, are laggards", "[launch]") {
  const std::vector<HeartbeatRecord> equal = {beat(0, 5), beat(1, 5), beat(2, 5), beat(3, 5)};
  CHECK(laggards(equal, 4).empty());
  CHECK(laggards({}, 4).empty());
  const std::vector<HeartbeatRecord> apart = {beat(0, 5), beat(1, 4), beat(2, 3), beat(3, 5)};
  CHECK(laggards(apart, 4) == Ints{2});
  const std::vector<HeartbeatRecord> missing = {beat(0, 5), beat(2, 3)};
  CHECK(laggards(missing, 4) == Ints{1, 3});
}

TEST_CASE("a standstill is described by who is where", "[launch]") {
  const std::vector<HeartbeatRecord> beats = {beat(0, 813), beat(1, 812), beat(3, 813)};
  CHECK(describe_standstill(beats, 4) ==
        "rank 2 behind: no heartbeat; "
        "ranks 0, 3 all_to_all_v #813 (dispatch, layer 3, step 12), training; "
        "rank 1 all_to_all_v #812 (dispatch, layer 3, step 12), training");
  const std::vector<HeartbeatRecord> behind = {beat(0, 813), beat(1, 812)};
  CHECK(describe_standstill(behind, 2) ==
        "rank 1 behind: all_to_all_v #812 (dispatch, layer 3, step 12), training; "
        "rank 0 all_to_all_v #813 (dispatch, layer 3, step 12), training");
  CHECK(describe_standstill({}, 4) == "none of 4 ranks has begun to write its heartbeat");
  HeartbeatRecord early;
  early.phase = RunPhase::kRecovering;
  CHECK(describe_place(early) == "recovering, before any collective");
}

TEST_CASE("of a standstill silent hosts are to blame, else stopped processes, else laggards",
          "[launch]") {
  const std::vector<HeartbeatRecord> beats = {beat(0, 5), beat(1, 5), beat(2, 4), beat(3, 5)};
  CHECK(
      standstill_culprits(beats, 4, {{0, 'S'}, {1, 'T'}, {2, 'R'}, {3, '-'}}, Strings{"b"}).hosts ==
      Strings{"b"});
  CHECK(standstill_culprits(beats, 4, {{0, 'S'}, {1, 'T'}, {2, 'R'}, {3, '-'}}, {}).ranks ==
        Ints{1, 3});
  CHECK(standstill_culprits(beats, 4, {{0, 'S'}, {1, 'D'}, {2, 'R'}, {3, 'Z'}}, {}).ranks ==
        Ints{3});
  CHECK(standstill_culprits(beats, 4, {{0, 'S'}, {2, 'R'}}, {}).ranks == Ints{2});
  const std::vector<HeartbeatRecord> equal = {beat(0, 5)};
  CHECK(standstill_culprits(equal, 1, {{0, 'S'}}, {}) == Culprits{});
}

TEST_CASE("a rank's host is the one that its heartbeat names, else that of its number",
          "[launch]") {
  const Assignment assignment{{{"a", 2}, {"b.site", 2}}, 4, {}};
  const std::vector<HeartbeatRecord> beats = {
      beat(0, 1, "b"), beat(1, 1, "a.site"), beat(2, 1, "other"), beat(3, 1, "a")};
  CHECK(host_of(assignment, beats, 0) == "b.site");
  CHECK(host_of(assignment, beats, 1) == "a");
  CHECK(host_of(assignment, beats, 2) == "b.site");
  CHECK(host_of(assignment, beats, 3) == "a");
  CHECK(host_of(assignment, {}, 1) == "a");
}

std::string output_of(const std::string& command) {
  std::string output;
  FILE* const pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> buffer;
  while (std::fgets(buffer.data(), int(buffer.size()), pipe) != nullptr) output += buffer.data();
  pclose(pipe);
  return output;
}

TEST_CASE("process states are read from what /proc says", "[launch]") {
  const auto states =
      parse_process_states("12 (pecan train) S 1 2\n13 (a) b) T 1\n14 gone\nnoise\n15\n");
  CHECK(states == std::map<std::int64_t, char>{{12, 'S'}, {13, 'T'}, {14, '-'}});
  const pid_t ended = fork();
  if (ended == 0) _exit(0);
  waitpid(ended, nullptr, 0);
  const std::vector<std::int64_t> pids = {getpid(), ended};
  const auto real = parse_process_states(output_of(process_states_command(pids)));
  REQUIRE(real.size() == 2);
  CHECK((real.at(getpid()) == 'S' || real.at(getpid()) == 'R'));
  CHECK(real.at(ended) == '-');
}

TEST_CASE("only processes that bear the mark are killed", "[launch]") {
  const auto start = [](const char* mark) {
    const pid_t pid = fork();
    if (pid == 0) {
      setenv("PECAN_SUPERVISED", mark, 1);
      execlp("sleep", "sleep", "60", static_cast<char*>(nullptr));
      _exit(127);
    }
    return pid;
  };
  const pid_t ours = start("0123"), foreign = start("4567");
  // Until both are what they are to be.
  const auto bears = [](pid_t pid, const std::string& mark) {
    return output_of(fmt::format("grep -ac PECAN_SUPERVISED={} /proc/{}/environ", mark, pid)) ==
           "1\n";
  };
  while (!bears(ours, "0123") || !bears(foreign, "4567")) usleep(1000);
  const std::vector<std::int64_t> pids = {ours, foreign};
  const std::string command = kill_command(pids, "PECAN_SUPERVISED=0123");
  CHECK(command.find_first_of("'\"\\") == std::string::npos);  // agents may put it into quotes
  CHECK(output_of(command) == fmt::format("{}\n", ours));
  int status = 0;
  REQUIRE(waitpid(ours, &status, 0) == ours);
  CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
  CHECK(waitpid(foreign, &status, WNOHANG) == 0);
  kill(foreign, SIGKILL);
  waitpid(foreign, nullptr, 0);
}

}  // namespace
}  // namespace pecan::launch
