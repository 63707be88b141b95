#pragma once
/// Processes that the supervisor starts, and what it runs on hosts.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include <sys/types.h>

namespace pecan::launch {

/// A pipe's end or another file; closed with the object. Move-only.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd();
  Fd(Fd&& other) noexcept;
  Fd& operator=(Fd&& other) noexcept;
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  [[nodiscard]] int get() const { return fd_; }
  void close();

 private:
  int fd_ = -1;
};

/// A process, the leader of a group of its own, without input, whose output is read here.
struct Child {
  pid_t pid = 0;
  Fd out, err;  ///< do not block
};

enum class Grouping : std::uint8_t {
  kGroup,   ///< same session
  kSession  ///< its own: cannot ask for a password
};
/// Starts `words`; with this process's death it gets SIGTERM. InternalError without processes or
/// files; ConfigError if the program cannot be run.
[[nodiscard]] Child start_process(std::span<const std::string> words, Grouping grouping);
/// Reads what is there; false at the end of the file.
bool read_available(const Fd& fd, const std::function<void(std::string_view)>& take);
/// Writes all of `text`, whatever signals come; false if the file takes no more.
bool write_all(int fd, std::string_view text);
/// This machine's.
[[nodiscard]] std::string host_name();
/// 128 + n for signal n, as a shell says it.
[[nodiscard]] int exit_code_of(int wait_status);
/// Makes orphans of processes that this one has started its own children.
void adopt_orphans();
/// Waits `grace_s` for all children to end, then kills them, for at most as long again. Returns how
/// many were killed.
int end_children(double grace_s);

/// Something to run on a host.
struct HostTask {
  std::string host;
  std::string command;  ///< for a shell
};
struct HostAnswer {
  std::string host;
  int exit_code = -1;  ///< -1: no answer in time
  std::string output;
  std::string errors;
};
/// Runs all tasks at once, each as `agent host command`, or by a shell here where `is_here(host)`.
/// What takes longer than `limit_s` is killed.
[[nodiscard]] std::vector<HostAnswer> run_on_hosts(
    std::span<const std::string> agent,
    std::span<const HostTask> tasks,
    const std::function<bool(const std::string&)>& is_here,
    double limit_s);

}  // namespace pecan::launch
