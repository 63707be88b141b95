#include "launch/supervisor.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pecan/core/error.hpp>
#include <pecan/core/file_system.hpp>
#include <pecan/core/text.hpp>

namespace pecan::launch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTickMs = 50;
// between looks at the heartbeats
constexpr double kTermGraceS = 5;      // from SIGTERM to SIGKILL
constexpr double kChildrenGraceS = 1;  // for what mpirun leaves behind

double seconds_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double>(end - start).count();
}

double rounded(double seconds) {
  return double(std::int64_t(seconds * 1000 + 0.5)) / 1000;
}

sigset_t awaited_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGCHLD}) ::sigaddset(&set, signal);
  return set;
}

/// What ssh says last is why it failed: banners and warnings come first, and lines end with "\r\n".
std::string last_line(std::string_view text) {
  text = text.substr(0, text.find_last_not_of("\r\n") + 1);
  return shortened(text.substr(text.find_last_of('\n') + 1));
}

/// Feeds whole lines to a scan.
class LineSplitter {
 public:
  void add(std::string_view text, OutputScan& scan) {
    constexpr std::size_t kLongest = 65536;
    while (!text.empty()) {
      const std::size_t end = text.find('\n');
      line_ += text.substr(0, std::min(end, kLongest - std::min(kLongest, line_.size())));
      if (end == std::string_view::npos) return;
      scan.read(line_);
      line_.clear();
      text.remove_prefix(end + 1);
    }
  }

 private:
  std::string line_;
};

nlohmann::ordered_json json_of(const Assignment& assignment) {
  nlohmann::ordered_json hosts = nlohmann::ordered_json::array();
  for (const Host& host : assignment.hosts)
    hosts.push_back({{"host", host.name}, {"ranks", host.slots}});
  return {{"world", assignment.world},
          {"layout",
           {{"tp", assignment.layout.tensor_model_parallel_size},
            {"ep", assignment.layout.expert_model_parallel_size},
            {"etp", assignment.layout.expert_tensor_parallel_size}}},
          {"hosts", hosts}};
}

/// The last step that a start has trained: its metrics are exact, heartbeats are all that is left
/// of one that wrote none.
std::int64_t last_step_of(const StartMetrics& metrics, std::span<const HeartbeatRecord> beats) {
  std::int64_t last = std::max(metrics.last_step.value_or(0), metrics.resumed_step.value_or(0));
  for (const HeartbeatRecord& beat : beats) {
    if (beat.phase == RunPhase::kTraining) last = std::max(last, beat.step.value - 1);
  }
  return last;
}

}  // namespace

