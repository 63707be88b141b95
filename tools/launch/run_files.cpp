#include "launch/run_files.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <span>
#include <system_error>
#include <vector>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <pecan/core/file_system.hpp>
#include <pecan/core/hash.hpp>
#include <pecan/core/text.hpp>

#include "launch/process.hpp"

namespace pecan::launch {
namespace {

nlohmann::json parsed(std::string_view text) {
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

template <typename Number>
std::optional<Number> number_at(const nlohmann::json& json, const char* key) {
  const auto found = json.is_object() ? json.find(key) : json.end();
  if (found == json.end() || !found->is_number_integer()) return {};
  return found->template get<Number>();
}

/// What the run's lock says; no object without one.
nlohmann::json lock_of(const std::string& run_directory) {
  const auto text = read_text(*make_posix_file_system(), run_directory + "/lock.json");
  return text.ok() ? parsed(text.value()) : nlohmann::json();
}

std::string metrics_path(const std::string& run_directory) {
  return run_directory + "/metrics.jsonl";
}

}  // namespace

std::int64_t newest_checkpointed_step(const std::string& run_directory) {
  std::int64_t newest = -1;
  const auto entries = make_posix_file_system()->list(run_directory + "/checkpoints");
  if (!entries.ok()) return newest;
  for (const DirEntry& entry : entries.value()) {
    constexpr std::string_view kPrefix = "step-";
    if (!entry.is_directory || !entry.name.starts_with(kPrefix)) continue;
    std::int64_t step = 0;
    const char* const end = entry.name.data() + entry.name.size();
    const auto read = std::from_chars(entry.name.data() + kPrefix.size(), end, step);
    // "step-00000120.partial" is not committed.
    if (read.ec == std::errc() && read.ptr == end) newest = std::max(newest, step);
  }
  return newest;
}

int expected_incarnation(const std::string& run_directory) {
  return number_at<int>(lock_of(run_directory), "incarnation").value_or(-1) + 1;
}

std::string run_id_of(const std::string& run_directory) {
  const nlohmann::json lock = lock_of(run_directory);
  if (!lock.is_object() || !lock.contains("run_id") || !lock["run_id"].is_string()) return {};
  std::string id = lock["run_id"].get<std::string>();
  const bool plain = std::ranges::all_of(
      id, [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; });
  return plain ? id : std::string();
}

std::uint64_t metrics_size(const std::string& run_directory) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(metrics_path(run_directory), error);
  return error ? 0 : size;
}

StartMetrics parse_start_metrics(std::string_view appended) {
  StartMetrics metrics;
  while (!appended.empty()) {
    const std::size_t end = appended.find('\n');
    const std::string_view line = appended.substr(0, end);
    appended.remove_prefix(end == std::string_view::npos ? appended.size() : end + 1);
    const auto is = [&](std::string_view mark) {
      return line.find(mark) != std::string_view::npos;
    };
    const bool is_step = is(R"("kind":"step")"), is_divergence = is(R"("kind":"divergence")");
    const bool is_kept = is(R"("kind":"snapshot")") && is(R"("committed":true)");
    if (!is_step && !is_divergence && !is_kept && !is(R"("kind":"recovery")")) continue;
    const nlohmann::json record = parsed(line);
    const auto step = number_at<std::int64_t>(record, "step");
    if (!step) continue;
    if (is_divergence) {
      metrics.divergence = {*step, record.value("repeatable", nlohmann::json()) == true};
    } else {
      (is_kept ? metrics.kept_step : is_step ? metrics.last_step : metrics.resumed_step) = step;
    }
  }
  return metrics;
}

StartMetrics read_start_metrics(const std::string& run_directory, std::uint64_t offset) {
  constexpr std::uint64_t kPart = std::uint64_t{64} << 20U;
  const auto fs = make_posix_file_system();
  const auto file = fs->open(metrics_path(run_directory), OpenMode::kRead);
  if (!file.ok()) return {};
  const auto size = file.value()->size();
  if (!size.ok() || size.value() <= offset) return {};
  const auto part = [&](std::uint64_t begin) {
    std::string text(std::size_t(std::min(size.value() - begin, kPart)), '\0');
    const auto read = file.value()->read_at(begin, std::as_writable_bytes(std::span(text)));
    text.resize(read.ok() ? read.value() : 0);
    return parse_start_metrics(text);
  };
  StartMetrics metrics = part(offset);
  if (size.value() - offset > kPart) {
    const StartMetrics tail = part(size.value() - kPart);
    if (tail.last_step) metrics.last_step = tail.last_step;
    if (tail.kept_step) metrics.kept_step = tail.kept_step;
    if (tail.divergence) metrics.divergence = tail.divergence;
  }
  return metrics;
}

std::string time_text(std::int64_t ms_since_1970) {
  const std::time_t seconds = ms_since_1970 / 1000;
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
                     parts.tm_year + 1900,
                     parts.tm_mon + 1,
                     parts.tm_mday,
                     parts.tm_hour,
                     parts.tm_min,
                     parts.tm_sec,
                     ms_since_1970 % 1000);
}

