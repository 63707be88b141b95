#include "checker.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <link.h>
#include <pecan_emulation/execution.hpp>
#include <sys/mman.h>

#include "report.hpp"
#include "statistics.hpp"
#include "streams.hpp"

namespace pecan::emulation {
namespace {

// The arena: shadows of shared memory, then device memory, pinned memory, and shadows of registered
// memory. Only what is touched takes memory.
constexpr std::uintptr_t kArenaBase = 0x200000000000u;
constexpr std::size_t kSharedBytes = std::size_t{1} << 20;
constexpr std::size_t kDeviceBytes = std::size_t{128} << 30;
constexpr std::size_t kPinnedBytes = std::size_t{32} << 30;
constexpr std::size_t kRegisteredBytes = std::size_t{32} << 30;
constexpr std::size_t kPinnedStart = kSharedBytes + kDeviceBytes;
constexpr std::size_t kRegisteredStart = kPinnedStart + kPinnedBytes;
constexpr std::size_t kArenaBytes = kRegisteredStart + kRegisteredBytes;
constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kGranuleBytes = 2;

/// Who touched a granule.
struct Visit {
  std::uint32_t operation = 0;
  std::uint32_t block = 0;
  std::uint16_t thread = 0;
  std::uint16_t warp_epoch = 0;
  std::uint32_t block_epoch : 29 = 0;
  std::uint32_t bytes : 2 = 0;  ///< which of the granule
  std::uint32_t is_atomic : 1 = 0;
};
/// Only the last of each kind is remembered.
struct Granule {
  Visit written;
  Visit read;
};
static_assert(sizeof(Granule) == 32);

constexpr std::uint8_t kAllocated = 1;
constexpr std::uint8_t kDefinedContent = 2;

struct Registered {
  Range range;
  std::size_t shadow;  ///< offset in the arena
};

struct Shadow {
  std::uint8_t* bytes = nullptr;
  Granule* granules = nullptr;
  std::size_t next_device = kSharedBytes;
  std::size_t next_pinned = kPinnedStart;
  std::size_t next_registered = kRegisteredStart;
  std::vector<Registered> registered;
  Range all_registered;
  Range shared;
  Range dynamic;
  Range built_in;                ///< threadIdx and its like
  Range last_variables;          ///< where a variable was found last
  std::vector<Range> constants;  ///< mapped parts of programs and libraries
  std::vector<Range> variables;
};
Shadow shadow;
bool checking = false;

constexpr unsigned kLanes = 32;

void* reserve(void* wanted, std::size_t num_bytes) {
  const int fixed = wanted == nullptr ? 0 : MAP_FIXED_NOREPLACE;
  void* reserved = mmap(wanted,
                        num_bytes,
                        PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed,
                        -1,
                        0);
  if (reserved == MAP_FAILED) {
    std::perror("cuda emulation: the checker cannot reserve addresses (ulimit -v?)");
    std::abort();
  }
  return reserved;
}

void clear_granules(std::size_t offset, std::size_t num_bytes) {
  const auto low = reinterpret_cast<std::uintptr_t>(shadow.granules + offset / kGranuleBytes);
  const auto high = reinterpret_cast<std::uintptr_t>(
      shadow.granules + (offset + num_bytes + kGranuleBytes - 1) / kGranuleBytes);
  const std::uintptr_t first_page = (low + kPageBytes - 1) / kPageBytes * kPageBytes;
  const std::uintptr_t last_page = high / kPageBytes * kPageBytes;
  if (first_page >= last_page) {
    std::memset(reinterpret_cast<void*>(low), 0, high - low);
    return;
  }
  std::memset(reinterpret_cast<void*>(low), 0, first_page - low);
  madvise(reinterpret_cast<void*>(first_page), last_page - first_page, MADV_DONTNEED);
  std::memset(reinterpret_cast<void*>(last_page), 0, high - last_page);
}

const char* space_of(std::size_t offset) {
  if (offset < kSharedBytes) return "shared";
  return offset < kPinnedStart ? "device" : "pinned";
}

/// Offset in the arena of what the address means, if the device can reach it.
std::optional<std::size_t> offset_of(std::uintptr_t address) {
  if (address - kArenaBase < kArenaBytes) return address - kArenaBase;
  if (is_in_kernel && shadow.shared.contains(address)) return address - shadow.shared.low;
  if (shadow.all_registered.contains(address)) {
    for (const Registered& registered : shadow.registered) {
      if (registered.range.contains(address)) {
        return registered.shadow + (address - registered.range.low);
      }
    }
  }
  return std::nullopt;
}

/// "byte N of an allocation of M", or of shared memory.
std::string describe_place(std::size_t offset) {
  if (offset < kSharedBytes) {
    const std::size_t dynamic = shadow.dynamic.low - shadow.shared.low;
    if (shadow.dynamic.low != 0 && offset >= dynamic &&
        offset < dynamic + kPecanEmulationSharedBytes) {
      return fmt::format("byte {} of dynamic shared memory", offset - dynamic);
    }
    return "static shared memory";
  }
  const auto address = offset < kRegisteredStart ? kArenaBase + offset : [&] {
    for (const Registered& registered : shadow.registered) {
      const std::size_t size = registered.range.high - registered.range.low;
      if (offset - registered.shadow < size) {
        return registered.range.low + offset - registered.shadow;
      }
    }
    return std::uintptr_t{0};
  }();
  const Allocation* found = find_allocation(reinterpret_cast<const void*>(address));
  if (found == nullptr) return fmt::format("{} memory that is not allocated", space_of(offset));
  return fmt::format("byte {} of {} bytes of {} memory",
                     address - found->address,
                     found->num_bytes,
                     space_of(offset));
}

/// Whether nothing orders an earlier visit and this one.
bool is_unordered(const Visit& earlier, const Visit& now, bool is_shared) {
  if (earlier.operation == 0 || (earlier.bytes & now.bytes) == 0) return false;
  const bool both_atomic = earlier.is_atomic != 0 && now.is_atomic != 0;
  if (earlier.operation == now.operation) {
    if (earlier.block != now.block) return !is_shared && !both_atomic;
    if (earlier.thread == now.thread || earlier.block_epoch != now.block_epoch) return false;
    const bool same_warp = earlier.thread / kLanes == now.thread / kLanes;
    if (same_warp && earlier.warp_epoch != now.warp_epoch) return false;
    return !both_atomic;
  }
  return !is_shared && !happened_before(earlier.operation, now.operation);
}

const char* current_actor() {
  return is_in_kernel ? "device code" : "the host";
}

void report_race(const char* what,
                 std::size_t offset,
                 const Visit& earlier,
                 const Visit& now,
                 const void* code) {
  if (earlier.operation == now.operation) {
    if (!is_first_at(code, what)) return;
    report("race",
           fmt::format("{} without a barrier in between: {} at {} against block {}, thread {}; {}",
                       what,
                       describe_position(),
                       source_of(code),
                       earlier.block,
                       earlier.thread,
                       describe_place(offset)));
    return;
  }
  if (!is_first_at(code == nullptr ? operation(now.operation).name : code, "stream race")) return;
  report("stream race",
         fmt::format("{}: {} does not wait for {}; {}, at {}",
                     what,
                     describe_operation(now.operation),
                     describe_operation(earlier.operation),
                     describe_place(offset),
                     source_of(code)));
}

/// False if the bytes are not there.
bool check_content(std::size_t offset,
                   std::size_t num_bytes,
                   Access access,
                   std::uint32_t operation_id,
                   const void* code) {
  const std::uint8_t* state = shadow.bytes + offset;
  const std::uint8_t wanted = access == Access::kWrite ? kAllocated : kAllocated | kDefinedContent;
  const std::uint8_t* wrong = std::find_if(
      state, state + num_bytes, [&](std::uint8_t s) { return (s & wanted) != wanted; });
  if (wrong == state + num_bytes) return true;
  const bool is_absent = (*wrong & kAllocated) == 0;
  const char* kind = is_absent ? "memory" : "uninitialised";
  if (is_first_at(code == nullptr ? operation(operation_id).name : code, kind)) {
    report(kind,
           fmt::format("{} {} {} bytes at {}: {}",
                       is_in_kernel ? describe_position() : describe_operation(operation_id),
                       access == Access::kRead ? "reads" : "writes",
                       num_bytes,
                       source_of(code),
                       describe_place(static_cast<std::size_t>(wrong - shadow.bytes))));
  }
  return !is_absent;
}

void visit(std::size_t offset, std::size_t num_bytes, Access access, Visit now, const void* code) {
  const bool is_shared = offset < kSharedBytes;
  const std::size_t end = offset + num_bytes;
  for (std::size_t index = offset / kGranuleBytes; index <= (end - 1) / kGranuleBytes; ++index) {
    const std::size_t first = index * kGranuleBytes;
    now.bytes = (offset <= first ? 1u : 0u) | (end >= first + kGranuleBytes ? 2u : 0u);
    Granule& granule = shadow.granules[index];
    if (is_unordered(granule.written, now, is_shared)) {
      report_race(access == Access::kRead ? "a read after a write" : "a write after a write",
                  first,
                  granule.written,
                  now,
                  code);
    }
    if (access == Access::kRead) {
      // Of the readers since a barrier even granules keep the last and odd ones the first: a wider
      // word remembers both.
      const Visit& before = granule.read;
      const bool keeps = (index & 1) != 0 && before.operation == now.operation &&
                         before.block == now.block && before.block_epoch == now.block_epoch &&
                         before.warp_epoch == now.warp_epoch;
      if (!keeps) granule.read = now;
    } else {
      if (is_unordered(granule.read, now, is_shared)) {
        report_race("a write after a read", first, granule.read, now, code);
      }
      granule.written = now;
    }
  }
}

/// Returns false if the access cannot be made.
bool check_reachable(
    std::size_t offset, std::size_t num_bytes, Access access, const Visit& now, const void* code) {
  if (!check_content(offset, num_bytes, access, now.operation, code)) return false;
  if (access != Access::kRead) {
    std::memset(shadow.bytes + offset, kAllocated | kDefinedContent, num_bytes);
  }
  visit(offset, num_bytes, access, now, code);
  return true;
}

Visit visit_of_kernel(Access access) {
  Visit now;
  now.operation = running.position.operation;
  now.block = running.position.block;
  now.thread = running.position.thread;
  now.warp_epoch = running.position.warp_epoch;
  now.block_epoch = running.position.block_epoch & 0x1FFFFFFFu;
  now.is_atomic = access == Access::kAtomic ? 1 : 0;
  return now;
}

/// Device code touches what is neither memory of the device nor its own.
void check_foreign(std::uintptr_t address, Access access, const void* code) {
  if (running.parameters.contains(address) || shadow.last_variables.contains(address)) return;
  const auto holds = [&](const Range& range) { return range.contains(address); };
  const auto found = std::find_if(shadow.variables.begin(), shadow.variables.end(), holds);
  if (found != shadow.variables.end()) {
    shadow.last_variables = *found;
    return;
  }
  if (access == Access::kRead &&
      std::any_of(shadow.constants.begin(), shadow.constants.end(), holds)) {
    return;
  }
  if (!is_first_at(code, "foreign")) return;
  report("memory",
         fmt::format("{} {} {} at {}",
                     describe_position(),
                     access == Access::kRead ? "reads" : "writes",
                     is_on_a_stack(address) ? "local memory of another thread" : "host memory",
                     source_of(code)));
}

void find_images() {
  shadow.constants.clear();
  shadow.variables.clear();
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void*) {
        for (int index = 0; index < info->dlpi_phnum; ++index) {
          const auto& header = info->dlpi_phdr[index];
          if (header.p_type != PT_LOAD) continue;
          const std::uintptr_t low = info->dlpi_addr + header.p_vaddr;
          auto& ranges = (header.p_flags & PF_W) != 0 ? shadow.variables : shadow.constants;
          ranges.push_back({low, low + header.p_memsz});
        }
        return 0;
      },
      nullptr);
}

}  // namespace