Output::Output(const std::string& log_path) {
  if (log_path.empty()) return;
  log_ = Fd(::open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  PECAN_VALIDATE(log_.get() >= 0,
                 ConfigError,
                 "--log {} cannot be written: {}; choose another file",
                 log_path,
                 errno_text(errno));
}

Output::~Output() = default;

void Output::pass(int descriptor, std::string_view text) {
  bool& open = open_[descriptor - 1];
  open = open && write_all(descriptor, text);
  if (log_.get() >= 0 && !write_all(log_.get(), text)) log_.close();
}

void Output::say(std::string_view text) {
  pass(STDERR_FILENO, fmt::format("pecan-launch: {}\n", text));
}

void hold_signals() {
  const sigset_t awaited = awaited_signals();
  ::sigprocmask(SIG_BLOCK, &awaited, nullptr);
}

Supervisor::Supervisor(const config::Config& config, SupervisorOptions options)
    : config_(config), options_(std::move(options)), output_(options_.log_path) {
  own_name_ = host_name();
  const bool all_here = std::ranges::all_of(
      options_.hosts, [&](const Host& host) { return is_this_machine(host.name, own_name_); });
  agent_ = options_.job.agent.empty() && !all_here ? std::vector<std::string>{"ssh"}
                                                   : split_words(options_.job.agent);
  options_.job.layouts = layouts_text(config);
  marker_ = supervision_marker(options_.job.run_directory);
}

bool Supervisor::is_here(const std::string& host) const {
  // An agent that the user names serves every host.
  return options_.job.agent.empty() && is_this_machine(host, own_name_);
}

void Supervisor::event(std::string_view name, nlohmann::ordered_json fields) {
  if (!events_->write(name, fields))
    output_.say(fmt::format("events.jsonl does not take the record of \"{}\"", name));
}

void Supervisor::prepare() {
  validate_mpirun_options(options_.job.mpirun_options);
  const char* const path = std::getenv("PATH");
  const auto need = [&](const std::string& program, std::string_view what) {
    PECAN_VALIDATE(can_run(program, path == nullptr ? "" : path),
                   ConfigError,
                   "{} '{}' is no program that can be run; {}",
                   what,
                   program,
                   "install it, or correct its path or PATH");
  };
  need("mpirun", "the launcher");
  need(options_.job.train_program, "--train");
  if (!agent_.empty()) need(agent_.front(), "the agent");

  const std::string& run = options_.job.run_directory;
  const Status made = make_posix_file_system()->create_directories(run);
  PECAN_VALIDATE(made.ok(), CheckpointError, "{}", made.message);
  lock_.emplace(run);
  events_.emplace(run);

  hold_signals();
  const sigset_t awaited = awaited_signals();
  std::signal(SIGPIPE, SIG_IGN);
  signals_ = Fd(::signalfd(-1, &awaited, SFD_NONBLOCK | SFD_CLOEXEC));
  PECAN_VALIDATE(signals_.get() >= 0, InternalError, "signalfd failed with errno {}", errno);
  adopt_orphans();

  // As root, with more processes than cores: Open MPI wants to be told.
  if (::geteuid() == 0) {
    ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
  }
  ::setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 0);
  ::setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
  const std::size_t equals = marker_.find('=');
  ::setenv(marker_.substr(0, equals).c_str(), marker_.c_str() + equals + 1, 1);
}

