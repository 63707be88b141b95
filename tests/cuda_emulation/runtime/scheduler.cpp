#include "scheduler.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <mutex>
#include <numeric>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <fmt/format.h>
#include <pecan_emulation/execution.hpp>

#include "async_copy.hpp"
#include "checker.hpp"
#include "errors.hpp"
#include "fiber.hpp"
#include "report.hpp"
#include "settings.hpp"
#include "shared_memory.hpp"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace pecan::emulation {

Running running;
thread_local bool is_in_kernel = false;

namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kLanes = 32;
constexpr std::uint32_t kAllLanes = 0xFFFFFFFFu;

enum class State : std::uint8_t { kNew, kRunning, kReady, kAtBarrier, kInWarp, kEnded };

struct Thread {
  uint3 index{};
  State state = State::kNew;
  Fiber* fiber = nullptr;
  std::source_location where;  ///< of the last meeting
  int predicate = 0;
  BlockVote vote = BlockVote::kNone;
};

struct Lane {
  void* operand = nullptr;
  WarpFunction function = nullptr;
  std::uint32_t mask = 0;
  std::source_location where;
};

struct Warp {
  std::array<Lane, kLanes> lanes;
  std::uint32_t alive = 0;
  std::uint32_t waiting = 0;
  std::uint16_t epoch = 0;
  bool is_reported = false;  ///< one finding a warp and block is enough
};

void run_fiber();

/// The block that runs.
struct Block {
  FiberPool fibers{kMaxThreads, &run_fiber};
  Fiber host;
  Fiber* fiber = &host;
  std::array<Thread, kMaxThreads> threads;
  std::array<Warp, kMaxThreads / kLanes> warps;
  std::array<std::uint16_t, kMaxThreads> order{};  ///< in which threads start
  std::array<std::uint16_t, kMaxThreads> ready{};  ///< ring of threads whose meeting is over
  unsigned first_ready = 0;
  unsigned num_ready = 0;
  unsigned num_threads = 0;
  unsigned num_started = 0;
  unsigned num_alive = 0;
  unsigned num_at_barrier = 0;
  unsigned thread = 0;  ///< the one that runs
  cudaError_t error = cudaSuccess;

  const void* kernel = nullptr;
  void (*run)(const void*) = nullptr;
  const void* parameters = nullptr;
  Schedule schedule = Schedule::kForward;
  std::uint64_t random_state = 1;
};
Block& block() {
  static auto* the_block = new Block;
  return *the_block;
}

