#include "settings.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string_view>
#include <vector>

#include <fmt/format.h>

namespace pecan::emulation {
namespace {

struct Failure {
  std::string function;
  std::uint64_t call = 0;
  bool goes_on = false;
  std::optional<int> code;
};

std::mutex calls_mutex;
std::map<std::string, std::uint64_t, std::less<>> calls;
std::vector<Failure> failures;
std::map<std::string, std::uint64_t, std::less<>> calls_before_injection;

// As the functions fail where memory or the machine is at its end.
int default_code(std::string_view function) {
  constexpr int kCudaMemoryAllocation = 2;
  constexpr int kCudaLaunchOutOfResources = 701;
  constexpr int kCudaUnknown = 999;
  constexpr int kCublasAllocFailed = 3;
  constexpr int kNcclSystemError = 2;
  if (function.starts_with("nccl")) return kNcclSystemError;
  if (function.starts_with("cublas")) return kCublasAllocFailed;
  if (function.starts_with("cudaLaunch")) return kCudaLaunchOutOfResources;
  if (function.starts_with("cudaMalloc") || function.starts_with("cudaHost") ||
      function.find("Create") != std::string_view::npos) {
    return kCudaMemoryAllocation;
  }
  return kCudaUnknown;
}

template <typename T>
T parse_number(std::string_view name, std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) {
    throw std::invalid_argument(fmt::format("{}: '{}' is no number", name, text));
  }
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::vector<Failure> parse_failures(std::string_view text) {
  std::vector<Failure> parsed;
  if (text.empty()) return parsed;
  for (const std::string_view item : split(text, ',')) {
    const std::vector<std::string_view> parts = split(item, ':');
    if (parts.size() < 2 || parts.size() > 3) {
      throw std::invalid_argument(
          fmt::format("PECAN_EMULATION_FAIL: '{}' is not of the form name:n[+][:code]", item));
    }
    Failure failure;
    failure.function = parts[0];
    std::string_view call = parts[1];
    failure.goes_on = call.ends_with('+');
    if (failure.goes_on) call.remove_suffix(1);
    failure.call = parse_number<std::uint64_t>("PECAN_EMULATION_FAIL", call);
    if (parts.size() == 3) failure.code = parse_number<int>("PECAN_EMULATION_FAIL", parts[2]);
    parsed.push_back(std::move(failure));
  }
  return parsed;
}

template <typename T>
void read_variable(const char* name, T& value) {
  if (const char* text = std::getenv(name)) value = parse_number<T>(name, text);
}

Settings read_environment() {
  Settings read;
  try {
    if (const char* text = std::getenv("PECAN_EMULATION_SCHEDULE")) {
      const std::string_view schedule = text;
      if (schedule == "reverse") {
        read.schedule = Schedule::kReverse;
      } else if (schedule == "random") {
        read.schedule = Schedule::kRandom;
      } else if (schedule != "forward") {
        throw std::invalid_argument(fmt::format(
            "PECAN_EMULATION_SCHEDULE: '{}' is none of forward, reverse, random", schedule));
      }
    }
    read_variable("PECAN_EMULATION_SEED", read.seed);
    read_variable("PECAN_EMULATION_NOT_READY", read.num_not_ready);
    read_variable("PECAN_EMULATION_DEVICES", read.num_devices);
    std::size_t shared_kb = read.shared_bytes >> 10;
    read_variable("PECAN_EMULATION_SHARED_KB", shared_kb);
    read.shared_bytes = std::min(read.shared_bytes, shared_kb << 10);
    read_variable("PECAN_EMULATION_NCCL_TIMEOUT_MS", read.nccl_timeout_ms);
    int reads_pageable = 0;
    read_variable("PECAN_EMULATION_READS_PAGEABLE", reads_pageable);
    read.reads_pageable = reads_pageable != 0;
    std::size_t memory_mb = read.memory_bytes >> 20;
    read_variable("PECAN_EMULATION_MEMORY_MB", memory_mb);
    read.memory_bytes = memory_mb << 20;
    if (const char* text = std::getenv("PECAN_EMULATION_STATISTICS")) read.statistics_file = text;
    if (const char* text = std::getenv("PECAN_EMULATION_FAIL")) failures = parse_failures(text);
  } catch (const std::invalid_argument& error) {
    // No caller of the CUDA API awaits an exception.
    fmt::print(stderr, "{}\n", error.what());
    std::abort();
  }
  return read;
}

}  // namespace

Settings& settings() {
  static Settings read = read_environment();
  return read;
}

std::optional<int> count_call(const char* function) {
  settings();
  const std::scoped_lock lock(calls_mutex);
  const std::uint64_t call = ++calls[function];
  for (const Failure& failure : failures) {
    if (failure.function != function) continue;
    const std::uint64_t counted = call - calls_before_injection[function];
    if (counted == failure.call || (failure.goes_on && counted > failure.call)) {
      return failure.code.value_or(default_code(function));
    }
  }
  return std::nullopt;
}

void set_schedule(Schedule schedule, std::uint64_t seed) {
  settings().schedule = schedule;
  settings().seed = seed;
}

void inject_failures(const std::string& text) {
  settings();
  std::vector<Failure> parsed = parse_failures(text);
  const std::scoped_lock lock(calls_mutex);
  failures = std::move(parsed);
  calls_before_injection = calls;
}

void set_queries_not_ready(int num_queries) {
  settings().num_not_ready = num_queries;
}

void set_num_devices(int num_devices) {
  settings().num_devices = num_devices;
}

void set_reads_pageable(bool reads) {
  settings().reads_pageable = reads;
}

void set_nccl_timeout_ms(int milliseconds) {
  settings().nccl_timeout_ms = milliseconds;
}

std::uint64_t num_calls(const std::string& function) {
  const std::scoped_lock lock(calls_mutex);
  const auto found = calls.find(function);
  return found == calls.end() ? 0 : found->second;
}

}  // namespace pecan::emulation
