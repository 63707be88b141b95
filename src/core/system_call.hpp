#pragma once
/// Calls of the operating system and what their errors mean.

#include <cerrno>
#include <string>
#include <string_view>

#include <pecan/core/error.hpp>

namespace pecan {

/// "<action> <path> failed: <what errno says>; <what to try>".
[[nodiscard]] Status failure(std::string_view action, const std::string& path, int error);

/// Repeats a system call that a signal interrupts.
template <typename Call>
auto uninterrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

}  // namespace pecan