std::uint64_t next_random() {
  std::uint64_t& state = block().random_state;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

std::string describe(const std::source_location& where) {
  std::string_view file = where.file_name();
  file.remove_prefix(std::min(file.size(), file.rfind('/') + 1));
  return fmt::format("{}:{}", file, where.line());
}

bool is_same_place(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

void publish_position(unsigned index) {
  Block& b = block();
  b.thread = index;
  b.threads[index].state = State::kRunning;
  threadIdx = b.threads[index].index;
  running.position.thread = static_cast<std::uint16_t>(index);
  running.position.warp_epoch = b.warps[index / kLanes].epoch;
}

void switch_to(Fiber* target) {
  Block& b = block();
  if (target == b.fiber) return;
  Fiber* left = std::exchange(b.fiber, target);
  running.stack = {target->low, target->high};
  pecan_emulation_switch_stack(&left->stack_pointer, target->stack_pointer);
}

void make_ready(unsigned index) {
  Block& b = block();
  b.threads[index].state = State::kReady;
  b.ready[(b.first_ready + b.num_ready++) % kMaxThreads] = static_cast<std::uint16_t>(index);
}

unsigned take_ready() {
  Block& b = block();
  if (b.schedule == Schedule::kRandom) {
    const auto chosen = static_cast<unsigned>(next_random() % b.num_ready);
    std::swap(b.ready[b.first_ready], b.ready[(b.first_ready + chosen) % kMaxThreads]);
  }
  const unsigned index = b.ready[b.first_ready];
  b.first_ready = (b.first_ready + 1) % kMaxThreads;
  --b.num_ready;
  return index;
}

bool starts_new_thread() {
  Block& b = block();
  if (b.num_started == b.num_threads) return false;
  return b.num_ready == 0 || b.schedule != Schedule::kRandom || next_random() % 2 == 0;
}

void report_deadlock() {
  Block& b = block();
  std::string waiting;
  const Thread* last = nullptr;
  for (unsigned index = 0; index < b.num_threads; ++index) {
    const Thread& thread = b.threads[index];
    if (thread.state != State::kAtBarrier && thread.state != State::kInWarp) continue;
    if (last != nullptr && is_same_place(last->where, thread.where)) continue;
    last = &thread;
    waiting += fmt::format("{} thread {} waits in a {} at {}",
                           waiting.empty() ? ":" : ",",
                           index,
                           thread.state == State::kAtBarrier ? "barrier" : "function of its warp",
                           describe(thread.where));
  }
  report("deadlock",
         fmt::format("{}, block {}{}", kernel_name(b.kernel), running.position.block, waiting));
}

/// Goes on with some other thread: the caller's waits or has ended.
void run_others() {
  Block& b = block();
  if (b.error != cudaSuccess) {
    switch_to(&b.host);
  } else if (starts_new_thread()) {
    switch_to(b.fibers.take());
  } else if (b.num_ready > 0) {
    const unsigned next = take_ready();
    b.thread = next;
    switch_to(b.threads[next].fiber);
  } else {
    report_deadlock();
    b.error = cudaErrorLaunchTimeout;
    switch_to(&b.host);
  }
}

int count_votes(BlockVote vote) {
  Block& b = block();
  int num_true = 0;
  for (unsigned index = 0; index < b.num_threads; ++index) {
    const Thread& thread = b.threads[index];
    if (thread.state == State::kAtBarrier && thread.predicate != 0) ++num_true;
  }
  switch (vote) {
    case BlockVote::kNone:
      return 0;
    case BlockVote::kCount:
      return num_true;
    case BlockVote::kOr:
      return num_true > 0 ? 1 : 0;
    case BlockVote::kAnd:
      return num_true == static_cast<int>(b.num_at_barrier) ? 1 : 0;
  }
  return 0;
}

void open_barrier() {
  Block& b = block();
  const Thread* first = nullptr;
  const Thread* other = nullptr;
  for (unsigned index = 0; index < b.num_threads; ++index) {
    const Thread& thread = b.threads[index];
    if (thread.state != State::kAtBarrier) continue;
    if (first == nullptr) first = &thread;
    if (!is_same_place(first->where, thread.where) || first->vote != thread.vote) other = &thread;
  }
  if (other != nullptr && is_first_at(b.kernel, "unlike barriers")) {
    report("barrier",
           fmt::format("{}: threads of block {} meet at different barriers, {} and {}",
                       kernel_name(b.kernel),
                       running.position.block,
                       describe(first->where),
                       describe(other->where)));
  }
  if (b.num_alive != b.num_threads && is_first_at(b.kernel, "ended before barrier")) {
    report("barrier",
           fmt::format("{}: {} of {} threads of block {} reach the barrier at {}, the others have "
                       "ended",
                       kernel_name(b.kernel),
                       b.num_alive,
                       b.num_threads,
                       running.position.block,
                       describe(first->where)));
  }
  const int result = count_votes(first->vote);
  b.num_at_barrier = 0;
  ++running.position.block_epoch;
  for (unsigned place = 0; place < b.num_threads; ++place) {
    const unsigned index = b.order[place];
    if (b.threads[index].state != State::kAtBarrier) continue;
    b.threads[index].predicate = result;
    make_ready(index);
  }
}

void complete_meeting(unsigned warp_index, std::uint32_t members) {
  Block& b = block();
  Warp& warp = b.warps[warp_index];
  std::array<void*, kLanes> operands{};
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((members >> lane & 1) != 0) operands[lane] = warp.lanes[lane].operand;
  }
  warp.lanes[static_cast<unsigned>(std::countr_zero(members))].function(operands.data(), members);
  warp.waiting &= ~members;
  // The last to come is running and goes on; those that wait follow.
  for (unsigned place = 0; place < kLanes; ++place) {
    const unsigned lane = b.schedule == Schedule::kReverse ? kLanes - 1 - place : place;
    const unsigned index = warp_index * kLanes + lane;
    if ((members >> lane & 1) != 0 && b.threads[index].state == State::kInWarp) make_ready(index);
  }
}

/// A lane has ended: does somebody wait for it alone?
void complete_without_ended(unsigned warp_index) {
  Warp& warp = block().warps[warp_index];
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((warp.waiting >> lane & 1) == 0) continue;
    const std::uint32_t members = warp.lanes[lane].mask & warp.alive;
    if ((warp.waiting & members) != members) continue;
    if (!std::exchange(warp.is_reported, true)) {
      report("warp",
             fmt::format("{}: a lane named in the mask {:#x} ended instead of coming to {}",
                         kernel_name(block().kernel),
                         warp.lanes[lane].mask,
                         describe(warp.lanes[lane].where)));
    }
    complete_meeting(warp_index, members);
    return;
  }
}

