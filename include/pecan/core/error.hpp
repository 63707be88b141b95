#pragma once
/// Errors: exceptions for what ends the operation, Result<T> where failure is expected and work
/// goes on. Message grammar: what is wrong, the offending value, why, what to try.

#include <optional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>

#include <fmt/format.h>

namespace pecan {

/// Exit codes of the programs (design: programs). Part of the command-line contract: never
/// renumber.
enum class ExitCode : int {
  kDone = 0,
  kUsage = 2,
  kData = 3,
  kCheckpoint = 4,
  kWatchdog = 5,
  kDivergence = 6,
  kInternal = 70,
  kStoppedOnRequest = 75,
};

/// Base of every exception of the project; carries where it was thrown and the program's exit code
/// for it.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message, std::source_location where)
      : std::runtime_error(message), code_(code), where_(where) {}
  [[nodiscard]] ExitCode exit_code() const { return code_; }
  [[nodiscard]] const std::source_location& where() const { return where_; }

 private:
  ExitCode code_;
  std::source_location where_;
};

#define PECAN_DEFINE_ERROR(Name, code)                                          \
  class Name : public Error {                                                   \
   public:                                                                      \
    explicit Name(const std::string& message,                                   \
                  std::source_location where = std::source_location::current()) \
        : Error(code, message, where) {}                                        \
  }

/// A configuration, flag or layout that cannot be used (exit 2).
PECAN_DEFINE_ERROR(ConfigError, ExitCode::kUsage);
/// A corpus, token file or tokenizer that cannot be used (exit 3).
PECAN_DEFINE_ERROR(DataError, ExitCode::kData);
/// A checkpoint that cannot be written to or recovered from (exit 4).
PECAN_DEFINE_ERROR(CheckpointError, ExitCode::kCheckpoint);
/// Bytes that contradict their checksum or their format (exit 4).
PECAN_DEFINE_ERROR(CorruptionError, ExitCode::kCheckpoint);
/// A peer that is stuck, lost or has aborted (exit 5).
PECAN_DEFINE_ERROR(CommError, ExitCode::kWatchdog);
/// Numbers that cannot be trained on: loss, gradients or replicas (exit 6).
PECAN_DEFINE_ERROR(DivergenceError, ExitCode::kDivergence);
/// A device that fails or is absent (exit 70).
PECAN_DEFINE_ERROR(DeviceError, ExitCode::kInternal);
/// Shapes or dtypes that do not fit together: a mistake in the program (exit 70).
PECAN_DEFINE_ERROR(ShapeError, ExitCode::kInternal);
/// A broken invariant (exit 70).
PECAN_DEFINE_ERROR(InternalError, ExitCode::kInternal);
/// A part of the engine that this build does not hold (exit 2).
PECAN_DEFINE_ERROR(NotConfigured, ExitCode::kUsage);
#undef PECAN_DEFINE_ERROR

enum class StatusCode : int {
  kOk,
  kNotFound,
  kPermission,
  kNoSpace,
  kIo,
  kCorrupt,
  kExists,
  kInvalid
};

/// Outcome of an operation whose failure is expected. Default-constructed: success.
struct [[nodiscard]] Status {
  StatusCode code = StatusCode::kOk;
  std::string message;

  [[nodiscard]] bool ok() const { return code == StatusCode::kOk; }
  static Status failure(StatusCode code, std::string message) { return {code, std::move(message)}; }
};

/// A value or the Status that says why there is none. value() on a failure throws InternalError.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT: conversions are the point
  Result(Status status) : status_(std::move(status)) {  // NOLINT
    if (status_.ok()) throw InternalError("a Result without a value needs a failure status");
  }
  [[nodiscard]] bool ok() const { return value_.has_value(); }
  [[nodiscard]] const Status& status() const { return status_; }
  [[nodiscard]] T& value() & { return checked(); }
  [[nodiscard]] const T& value() const& { return const_cast<Result*>(this)->checked(); }
  [[nodiscard]] T&& value() && { return std::move(checked()); }

 private:
  T& checked() {
    if (!value_) throw InternalError("value() of a failed Result: " + status_.message);
    return *value_;
  }
  std::optional<T> value_;
  Status status_;
};

namespace detail {
[[noreturn]] void assertion_failed(const char* kind,
                                   const char* condition,
                                   std::source_location where);
}

}  // namespace pecan

#if PECAN_ASSERTIONS
#define PECAN_CHECK_AS(kind, condition) \
  ((condition)                          \
       ? void(0)                        \
       : ::pecan::detail::assertion_failed(kind, #condition, std::source_location::current()))
#else
#define PECAN_CHECK_AS(kind, condition) ((void)sizeof(!(condition)))
#endif
/// Precondition, invariant and postcondition of correct code; checked in builds with
/// PECAN_ASSERTIONS.
#define PECAN_EXPECTS(condition) PECAN_CHECK_AS("precondition", condition)
#define PECAN_ASSERT(condition) PECAN_CHECK_AS("invariant", condition)
#define PECAN_ENSURES(condition) PECAN_CHECK_AS("postcondition", condition)

/// Always checked: throws `Exception` with a formatted message; for what a user, file or peer
/// supplied.
#define PECAN_VALIDATE(condition, Exception, ...)                \
  do {                                                           \
    if (!(condition)) throw Exception(fmt::format(__VA_ARGS__)); \
  } while (false)