bool is_checking() {
  return checking;
}

void start_checking() {
  // Again for each module.
  find_images();
  const auto [first, last] = std::minmax({reinterpret_cast<std::uintptr_t>(&threadIdx),
                                          reinterpret_cast<std::uintptr_t>(&blockIdx),
                                          reinterpret_cast<std::uintptr_t>(&blockDim),
                                          reinterpret_cast<std::uintptr_t>(&gridDim)});
  // Defined side by side.
  shadow.built_in = {first, last + sizeof(dim3)};
  if (std::exchange(checking, true)) return;
  reserve(reinterpret_cast<void*>(kArenaBase), kArenaBytes);
  shadow.bytes = static_cast<std::uint8_t*>(reserve(nullptr, kArenaBytes));
  shadow.granules =
      static_cast<Granule*>(reserve(nullptr, kArenaBytes / kGranuleBytes * sizeof(Granule)));
}

unsigned char* take_from_arena(std::size_t num_bytes, Space space) {
  std::size_t& next = space == Space::kDevice ? shadow.next_device : shadow.next_pinned;
  const std::size_t end = space == Space::kDevice ? kPinnedStart : kRegisteredStart;
  if (num_bytes > end - next) return nullptr;
  return reinterpret_cast<unsigned char*>(kArenaBase + std::exchange(next, next + num_bytes));
}