void end_thread() {
  Block& b = block();
  const unsigned index = b.thread;
  Warp& warp = b.warps[index / kLanes];
  b.threads[index].state = State::kEnded;
  --b.num_alive;
  warp.alive &= ~(1u << index % kLanes);
  if (warp.waiting != 0) complete_without_ended(index / kLanes);
  if (b.num_at_barrier > 0 && b.num_at_barrier == b.num_alive) open_barrier();
}

/// What every fiber does, again and again: start threads as long as there are new ones.
void run_fiber() {
  Block& b = block();
  while (true) {
    do {
      const unsigned index = b.order[b.num_started++];
      b.threads[index].fiber = b.fiber;
      publish_position(index);
      running.is_paused = false;
      b.run(b.parameters);
      // Maybe after many switches, but again as the same thread.
      running.is_paused = true;
      end_thread();
    } while (b.error == cudaSuccess && starts_new_thread());
    b.fibers.give_back(b.fiber);
    if (b.num_alive == 0) {
      switch_to(&b.host);
    } else {
      run_others();
    }
  }
}

void prepare_block(std::uint64_t index) {
  Block& b = block();
  blockIdx = {static_cast<unsigned>(index % gridDim.x),
              static_cast<unsigned>(index / gridDim.x % gridDim.y),
              static_cast<unsigned>(index / (std::uint64_t{gridDim.x} * gridDim.y))};
  running.position.block = static_cast<std::uint32_t>(index);
  running.position.block_epoch = 0;
  b.num_started = 0;
  b.num_alive = b.num_threads;
  b.num_at_barrier = 0;
  b.num_ready = 0;
  for (unsigned thread = 0; thread < b.num_threads; ++thread) {
    b.threads[thread].state = State::kNew;
    b.order[thread] = static_cast<std::uint16_t>(thread);
  }
  if (b.schedule == Schedule::kReverse) {
    std::reverse(b.order.begin(), b.order.begin() + b.num_threads);
  } else if (b.schedule == Schedule::kRandom) {
    for (unsigned last = b.num_threads - 1; last > 0; --last) {
      std::swap(b.order[last], b.order[next_random() % (last + 1)]);
    }
  }
  for (unsigned first = 0; first < b.num_threads; first += kLanes) {
    Warp& warp = b.warps[first / kLanes];
    const unsigned num_lanes = std::min(kLanes, b.num_threads - first);
    warp.alive = kAllLanes >> (kLanes - num_lanes);
    warp.waiting = 0;
    warp.epoch = 0;
    warp.is_reported = false;
  }
}

/// The block that comes at this place of the schedule: all of them, each once.
std::uint64_t scheduled_block(std::uint64_t place, std::uint64_t num_blocks) {
  switch (block().schedule) {
    case Schedule::kForward:
      return place;
    case Schedule::kReverse:
      return num_blocks - 1 - place;
    case Schedule::kRandom:
      break;
  }
  std::uint64_t factor = 0x9E3779B1u;
  while (std::gcd(factor, num_blocks) != 1) factor += 2;
  return static_cast<std::uint64_t>(static_cast<unsigned __int128>(place) * factor % num_blocks);
}

