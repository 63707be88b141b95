#pragma once
/// Logging. Messages start with "[layer]". Programs print each message once, on rank 0.

#include <functional>
#include <string_view>

#include <fmt/format.h>

namespace pecan {

enum class LogLevel : int { kDebug, kInfo, kWarn, kError };

/// "debug", "info", "warn" or "error"; ConfigError for any other word.
[[nodiscard]] LogLevel log_level_from_name(std::string_view name);

/// Where records go besides standard error; used by tests, where an unexpected warning fails the
/// test.
using LogSink = std::function<void(LogLevel, std::string_view)>;
/// Installs `sink` for the whole process and returns the former one; empty means standard error.
LogSink set_log_sink(LogSink sink);
/// Called once by main: `prefix` is put before each record ("[rank 3] "), records below `level` are
/// dropped.
void configure_log(LogLevel level, std::string_view prefix);
[[nodiscard]] bool log_enabled(LogLevel level);
/// Emits one record; thread-safe.
void log_record(LogLevel level, std::string_view message);

}  // namespace pecan

/// PECAN_LOG(kWarn, "[data] {} documents are empty", n)
#define PECAN_LOG(level, ...)                                                  \
  do {                                                                         \
    if (::pecan::log_enabled(::pecan::LogLevel::level))                        \
      ::pecan::log_record(::pecan::LogLevel::level, fmt::format(__VA_ARGS__)); \
  } while (false)
