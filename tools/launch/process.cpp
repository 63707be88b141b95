#include "launch/process.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pecan/core/error.hpp>
#include <pecan/core/text.hpp>

namespace pecan::launch {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Pipe {
  Fd read, write;
};

Pipe make_pipe() {
  std::array<int, 2> ends{};
  PECAN_VALIDATE(::pipe2(ends.data(), O_CLOEXEC) == 0,
                 InternalError,
                 "a pipe cannot be made: {}; raise the limit of open files (ulimit -n)",
                 errno_text(errno));
  return {Fd(ends[0]), Fd(ends[1])};
}

void stop_blocking(const Fd& fd) {
  ::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
}

/// In the child: becomes the program, or tells through `errors` why not.
[[noreturn]] void become(std::vector<char*>& arguments,
                         Grouping grouping,
                         const Pipe& out,
                         const Pipe& err,
                         const Pipe& errors,
                         pid_t parent) {
  if (grouping == Grouping::kSession) {
    ::setsid();
  } else {
    ::setpgid(0, 0);
  }
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(1);
  const int nothing = ::open("/dev/null", O_RDONLY);
  ::dup2(nothing, STDIN_FILENO);
  ::dup2(out.write.get(), STDOUT_FILENO);
  ::dup2(err.write.get(), STDERR_FILENO);
  std::signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execvp(arguments.front(), arguments.data());
  const int error = errno;
  static_cast<void>(!::write(errors.write.get(), &error, sizeof(error)));
  ::_exit(127);
}

/// Processes whose parent this one is.
std::vector<pid_t> children() {
  std::vector<pid_t> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename().string();
    pid_t pid = 0;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (parsed.ec != std::errc() || parsed.ptr != name.data() + name.size()) continue;
    std::ifstream file(entry.path() / "stat");
    const std::string stat((std::istreambuf_iterator<char>(file)), {});
    const std::size_t end = stat.rfind(") ");
    if (end == std::string::npos || end + 4 >= stat.size()) continue;
    pid_t parent = 0;  // behind ") S "
    std::from_chars(stat.data() + end + 4, stat.data() + stat.size(), parent);
    if (parent == ::getpid()) found.push_back(pid);
  }
  return found;
}

}  // namespace

Fd::~Fd() {
  close();
}

Fd::Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void Fd::close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

Child start_process(std::span<const std::string> words, Grouping grouping) {
  std::vector<std::string> copies(words.begin(), words.end());
  std::vector<char*> arguments;
  for (std::string& word : copies) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  Pipe out = make_pipe(), err = make_pipe(), errors = make_pipe();
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  PECAN_VALIDATE(pid >= 0,
                 InternalError,
                 "no process can be made for {}: {}; raise the limit of processes (ulimit -u)",
                 words.front(),
                 errno_text(errno));
  if (pid == 0) become(arguments, grouping, out, err, errors, parent);
  if (grouping == Grouping::kGroup) ::setpgid(pid, pid);  // whoever comes first
  errors.write.close();
  int error = 0;
  ssize_t length = 0;
  do length = ::read(errors.read.get(), &error, sizeof(error));
  while (length < 0 && errno == EINTR);
  if (length == ssize_t(sizeof(error))) {
    ::waitpid(pid, nullptr, 0);
    throw ConfigError(fmt::format("{} cannot be run: {}; install it, or correct its path or PATH",
                                  words.front(),
                                  errno_text(error)));
  }
  stop_blocking(out.read);
  stop_blocking(err.read);
  return {pid, std::move(out.read), std::move(err.read)};
}

bool read_available(const Fd& fd, const std::function<void(std::string_view)>& take) {
  std::array<char, 65536> buffer{};
  while (true) {
    const ssize_t length = ::read(fd.get(), buffer.data(), buffer.size());
    if (length > 0) {
      take({buffer.data(), std::size_t(length)});
      continue;
    }
    if (length < 0 && errno == EINTR) continue;
    return length < 0 && errno == EAGAIN;
  }
}

bool write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    text.remove_prefix(std::size_t(written));
  }
  return true;
}

std::string host_name() {
  std::array<char, 256> text{};
  static_cast<void>(::gethostname(text.data(), text.size() - 1));
  return text.data();
}

int exit_code_of(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

void adopt_orphans() {
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
}

int end_children(double grace_s) {
  constexpr std::chrono::milliseconds kNap{10};
  int killed = 0;
  const auto start = Clock::now();
  std::vector<pid_t> signalled;
  while (true) {
    const pid_t ended = ::waitpid(-1, nullptr, WNOHANG);
    if (ended > 0 || (ended < 0 && errno == EINTR)) continue;
    if (ended < 0) return killed;  // none is left
    if (seconds_since(start) > 2 * grace_s + 1) return killed;
    if (seconds_since(start) > grace_s) {
      for (const pid_t pid : children()) {
        if (std::ranges::count(signalled, pid) > 0 || ::kill(pid, SIGKILL) != 0) continue;
        signalled.push_back(pid);
        ++killed;
      }
    }
    ::usleep(useconds_t(std::chrono::microseconds(kNap).count()));
  }
}

std::vector<HostAnswer> run_on_hosts(std::span<const std::string> agent,
                                     std::span<const HostTask> tasks,
                                     const std::function<bool(const std::string&)>& is_here,
                                     double limit_s) {
  static constexpr std::size_t kMostBytes = 1 << 20;
  std::vector<HostAnswer> answers;
  std::vector<Child> running;
  for (const HostTask& task : tasks) {
    std::vector<std::string> words(agent.begin(), agent.end());
    if (is_here(task.host)) {
      words = {"/bin/sh", "-c", task.command};
    } else {
      words.push_back(task.host);
      words.push_back(task.command);
    }
    answers.push_back({task.host, -1, {}, {}});
    running.push_back(start_process(words, Grouping::kSession));
  }
  const auto start = Clock::now();
  const auto keep = [](std::string& text) {
    return [&text](std::string_view more) {
      text += more.substr(0, kMostBytes - std::min(kMostBytes, text.size()));
    };
  };
  // The agent's own end counts: what it leaves behind may keep the pipes open.
  const auto conclude = [&](std::size_t i, int options) {
    int status = 0;
    if (::waitpid(running[i].pid, &status, options) != running[i].pid) return false;
    read_available(running[i].out, keep(answers[i].output));
    read_available(running[i].err, keep(answers[i].errors));
    running[i].pid = 0;
    answers[i].exit_code = exit_code_of(status);
    return true;
  };
  while (seconds_since(start) < limit_s) {
    std::vector<pollfd> waits;
    for (std::size_t i = 0; i < running.size(); ++i) {
      if (running[i].pid == 0 || conclude(i, WNOHANG)) continue;
      for (Fd* fd : {&running[i].out, &running[i].err}) {
        if (fd->get() < 0) continue;
        if (!read_available(*fd,
                            keep(fd == &running[i].out ? answers[i].output : answers[i].errors))) {
          fd->close();
        } else {
          waits.push_back({fd->get(), POLLIN, 0});
        }
      }
    }
    if (std::ranges::all_of(running, [](const Child& child) { return child.pid == 0; }))
      return answers;
    constexpr int kTickMs = 20;
    ::poll(waits.data(), nfds_t(waits.size()), kTickMs);
  }
  for (std::size_t i = 0; i < running.size(); ++i) {
    if (running[i].pid == 0) continue;
    ::kill(-running[i].pid, SIGKILL);
    ::kill(running[i].pid, SIGKILL);
    conclude(i, 0);
    answers[i].exit_code = -1;
  }
  return answers;
}

}  // namespace pecan::launch