cudaError_t check_launch(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 grid = config.gridDim;
  const dim3 threads = config.blockDim;
  constexpr unsigned kMaxGridX = 2147483647u;
  constexpr unsigned kMaxGridYZ = 65535u;
  constexpr unsigned kMaxBlockZ = 64u;
  const std::uint64_t num_threads = std::uint64_t{threads.x} * threads.y * threads.z;
  if (num_threads == 0 || num_threads > kMaxThreads || threads.z > kMaxBlockZ) {
    return cudaErrorInvalidConfiguration;
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > kMaxGridX || grid.y > kMaxGridYZ ||
      grid.z > kMaxGridYZ) {
    return cudaErrorInvalidConfiguration;
  }
  if (config.dynamicSmemBytes >
      static_cast<std::size_t>(kernel_attributes(kernel).max_dynamic_bytes)) {
    return cudaErrorInvalidValue;
  }
  for (unsigned attribute = 0; attribute < config.numAttrs; ++attribute) {
    if (config.attrs[attribute].id != cudaLaunchAttributePriority) return cudaErrorNotSupported;
  }
  return cudaSuccess;
}

void lay_out_threads() {
  Block& b = block();
  b.num_threads = blockDim.x * blockDim.y * blockDim.z;
  unsigned thread = 0;
  for (unsigned z = 0; z < blockDim.z; ++z) {
    for (unsigned y = 0; y < blockDim.y; ++y) {
      for (unsigned x = 0; x < blockDim.x; ++x) b.threads[thread++].index = {x, y, z};
    }
  }
}

void run_grid(std::size_t dynamic_bytes) {
  Block& b = block();
  const std::uint64_t num_blocks = std::uint64_t{gridDim.x} * gridDim.y * gridDim.z;
  for (std::uint64_t place = 0; place < num_blocks && b.error == cudaSuccess; ++place) {
    prepare_block(scheduled_block(place, num_blocks));
    begin_block_memory(dynamic_bytes);
    forget_copies();
    is_in_kernel = true;
    switch_to(b.fibers.take());
    is_in_kernel = false;
    running.is_paused = false;
    if (b.error == cudaSuccess) end_block_memory(dynamic_bytes);
  }
}

}  // namespace

bool is_on_a_stack(std::uintptr_t address) {
  return block().fibers.holds(address);
}

void abort_kernel(cudaError_t error) {
  block().error = error;
  switch_to(&block().host);
  std::abort();
}

std::string describe_position() {
  return fmt::format("kernel {}, block {}, thread {}",
                     kernel_name(block().kernel),
                     running.position.block,
                     running.position.thread);
}

const void* running_kernel() {
  return block().kernel;
}

KernelAttributes& kernel_attributes(const void* kernel) {
  static auto* all = new std::unordered_map<const void*, KernelAttributes>;
  return (*all)[kernel];
}

int meet_block(int predicate, BlockVote vote, std::source_location where) {
  Block& b = block();
  running.is_paused = true;
  const unsigned self = b.thread;
  Thread& thread = b.threads[self];
  thread.where = where;
  thread.predicate = predicate;
  thread.vote = vote;
  thread.state = State::kAtBarrier;
  if (++b.num_at_barrier == b.num_alive) open_barrier();
  run_others();
  publish_position(self);
  running.is_paused = false;
  return thread.predicate;
}