int Supervisor::run() {
  prepare();
  const std::string& run = options_.job.run_directory;
  // A predecessor that was killed may have left a job behind.
  if (lock_->former().mpirun_pid != 0) {
    const std::vector<HeartbeatRecord> beats = read_heartbeats(run);
    for (const HeartbeatRecord& beat : beats) {
      const bool known = std::ranges::count(options_.hosts, beat.host, &Host::name) > 0;
      for (const Host& host : options_.hosts) {
        if (!known || host.name == beat.host) leftovers_[host.name].insert(beat.pid);
      }
    }
    if (lock_->former().host == own_name_) {
      const std::array pid = {lock_->former().mpirun_pid};
      const HostTask task{"localhost", kill_command(pid, marker_)};
      static_cast<void>(run_on_hosts(
          {},
          {&task, 1},
          [](const std::string&) { return true; },
          config_.elastic.probe_timeout_s));
    }
    output_.say("an earlier pecan-launch of this run was killed; taking over from it");
  }
  ask_hosts();
  if (lock_->former().mpirun_pid != 0) {
    // Only when nothing of it trains any more.
    const std::vector<HeartbeatRecord> beats = read_heartbeats(run);
    end_leftovers();
    const std::uint64_t size = metrics_size(run);
    constexpr std::uint64_t kTail = 1 << 20;
    const std::int64_t last_step =
        last_step_of(read_start_metrics(run, size - std::min(size, kTail)), beats);
    event("takeover", {{"last_step", last_step}});
    open_failure_ = OpenFailure{Clock::now(), last_step};
  }
  std::optional<Assignment> assignment = host_record_.assign(config_, reachable(), held_);
  if (!assignment) {
    std::string silent;
    for (const auto& [host, why] : unreachable_)
      silent += fmt::format("; host {} does not answer ({})", host, why);
    throw ConfigError(fmt::format(
        "the hosts offer {} slots, which hold no layout: {} are needed{}; add hosts or "
        "slots, or a smaller layout to elastic.layouts",
        [&] {
          int slots = 0;
          for (const Host& host : reachable()) slots += host.slots;
          return slots;
        }(),
        describe_wanted_slots(config_),
        silent));
  }

  RestartPolicy policy(config_.elastic, newest_checkpointed_step(run));
  while (true) {
    end_leftovers();
    End end = run_job(*assignment);
    if (stop_ != Stop::kNone && calls_for_restart(end.ending)) {
      output_.say(
          fmt::format("the job ended with exit code {} when it was to stop; the run goes on "
                      "from its newest checkpoint when it is started again",
                      end.exit_code));
      tell_failure(*assignment, end);
      event("stopped", {{"exit_code", end.exit_code}, {"requested", true}});
      return int(ExitCode::kStoppedOnRequest);
    }
    switch (end.ending) {
      case Ending::kDone:
        // Ranks remove their own; hosts that have none any more may hold some too.
        remove_snapshots();
        event("done", {{"step", last_step_of(end.metrics, end.beats)}, {"starts", num_starts_}});
        output_.say(fmt::format("done after {} start{}", num_starts_, num_starts_ == 1 ? "" : "s"));
        return end.exit_code;
      case Ending::kStopped:
        event("stopped", {{"exit_code", end.exit_code}, {"requested", stop_ != Stop::kNone}});
        output_.say("the run has stopped, and goes on when it is started again");
        return end.exit_code;
      case Ending::kRefused:
        tell_failure(*assignment, end);
        event("give_up",
              {{"exit_code", end.exit_code}, {"reason", "another start would end alike"}});
        output_.say(
            fmt::format("exit code {} is one that another start would end with too: no restart",
                        end.exit_code));
        return end.exit_code;
      default:
        break;
    }
    tell_failure(*assignment, end);
    if (end.ending == Ending::kDiverged && !may_restart_after_divergence(end)) return end.exit_code;
    std::vector<std::string> blamed = culprit_hosts(*assignment, end);
    assignment.reset();
    while (!assignment) {
      const std::int64_t checkpointed = newest_checkpointed_step(run);
      const RestartPolicy::Decision decision =
          policy.after_failure(std::max(checkpointed, end.metrics.kept_step.value_or(-1)));
      for (const std::string& host : host_record_.after_failure(blamed, decision.progress)) {
        event("host_set_aside", {{"host", host}});
        output_.say(fmt::format(
            "host {} was to blame twice in a row; it is used only where no other layout fits",
            host));
      }
      blamed.clear();
      if (!decision.restart) {
        event("give_up",
              {{"exit_code", end.exit_code},
               {"reason", "nothing new was saved"},
               {"restarts_in_row", decision.in_row},
               {"checkpointed_step", checkpointed}});
        output_.say(
            fmt::format("giving up after {} restart{} in a row that saved nothing "
                        "new (elastic.max_restarts); the last failure had exit code {}",
                        decision.in_row,
                        decision.in_row == 1 ? "" : "s",
                        end.exit_code));
        return end.exit_code;
      }
      event("restart",
            {{"in_row", decision.in_row},
             {"backoff_s", decision.backoff_s},
             {"checkpointed_step", checkpointed}});
      if (decision.backoff_s > 0)
        output_.say(fmt::format("restarting in {} s", decision.backoff_s));
      if (!pause(decision.backoff_s)) {
        event("stopped", {{"exit_code", end.exit_code}, {"requested", true}});
        return int(ExitCode::kStoppedOnRequest);
      }
      ask_hosts();
      for (const std::string& host : host_record_.take_back(held_)) {
        event("host_taken_back", {{"host", host}});
        output_.say(fmt::format(
            "host {} is used for one more start: it holds snapshots that no other host has", host));
      }
      assignment = host_record_.assign(config_, reachable(), held_);
      if (!assignment) {
        event("no_layout", {{"wanted", describe_wanted_slots(config_)}});
        output_.say(fmt::format("the hosts that answer hold no layout: {} are needed",
                                describe_wanted_slots(config_)));
      }
    }
  }
}

std::vector<Host> Supervisor::reachable() const {
  std::vector<Host> hosts;
  std::ranges::copy_if(options_.hosts, std::back_inserter(hosts), [&](const Host& host) {
    return !unreachable_.contains(host.name);
  });
  return hosts;
}

std::vector<HostAnswer> Supervisor::on_hosts(std::span<const HostTask> tasks) const {
  return run_on_hosts(
      agent_,
      tasks,
      [this](const std::string& host) { return is_here(host); },
      config_.elastic.probe_timeout_s);
}

