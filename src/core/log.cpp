#include <atomic>
#include <mutex>
#include <string>
#include <utility>

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <pecan/core/error.hpp>
#include <pecan/core/log.hpp>

namespace pecan {
namespace {

// Where a process's records go is the one thing that belongs to the process and not to a rank or
// thread.
struct LogState {
  std::mutex mutex;
  LogSink sink;
  std::string prefix;
  std::atomic<LogLevel> level{LogLevel::kInfo};
  spdlog::logger console{"pecan", std::make_shared<spdlog::sinks::stderr_sink_mt>()};
  LogState() {
    console.set_pattern("%v");
    console.set_level(spdlog::level::trace);
    console.flush_on(spdlog::level::trace);
  }
};

LogState& state() {
  static LogState instance;
  return instance;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

const char* label_of(LogLevel level) {
  switch (level) {
    case LogLevel::kWarn:
      return "warning: ";
    case LogLevel::kError:
      return "error: ";
    default:
      return "";
  }
}

}  // namespace

LogLevel log_level_from_name(std::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warn") return LogLevel::kWarn;
  if (name == "error") return LogLevel::kError;
  throw ConfigError(fmt::format("\"{}\" is no log level; use debug, info, warn or error", name));
}

LogSink set_log_sink(LogSink sink) {
  const std::lock_guard lock(state().mutex);
  return std::exchange(state().sink, std::move(sink));
}

void configure_log(LogLevel level, std::string_view prefix) {
  const std::lock_guard lock(state().mutex);
  state().level = level;
  state().prefix = prefix;
}

bool log_enabled(LogLevel level) {
  return level >= state().level.load();
}

void log_record(LogLevel level, std::string_view message) {
  const std::lock_guard lock(state().mutex);
  if (state().sink) {
    state().sink(level, message);
  } else {
    state().console.log(to_spdlog(level), "{}{}{}", state().prefix, label_of(level), message);
  }
}

}  // namespace pecan