bool is_in_device_arena(const void* address) {
  const std::uintptr_t offset = reinterpret_cast<std::uintptr_t>(address) - kArenaBase;
  return checking && offset >= kSharedBytes && offset < kPinnedStart;
}

void mark_allocated(const void* address, std::size_t num_bytes, Content content) {
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(address) - kArenaBase;
  std::memset(shadow.bytes + offset,
              content == Content::kDefined ? kAllocated | kDefinedContent : kAllocated,
              num_bytes);
}

void mark_freed(void* address, std::size_t num_bytes) {
  const auto low = reinterpret_cast<std::uintptr_t>(address);
  std::memset(shadow.bytes + (low - kArenaBase), 0, num_bytes);
  clear_granules(low - kArenaBase, num_bytes);
  const std::uintptr_t first = (low + kPageBytes - 1) / kPageBytes * kPageBytes;
  const std::uintptr_t last = (low + num_bytes) / kPageBytes * kPageBytes;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

void watch_registered(const void* address, std::size_t num_bytes) {
  if (!checking) return;
  const auto low = reinterpret_cast<std::uintptr_t>(address);
  const std::size_t padded = (num_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (padded > kArenaBytes - shadow.next_registered) return;
  const std::size_t start = std::exchange(shadow.next_registered, shadow.next_registered + padded);
  // As the address lies in the granule, so must its shadow.
  shadow.registered.push_back({{low, low + num_bytes}, start + low % kGranuleBytes});
  std::memset(shadow.bytes + start, kAllocated | kDefinedContent, padded);
  Range& all = shadow.all_registered;
  all = all.high == 0 ? Range{low, low + num_bytes}
                      : Range{std::min(all.low, low), std::max(all.high, low + num_bytes)};
}

void forget_registered(const void* address) {
  std::erase_if(shadow.registered, [&](const Registered& registered) {
    return registered.range.low == reinterpret_cast<std::uintptr_t>(address);
  });
  if (shadow.registered.empty()) shadow.all_registered = {};
}

void note_access(const void* address,
                 std::size_t num_bytes,
                 Access access,
                 std::uint32_t operation_id) {
  if (!checking || num_bytes == 0) return;
  const auto offset = offset_of(reinterpret_cast<std::uintptr_t>(address));
  if (!offset) return;
  Visit now;
  now.operation = operation_id;
  check_reachable(*offset, num_bytes, access, now, nullptr);
}

void set_shared_memory(Range whole, Range dynamic) {
  if (whole.high - whole.low > kSharedBytes) {
    fmt::print(stderr, "cuda emulation: more than 1 MiB of thread-local variables\n");
    std::abort();
  }
  shadow.shared = whole;
  shadow.dynamic = dynamic;
  std::memset(shadow.bytes, kAllocated, whole.high - whole.low);
  if (dynamic.low == 0) return;
  const std::size_t used = dynamic.high - dynamic.low;
  std::memset(shadow.bytes + (dynamic.high - whole.low), 0, kPecanEmulationSharedBytes - used);
}

void forget_shared_content() {
  if (!checking) return;
  flush_statistics();
  const Range& whole = shadow.shared;
  const Range& dynamic = shadow.dynamic;
  if (dynamic.low == 0) {
    std::memset(shadow.bytes, kAllocated, whole.high - whole.low);
    return;
  }
  const std::size_t behind = dynamic.low + kPecanEmulationSharedBytes - whole.low;
  std::memset(shadow.bytes, kAllocated, dynamic.high - whole.low);
  std::memset(shadow.bytes + behind, kAllocated, whole.high - whole.low - behind);
}

void check_alignment(const void* address, std::size_t alignment, const void* code) {
  if (reinterpret_cast<std::uintptr_t>(address) % alignment == 0) return;
  if (!is_first_at(code, "alignment")) return;
  report("alignment",
         fmt::format("{} accesses {} bytes at {}, an address that is no multiple of that",
                     is_in_kernel ? describe_position() : std::string("the host"),
                     alignment,
                     source_of(code)));
}

void check_access(const void* address, std::size_t num_bytes, Access access, const void* code) {
  const auto location = reinterpret_cast<std::uintptr_t>(address);
  if (is_in_kernel) {
    if (running.is_paused || running.stack.contains(location) ||
        shadow.built_in.contains(location)) {
      return;
    }
    running.is_paused = true;
    const auto offset = offset_of(location);
    if (!offset) {
      check_foreign(location, access, code);
    } else if (!check_reachable(*offset, num_bytes, access, visit_of_kernel(access), code)) {
      abort_kernel(cudaErrorIllegalAddress);
    } else {
      record_statistics(*offset, *offset < kSharedBytes, num_bytes, access != Access::kRead, code);
    }
    running.is_paused = false;
    return;
  }
  const auto offset = checking ? offset_of(location) : std::nullopt;
  if (!offset) return;
  const std::scoped_lock lock(device_mutex());
  if (*offset < kPinnedStart) {
    if (!is_first_at(code, "host")) return;
    report("memory",
           fmt::format("{} {} device memory at {}",
                       current_actor(),
                       access == Access::kRead ? "reads" : "writes",
                       source_of(code)));
    return;
  }
  Visit now;
  now.operation = host_operation();
  check_reachable(*offset, num_bytes, access, now, code);
}

void note_atomic(const void* address, std::size_t num_bytes, const void* code) {
  if (!checking) return;
  check_alignment(address, num_bytes, code);
  check_access(address, num_bytes, Access::kAtomic, code);
}

}  // namespace pecan::emulation