void Supervisor::ask_hosts() {
  std::vector<HostTask> tasks;
  // The question whether it is there is also the one what it holds.
  const std::string snapshots = snapshots_of_run();
  const std::string ask =
      snapshots.empty() ? "true" : fmt::format("ls {} 2>/dev/null; true", snapshots);
  for (const Host& host : options_.hosts) tasks.push_back({host.name, ask});
  const std::vector<HostAnswer> answers = on_hosts(tasks);
  for (const HostAnswer& answer : answers) {
    const bool was_lost = unreachable_.contains(answer.host);
    held_.erase(answer.host);
    if (answer.exit_code == 0) {
      std::set<int> ranks = ranks_of_snapshots(answer.output);
      if (!ranks.empty()) held_.emplace(answer.host, std::move(ranks));
      if (!was_lost) continue;
      unreachable_.erase(answer.host);
      event("host_back", {{"host", answer.host}});
      output_.say(fmt::format("host {} answers again", answer.host));
      continue;
    }
    const std::string why = answer.exit_code < 0
                                ? fmt::format("no answer in {} s (elastic.probe_timeout_s)",
                                              config_.elastic.probe_timeout_s)
                            : answer.errors.empty() ? fmt::format("exit code {}", answer.exit_code)
                                                    : last_line(answer.errors);
    unreachable_[answer.host] = why;
    if (was_lost) continue;
    event("host_lost", {{"host", answer.host}, {"reason", why}});
    output_.say(fmt::format("host {} does not answer: {}", answer.host, why));
  }
}

std::string Supervisor::snapshots_of_run() const {
  const std::string run_id = run_id_of(options_.job.run_directory);
  const std::string& directory = config_.checkpoint.memory_dir;
  // Agents hand commands on without quotes.
  const bool plain = std::ranges::all_of(directory, [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           std::string_view("/-_.").find(c) != std::string_view::npos;
  });
  if (run_id.empty() || !plain) return {};
  return fmt::format("{}/pecan.{}.*", directory, run_id);
}

void Supervisor::remove_snapshots() {
  const std::string snapshots = snapshots_of_run();
  if (snapshots.empty()) return;
  std::vector<HostTask> tasks;
  for (const Host& host : reachable()) tasks.push_back({host.name, "rm -f " + snapshots});
  static_cast<void>(on_hosts(tasks));
}

void Supervisor::end_leftovers() {
  std::vector<HostTask> tasks;
  for (const auto& [host, pids] : leftovers_) {
    if (unreachable_.contains(host)) continue;
    const std::vector<std::int64_t> list(pids.begin(), pids.end());
    tasks.push_back({host, kill_command(list, marker_)});
  }
  const std::vector<HostAnswer> answers = on_hosts(tasks);
  for (const HostAnswer& answer : answers) {
    if (answer.exit_code != 0) continue;
    leftovers_.erase(answer.host);
    const auto ended = std::ranges::count(answer.output, '\n');
    if (ended == 0) continue;
    event("leftovers", {{"host", answer.host}, {"processes", ended}});
    output_.say(fmt::format(
        "ended {} process{} left on host {}", ended, ended == 1 ? "" : "es", answer.host));
  }
}

Supervisor::End Supervisor::run_job(const Assignment& assignment) {
  const std::string& run = options_.job.run_directory;
  clear_heartbeats(run);
  metrics_offset_ = metrics_size(run);
  scan_ = OutputScan(own_name_);
  const int incarnation = expected_incarnation(run);
  nlohmann::ordered_json fields{{"start", num_starts_}, {"expected_incarnation", incarnation}};
  fields.update(json_of(assignment));
  nlohmann::ordered_json spares = nlohmann::ordered_json::array();
  for (const Host& host : reachable()) {
    if (std::ranges::count(assignment.hosts, host.name, &Host::name) == 0)
      spares.push_back(host.name);
  }
  fields["spares"] = spares;
  event("start", fields);
  output_.say(fmt::format("start {}: {} ranks on {} (tp {}, ep {}, etp {})",
                          num_starts_,
                          assignment.world,
                          hosts_text(assignment.hosts),
                          assignment.layout.tensor_model_parallel_size,
                          assignment.layout.expert_model_parallel_size,
                          assignment.layout.expert_tensor_parallel_size));
  ++num_starts_;

  std::vector<std::string> passed_on = {marker_.substr(0, marker_.find('='))};
  for (const char* name : {"PECAN_FAULT", "OMP_NUM_THREADS"}) {
    if (std::getenv(name) != nullptr) passed_on.emplace_back(name);
  }
  End end;
  end.last_progress = Clock::now();
  Child mpirun =
      start_process(mpirun_command(options_.job, assignment, passed_on), Grouping::kGroup);
  lock_->note_mpirun(mpirun.pid);
  watch(mpirun, assignment, end);
  // Its own children are gone with it, or become this process's.
  end_children(kChildrenGraceS);
  lock_->note_mpirun(0);
  end.metrics = read_start_metrics(run, metrics_offset_);
  if (end.ending != Ending::kDone) {
    for (const HeartbeatRecord& beat : end.beats)
      leftovers_[host_of(assignment, end.beats, beat.rank.value)].insert(beat.pid);
  }
  return end;
}