EventLog::EventLog(const std::string& run_directory) {
  const std::string path = run_directory + "/events.jsonl";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  PECAN_VALIDATE(fd_ >= 0,
                 CheckpointError,
                 "{} cannot be written: {}; check owner and mode of the run directory",
                 path,
                 errno_text(errno));
  // A line that a crash has cut short must not swallow the next one.
  if (ends_within_line(*make_posix_file_system(), path)) static_cast<void>(write_all(fd_, "\n"));
}

EventLog::~EventLog() {
  ::close(fd_);
}

bool EventLog::write(std::string_view event, const nlohmann::ordered_json& fields) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  nlohmann::ordered_json record{
      {"time", time_text(std::chrono::duration_cast<std::chrono::milliseconds>(now).count())},
      {"event", event}};
  record.update(fields);
  return write_all(
      fd_, record.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

LaunchLock::LaunchLock(const std::string& run_directory) : path_(run_directory + "/launch.lock") {
  fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  PECAN_VALIDATE(fd_ >= 0,
                 CheckpointError,
                 "{} cannot be opened: {}; check owner and mode of the run directory",
                 path_,
                 errno_text(errno));
  std::array<char, 512> text{};
  const bool locked = ::flock(fd_, LOCK_EX | LOCK_NB) == 0;
  const int error = errno;
  static_cast<void>(::pread(fd_, text.data(), text.size() - 1, 0));
  const nlohmann::json note = parsed(text.data());
  if (!locked) {
    ::close(fd_);
    PECAN_VALIDATE(error == EWOULDBLOCK,
                   CheckpointError,
                   "{} cannot be locked: {}; the run directory needs a file system with locks",
                   path_,
                   errno_text(error));
    throw CheckpointError(fmt::format(
        "{} supervises the run in {} already; stop that one, or choose another --run-dir",
        note.is_object() ? fmt::format("pecan-launch {} on {}",
                                       note.value("pid", 0),
                                       note.value("host", std::string("another host")))
                         : std::string("another pecan-launch"),
        run_directory));
  }
  former_.mpirun_pid = number_at<std::int64_t>(note, "mpirun").value_or(0);
  if (note.is_object() && note.contains("host") && note["host"].is_string())
    former_.host = note["host"].get<std::string>();
  note_mpirun(former_.mpirun_pid);
}

LaunchLock::~LaunchLock() {
  ::close(fd_);
}

void LaunchLock::note_mpirun(std::int64_t pid) {
  const std::string text =
      nlohmann::json{{"pid", ::getpid()}, {"host", host_name()}, {"mpirun", pid}}.dump() + "\n";
  // Without the note a successor takes over all the same, only less tidily.
  if (::ftruncate(fd_, 0) == 0) static_cast<void>(::pwrite(fd_, text.data(), text.size(), 0));
}

std::string supervision_marker(const std::string& run_directory) {
  std::error_code error;
  const std::filesystem::path whole = std::filesystem::weakly_canonical(run_directory, error);
  return "PECAN_SUPERVISED=" + to_hex(xxh3(error ? run_directory : whole.string()));
}

}  // namespace pecan::launch
