#pragma once
/// What a test asks of the emulation, beside the CUDA API. Every setting is also read from the
/// environment, once, at the first use:
///
///   PECAN_EMULATION_SCHEDULE    forward, reverse or random: order of blocks and of threads
///   PECAN_EMULATION_SEED        seed of the random order, 1 by default
///   PECAN_EMULATION_FAIL        calls that fail, as name:n[:code], comma separated; the n-th call
///   of
///                               the function returns the code (an out-of-memory or a launch error
///                               by default); with name:n+ that call and all later ones
///   PECAN_EMULATION_NOT_READY   how many times each query of new work says cudaErrorNotReady
///   PECAN_EMULATION_DEVICES     number of devices, 1 by default
///   PECAN_EMULATION_SHARED_KB   shared memory of a block at most, 227 by default, as on sm_90
///   PECAN_EMULATION_MEMORY_MB   memory of a device, 8192 by default
///   PECAN_EMULATION_READS_PAGEABLE  1: as on GH200, copies to the device read pageable memory by
///                               themselves, after the call has returned; 0 by default
///   PECAN_EMULATION_NCCL_TIMEOUT_MS  after which a collective without its peers fails, 60000 by
///   default PECAN_EMULATION_STATISTICS  a file (or - for standard error) for the access statistics
///
/// A process whose findings nobody has taken ends with exit code 86.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <pecan_emulation/visibility.hpp>

namespace pecan::emulation {

enum class Schedule : std::uint8_t { kForward, kReverse, kRandom };

/// What the checker found since the last call, in order, each as "kind: text". Whoever takes them
/// answers for them: the exit code stays as it is.
[[nodiscard]] PECAN_EMULATION_API std::vector<std::string> take_findings();
PECAN_EMULATION_API void set_schedule(Schedule schedule, std::uint64_t seed);
/// Replaces the failures to inject and starts counting calls anew; an empty text ends it. Throws
/// std::invalid_argument where the text cannot be read.
PECAN_EMULATION_API void inject_failures(const std::string& failures);
PECAN_EMULATION_API void set_queries_not_ready(int num_queries);
PECAN_EMULATION_API void set_num_devices(int num_devices);
PECAN_EMULATION_API void set_reads_pageable(bool reads);
/// After how many milliseconds a collective fails whose other ranks do not come.
PECAN_EMULATION_API void set_nccl_timeout_ms(int milliseconds);
/// Calls of a function of the API since the start, injected failures included.
[[nodiscard]] PECAN_EMULATION_API std::uint64_t num_calls(const std::string& function);
/// Forgets errors that would otherwise stay until the end of the process.
PECAN_EMULATION_API void reset_device();
/// Bytes that are allocated on the device now.
[[nodiscard]] PECAN_EMULATION_API std::size_t device_bytes_in_use();

/// How the lanes of warps access memory in one kernel on one line of source.
struct LineStatistics {
  std::string kernel;
  std::string source;  ///< "file:line" of the access
  bool is_shared = false;
  bool is_write = false;
  std::uint64_t num_requests = 0;  ///< accesses of a warp as a whole
  std::uint64_t num_transfers =
      0;                        ///< sectors of 32 bytes, or passes over the banks of shared memory
  std::uint64_t num_ideal = 0;  ///< what the same bytes need at least

  /// 1 is ideal: sectors beside those that the bytes fill, or the degree of bank conflicts.
  [[nodiscard]] double factor() const {
    return num_ideal == 0 ? 1.0
                          : static_cast<double>(num_transfers) / static_cast<double>(num_ideal);
  }
};
/// Starts to count, from nothing. Only code that was compiled with the checks is counted.
PECAN_EMULATION_API void start_statistics();
/// Ends counting; one entry a kernel, line of source and kind of access, in this order.
[[nodiscard]] PECAN_EMULATION_API std::vector<LineStatistics> stop_statistics();

}  // namespace pecan::emulation