void Supervisor::take_signals() {
  signalfd_siginfo info{};
  while (::read(signals_.get(), &info, sizeof(info)) == ssize_t(sizeof(info))) {
    if (info.ssi_signo == SIGCHLD) continue;
    if (stop_ == Stop::kNone) {
      stop_ = Stop::kAsked;
      output_.say(
          "asked to stop: the run stops at the next step with a checkpoint; a second signal "
          "ends it at once");
    } else {
      stop_ = Stop::kForced;
    }
  }
}

bool Supervisor::pause(double seconds) {
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (true) {
    take_signals();
    if (stop_ != Stop::kNone) return false;
    if (Clock::now() >= end) return true;
    pollfd wait{signals_.get(), POLLIN, 0};
    ::poll(&wait, 1, kTickMs);
  }
}

void Supervisor::watch(Child& mpirun, const Assignment& assignment, End& end) {
  const double hang_s = config_.elastic.heartbeat_timeout_s;
  // Between looks at the heartbeats: large worlds have many files.
  double look_s = std::max(0.25, double(assignment.world) / 1000);
  if (hang_s > 0) look_s = std::min(look_s, hang_s / 10);
  Clock::time_point next_look = Clock::now();
  std::optional<Clock::time_point> stop_asked, term_sent;
  bool stop_sent = false, killed = false, hung = false;
  LineSplitter out_lines, err_lines;
  const auto read_output = [&] {
    const auto read = [&](Fd& fd, int descriptor, LineSplitter& lines) {
      if (fd.get() < 0) return;
      const bool more = read_available(fd, [&](std::string_view text) {
        output_.pass(descriptor, text);
        lines.add(text, scan_);
      });
      if (!more) fd.close();
    };
    read(mpirun.out, STDOUT_FILENO, out_lines);
    read(mpirun.err, STDERR_FILENO, err_lines);
  };
  const auto terminate = [&] {
    if (term_sent) return;
    term_sent = Clock::now();
    ::kill(mpirun.pid, SIGTERM);
  };

  int status = 0;
  while (::waitpid(mpirun.pid, &status, WNOHANG) != mpirun.pid) {
    std::array<pollfd, 3> waits = {{{mpirun.out.get(), POLLIN, 0},
                                    {mpirun.err.get(), POLLIN, 0},
                                    {signals_.get(), POLLIN, 0}}};
    ::poll(waits.data(), waits.size(), kTickMs);
    read_output();
    take_signals();
    const auto now = Clock::now();
    if (now >= next_look) {
      look_at(assignment, end);
      next_look = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                     std::chrono::duration<double>(look_s));
    }
    if (stop_ != Stop::kNone && !stop_asked) stop_asked = now;
    // A rank that does not handle the signal yet would die of it.
    if (stop_asked && !stop_sent && !term_sent && int(end.beats.size()) == assignment.world) {
      ::kill(mpirun.pid, SIGUSR1);
      stop_sent = true;
    }
    const bool too_late =
        stop_asked && seconds_between(*stop_asked, now) > double(config_.comm.timeout_s);
    if (too_late && !term_sent)
      output_.say(fmt::format("the job did not stop in {} s (comm.timeout_s); ending it",
                              config_.comm.timeout_s));
    if (too_late || stop_ == Stop::kForced) terminate();
    if (!term_sent && hang_s > 0 && seconds_between(end.last_progress, now) > hang_s) {
      hung = true;
      judge_standstill(assignment, end);
      end.detection_s = seconds_between(end.last_progress, Clock::now());
      output_.say(
          fmt::format("no rank has made progress for {} s (elastic.heartbeat_timeout_s): {}{}{}",
                      hang_s,
                      describe_standstill(end.beats, assignment.world),
                      end.culprits.reason.empty() ? "" : "; ",
                      end.culprits.reason));
      terminate();
    }
    if (term_sent && !killed && seconds_between(*term_sent, now) > kTermGraceS) {
      // After a partition mpirun itself may wait for ever.
      killed = true;
      ::kill(-mpirun.pid, SIGKILL);
    }
  }
  read_output();
  // What the ranks did between the last look and their end is no progress of now.
  const Clock::time_point last_progress = end.last_progress;
  look_at(assignment, end);
  end.last_progress = last_progress;
  end.exit_code = exit_code_of(status);
  end.ending = classify(end.exit_code);
  if (scan_.lost_a_daemon()) {
    end.ending = Ending::kHostLost;
  } else if (contradicts(end.ending, end.beats, assignment.world)) {
    end.ending = Ending::kOther;
  }
  // A failure is not told by a code that means something else.
  if (calls_for_restart(end.ending) && !calls_for_restart(classify(end.exit_code)))
    end.exit_code = int(ExitCode::kWatchdog);
  if (hung) {
    end.ending = Ending::kHung;
    end.exit_code = int(ExitCode::kWatchdog);
    return;
  }
  end.detection_s = seconds_between(end.last_progress, Clock::now());
  // Whoever was first to tell the numbers is not to blame for them.
  if (end.ending != Ending::kDiverged) end.culprits = scan_.culprits();
  if (end.ending != Ending::kHostLost || !end.culprits.reason.empty()) return;
  // A daemon was lost, and mpirun does not say whose. Its ranks are the first that begin nothing
  // any more, but others may be behind them.
  end.culprits = standstill_culprits(end.beats, assignment.world, {}, silent_hosts(assignment));
}

