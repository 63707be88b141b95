#pragma once
/// What device code is made of, on a CPU: built-in variables, barriers, the launch, and the meeting
/// of a warp's lanes, which every warp function is made from.

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#include <cuda_runtime_api.h>
#include <pecan_emulation/visibility.hpp>

/// g++ instruments a function that it has inlined, whatever the function says of itself.
#if defined(__SANITIZE_THREAD__)
#define PECAN_EMULATION_UNCHECKED __attribute__((no_sanitize("thread", "undefined"), noinline))
#else
#define PECAN_EMULATION_UNCHECKED
#endif

/// Shared memory of a block beyond which no launch goes: 227 KiB, as on sm_90.
inline constexpr std::size_t kPecanEmulationSharedBytes = 227 * 1024;

// The scheduler writes them whenever it changes threads.
PECAN_EMULATION_API extern uint3 threadIdx;
PECAN_EMULATION_API extern uint3 blockIdx;
PECAN_EMULATION_API extern dim3 blockDim;
PECAN_EMULATION_API extern dim3 gridDim;
inline constexpr int warpSize = 32;

namespace pecan::emulation {

/// Whether a meeting orders what its members read and write in memory.
enum class MemoryOrder : std::uint8_t { kNone, kOrdered };
/// What a barrier of the block does with the predicates of its threads.
enum class BlockVote : std::uint8_t { kNone, kCount, kOr, kAnd };
/// Computes the result of a meeting: `operands[lane]` is what that lane brought, for every lane in
/// `lanes`.
using WarpFunction = void (*)(void* const* operands, std::uint32_t lanes);

/// Waits until every thread of the block that has not ended is here. Returns the vote on
/// `predicate`.
PECAN_EMULATION_API int meet_block(int predicate, BlockVote vote, std::source_location where);
/// Waits until every lane of `mask` is here; the last one calls `function` for all of them.
PECAN_EMULATION_API void meet_warp(std::uint32_t mask,
                                   void* operand,
                                   WarpFunction function,
                                   MemoryOrder order,
                                   std::source_location where);
inline void only_meet(void* const*, std::uint32_t) {}
[[nodiscard]] PECAN_EMULATION_API std::uint32_t lane_id();
/// A shuffle asks for the value of a lane that takes no part.
PECAN_EMULATION_API void report_absent_lane();
/// Tensor cores load and store matrices at multiples of 32 bytes, whose rows lie multiples of 16
/// bytes apart.
PECAN_EMULATION_API void check_matrix(const void* address,
                                      std::size_t stride_bytes,
                                      std::source_location where);
/// Ends the kernel as a trap does.
[[noreturn]] PECAN_EMULATION_API void trap(std::source_location where);
/// Tells the checker of an atomic access by the caller of the function that returns to `code`.
PECAN_EMULATION_API void note_atomic(const void* address, std::size_t num_bytes, const void* code);

/// Checks the launch as the CUDA runtime does, then runs the grid. `run(parameters)` is the body of
/// one thread; `parameters` are on loan until the return.
PECAN_EMULATION_API cudaError_t run_kernel(const cudaLaunchConfig_t& config,
                                           const void* kernel,
                                           void (*run)(const void* parameters),
                                           const void* parameters,
                                           std::size_t parameter_bytes);

template <typename... Parameters>
struct KernelCall {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> parameters;

  /// Each thread gets its own copy of the parameters.
  static void run(const void* self) {
    const auto* call = static_cast<const KernelCall*>(self);
    std::apply(call->kernel, call->parameters);
  }
};

}  // namespace pecan::emulation

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                               void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                "kernel parameters are copied to the device byte by byte");
  static_assert((!std::is_reference_v<Parameters> && ...),
                "a reference parameter would point to host memory");
  using Call = pecan::emulation::KernelCall<Parameters...>;
  const Call call{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  return pecan::emulation::run_kernel(
      *config, reinterpret_cast<const void*>(kernel), &Call::run, &call, sizeof call);
}

// Forms with a typed kernel, which NVIDIA's header has for nvcc alone.
template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...),
                                 cudaFuncAttribute attribute,
                                 int value) {
  return ::cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <typename... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameters...)) {
  return ::cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* num_blocks,
                                                          void (*kernel)(Parameters...),
                                                          int block_size,
                                                          std::size_t dynamic_bytes) {
  return ::cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      num_blocks, reinterpret_cast<const void*>(kernel), block_size, dynamic_bytes);
}

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  pecan::emulation::meet_block(0, pecan::emulation::BlockVote::kNone, where);
}
inline int __syncthreads_count(int predicate,
                               std::source_location where = std::source_location::current()) {
  return pecan::emulation::meet_block(predicate, pecan::emulation::BlockVote::kCount, where);
}
inline int __syncthreads_or(int predicate,
                            std::source_location where = std::source_location::current()) {
  return pecan::emulation::meet_block(predicate, pecan::emulation::BlockVote::kOr, where);
}
inline int __syncthreads_and(int predicate,
                             std::source_location where = std::source_location::current()) {
  return pecan::emulation::meet_block(predicate, pecan::emulation::BlockVote::kAnd, where);
}
// One thread of the operating system runs the grid: its own accesses are in order.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap(std::source_location where = std::source_location::current()) {
  pecan::emulation::trap(where);
}