void meet_warp(std::uint32_t mask,
               void* operand,
               WarpFunction function,
               MemoryOrder order,
               std::source_location where) {
  Block& b = block();
  running.is_paused = true;
  const unsigned self = b.thread;
  const unsigned lane = self % kLanes;
  Warp& warp = b.warps[self / kLanes];
  b.threads[self].where = where;
  const auto fail = [&](const std::string& what) {
    report("warp",
           fmt::format("{}, block {}, warp {}: {}",
                       kernel_name(b.kernel),
                       running.position.block,
                       self / kLanes,
                       what));
  };
  if ((mask >> lane & 1) == 0) {
    fail(fmt::format("lane {} is not named in its mask {:#x} at {}", lane, mask, describe(where)));
    abort_kernel(cudaErrorLaunchFailure);
  }
  if ((mask & warp.alive) != mask && !std::exchange(warp.is_reported, true)) {
    fail(
        fmt::format("the mask {:#x} at {} names lanes that have ended or never were (alive: {:#x})",
                    mask,
                    describe(where),
                    warp.alive));
  }
  warp.lanes[lane] = {operand, function, mask, where};
  warp.waiting |= 1u << lane;
  const std::uint32_t members = mask & warp.alive;
  // All that wait were compared with each other as they came.
  if (const std::uint32_t others = warp.waiting & members & ~(1u << lane); others != 0) {
    const auto other = static_cast<unsigned>(std::countr_zero(others));
    const Lane& met = warp.lanes[other];
    if (met.mask != mask || met.function != function || !is_same_place(met.where, where)) {
      fail(fmt::format("lane {} at {} with mask {:#x} meets lane {} at {} with mask {:#x}",
                       lane,
                       describe(where),
                       mask,
                       other,
                       describe(met.where),
                       met.mask));
      abort_kernel(cudaErrorLaunchFailure);
    }
  }
  if ((warp.waiting & members) == members) {
    if (order == MemoryOrder::kOrdered && members == warp.alive) ++warp.epoch;
    complete_meeting(self / kLanes, members);
  } else {
    b.threads[self].state = State::kInWarp;
    run_others();
  }
  publish_position(self);
  running.is_paused = false;
}

std::uint32_t lane_id() {
  return running.position.thread % kLanes;
}

void report_absent_lane() {
  Block& b = block();
  const Thread& thread = b.threads[b.thread];
  if (!is_first_at(b.kernel, "absent lane")) return;
  report("warp",
         fmt::format("{}: a shuffle at {} reads a lane outside of its mask, or one that has ended",
                     kernel_name(b.kernel),
                     describe(thread.where)));
}

void check_matrix(const void* address, std::size_t stride_bytes, std::source_location where) {
  constexpr std::uintptr_t kMatrixAlignment = 32, kRowAlignment = 16;
  if (reinterpret_cast<std::uintptr_t>(address) % kMatrixAlignment == 0 &&
      stride_bytes % kRowAlignment == 0) {
    return;
  }
  if (!is_first_at(block().kernel, "matrix")) return;
  running.is_paused = true;
  report("alignment",
         fmt::format("{} at {}: a matrix of tensor cores begins at no multiple of {} bytes, or its "
                     "rows lie {} bytes apart, no multiple of {}",
                     describe_position(),
                     describe(where),
                     kMatrixAlignment,
                     stride_bytes,
                     kRowAlignment));
  running.is_paused = false;
}

void trap(std::source_location where) {
  running.is_paused = true;
  report("trap", fmt::format("{} at {}", describe_position(), describe(where)));
  abort_kernel(cudaErrorLaunchFailure);
}

cudaError_t run_kernel(const cudaLaunchConfig_t& config,
                       const void* kernel,
                       void (*run)(const void* parameters),
                       const void* parameters,
                       std::size_t parameter_bytes) {
  return stream_call("cudaLaunchKernelEx", config.stream, [&](Stream& stream) {
    if (const cudaError_t error = check_launch(config, kernel)) return error;
    Block& b = block();
    b.kernel = kernel;
    b.run = run;
    b.parameters = parameters;
    b.error = cudaSuccess;
    b.schedule = settings().schedule;
    b.random_state = settings().seed * 0x9E3779B97F4A7C15u | 1;
    running.parameters = {reinterpret_cast<std::uintptr_t>(parameters),
                          reinterpret_cast<std::uintptr_t>(parameters) + parameter_bytes};
    gridDim = config.gridDim;
    blockDim = config.blockDim;
    lay_out_threads();
    running.position.operation = begin_operation(stream, "kernel", kernel);
    begin_kernel_memory(kernel, config.dynamicSmemBytes);
    run_grid(config.dynamicSmemBytes);
    if (b.error != cudaSuccess) {
      // As on a device, the launch went well; what comes later finds out.
      b.fibers.reset();
      lose_device(b.error);
    }
    return cudaSuccess;
  });
}

}  // namespace pecan::emulation