void Supervisor::look_at(const Assignment& assignment, End& end) {
  std::vector<HeartbeatRecord> beats = read_heartbeats(options_.job.run_directory);
  std::erase_if(beats, [&](const HeartbeatRecord& beat) { return beat.world != assignment.world; });
  // The clock of another host, or a number that is written twice, is no progress.
  const auto place = [](const HeartbeatRecord& beat) {
    return std::tuple(beat.rank, beat.incarnation, beat.phase, beat.sequence, beat.step);
  };
  if (std::ranges::equal(beats, end.beats, {}, place, place)) return;
  end.beats = std::move(beats);
  end.last_progress = Clock::now();
  const HeartbeatRecord& first = end.beats.empty() ? HeartbeatRecord{} : end.beats.front();
  if (open_failure_ && first.rank.value == 0 && first.phase >= RunPhase::kTraining &&
      first.step.value > 0)
    tell_resumed(end);
}

void Supervisor::tell_resumed(const End& end) {
  const StartMetrics metrics = read_start_metrics(options_.job.run_directory, metrics_offset_);
  const std::int64_t from = metrics.resumed_step.value_or(0);
  const double downtime_s = seconds_between(open_failure_->last_progress, Clock::now());
  const std::int64_t lost = std::max<std::int64_t>(open_failure_->last_step - from, 0);
  event("resumed",
        {{"start", num_starts_ - 1},
         {"incarnation", end.beats.front().incarnation.value},
         {"from_step", from},
         {"lost_steps", lost},
         {"downtime_s", rounded(downtime_s)}});
  output_.say(fmt::format("training goes on from step {}: {} step{} lost, {:.1f} s of downtime",
                          from,
                          lost,
                          lost == 1 ? "" : "s",
                          downtime_s));
  open_failure_.reset();
}

std::vector<std::string> Supervisor::silent_hosts(const Assignment& assignment) const {
  std::vector<HostTask> tasks;
  for (const Host& host : assignment.hosts) tasks.push_back({host.name, "true"});
  std::vector<std::string> silent;
  for (const HostAnswer& answer : on_hosts(tasks)) {
    if (answer.exit_code != 0) silent.push_back(answer.host);
  }
  return silent;
}

