#pragma once
/// What the environment asks for; see include/pecan_emulation/control.hpp.

#include <cstdint>
#include <optional>
#include <string>

#include <pecan_emulation/control.hpp>
#include <pecan_emulation/execution.hpp>

namespace pecan::emulation {

struct Settings {
  Schedule schedule = Schedule::kForward;
  std::uint64_t seed = 1;
  int num_not_ready = 0;
  int num_devices = 1;
  std::size_t shared_bytes = kPecanEmulationSharedBytes;
  std::size_t memory_bytes = std::size_t{8192} << 20;
  bool reads_pageable = false;
  int nccl_timeout_ms = 60000;
  std::string statistics_file;
};

/// The settings of this process; read from the environment at the first call.
Settings& settings();

/// Counts a call of `function` and returns the code that it has to fail with, if any.
std::optional<int> count_call(const char* function);

}  // namespace pecan::emulation