void Supervisor::judge_standstill(const Assignment& assignment, End& end) {
  std::map<std::string, std::vector<std::int64_t>> pids;
  std::map<std::pair<std::string, std::int64_t>, int> rank_of;
  for (const Host& host : assignment.hosts) pids[host.name];
  for (const HeartbeatRecord& beat : end.beats) {
    const std::string host = host_of(assignment, end.beats, beat.rank.value);
    pids[host].push_back(beat.pid);
    rank_of[{host, beat.pid}] = beat.rank.value;
  }
  std::vector<HostTask> tasks;
  for (const auto& [host, list] : pids)
    tasks.push_back({host, list.empty() ? "true" : process_states_command(list)});
  std::map<int, char> states;
  std::vector<std::string> silent;
  for (const HostAnswer& answer : on_hosts(tasks)) {
    if (answer.exit_code != 0) {
      silent.push_back(answer.host);
      continue;
    }
    for (const auto& [pid, state] : parse_process_states(answer.output)) {
      const auto rank = rank_of.find({answer.host, pid});
      if (rank != rank_of.end()) states[rank->second] = state;
    }
  }
  end.culprits = standstill_culprits(end.beats, assignment.world, states, silent);
}

std::vector<std::string> Supervisor::culprit_hosts(const Assignment& assignment,
                                                   const End& end) const {
  std::vector<std::string> hosts;
  for (const std::string& name : end.culprits.hosts) {
    const auto same = [&](const Host& host) { return is_same_host(host.name, name); };
    const auto found = std::ranges::find_if(assignment.hosts, same);
    if (found != assignment.hosts.end()) hosts.push_back(found->name);
  }
  for (const int rank : end.culprits.ranks) {
    if (rank < 0 || rank >= assignment.world) continue;
    const std::string host = host_of(assignment, end.beats, rank);
    if (std::ranges::count(hosts, host) == 0) hosts.push_back(host);
  }
  return hosts;
}

bool Supervisor::may_restart_after_divergence(const End& end) {
  // Without a record nothing is known but where it was.
  const Divergence divergence = end.metrics.divergence.value_or(
      Divergence{last_step_of(end.metrics, end.beats) + 1, /*repeatable=*/false});
  const DivergencePolicy::Verdict verdict = divergence_policy_.after(divergence);
  if (verdict == DivergencePolicy::Verdict::kRestart) return true;
  const bool repeatable = verdict == DivergencePolicy::Verdict::kRepeatable;
  event("give_up",
        {{"exit_code", end.exit_code},
         {"reason", repeatable ? "another start would diverge too" : "diverged twice"},
         {"diverged_step", divergence.step}});
  output_.say(fmt::format(
      "the run diverged at step {}, {}",
      divergence.step,
      repeatable
          ? "and would again from the same state with the same data: no restart; lower "
            "optimizer.lr, or let training.check_for_nan_in_loss_and_grad=skip and "
            "training.rollback_after_skips pass over the data, and start pecan-launch again"
          : "and had been restarted after a divergence that it did not get past: no restart; "
            "look at what the two say, leave out a host that they name, and start pecan-launch "
            "again"));
  return false;
}

void Supervisor::tell_failure(const Assignment& assignment, const End& end) {
  const std::int64_t last_step = last_step_of(end.metrics, end.beats);
  event("failure",
        {{"start", num_starts_ - 1},
         {"exit_code", end.exit_code},
         {"kind", name_of(end.ending)},
         {"ranks", end.culprits.ranks},
         {"hosts", culprit_hosts(assignment, end)},
         {"reason", end.culprits.reason},
         {"last_step", last_step},
         {"detection_s", rounded(end.detection_s)}});
  output_.say(fmt::format("start {} failed with exit code {} ({}{}{}), last step {}",
                          num_starts_ - 1,
                          end.exit_code,
                          name_of(end.ending),
                          end.culprits.reason.empty() ? "" : ": ",
                          end.culprits.reason,
                          last_step));
  // Starts that do not come to train add to the downtime of the first failure.
  if (!open_failure_) open_failure_ = OpenFailure{end.last_progress, last_step};
}

}  // namespace pecan::launch
