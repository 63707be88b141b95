#include "memory.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include "checker.hpp"
#include "report.hpp"
#include "settings.hpp"
#include "streams.hpp"

namespace pecan::emulation {
namespace {

constexpr std::size_t kAlignment = 512;
constexpr std::size_t kGuardBytes = 512;
constexpr int kFill = 0xFF;
constexpr unsigned char kGuard = 0xA5;

struct Memory {
  std::map<std::uintptr_t, Allocation> allocations;
  std::size_t device_bytes = 0;
};
Memory& memory() {
  static auto* all = new Memory;
  return *all;
}

bool is_mapped(std::uintptr_t address) {
  const auto page = static_cast<std::uintptr_t>(getpagesize());
  unsigned char state = 0;
  return mincore(reinterpret_cast<void*>(address / page * page), 1, &state) == 0;
}

std::size_t padded(std::size_t num_bytes) {
  return (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Without the checker, bytes on both sides show what was written past the ends, when it is freed.
unsigned char* allocate_guarded(std::size_t num_bytes, void** block) {
  *block = std::aligned_alloc(kAlignment, padded(num_bytes) + 2 * kGuardBytes);
  if (*block == nullptr) return nullptr;
  auto* start = static_cast<unsigned char*>(*block);
  std::memset(start, kGuard, kGuardBytes);
  std::memset(start + kGuardBytes + num_bytes, kGuard, padded(num_bytes) - num_bytes + kGuardBytes);
  return start + kGuardBytes;
}

void check_guards(const Allocation& allocation) {
  const auto is_changed = [](unsigned char byte) { return byte != kGuard; };
  const auto* data = reinterpret_cast<const unsigned char*>(allocation.address);
  const auto* end = data + padded(allocation.num_bytes) + kGuardBytes;
  const auto* below = std::find_if(data - kGuardBytes, data, is_changed);
  const auto* above = std::find_if(data + allocation.num_bytes, end, is_changed);
  if (below != data) {
    report("memory",
           fmt::format("written {} bytes in front of an allocation of {} bytes",
                       data - below,
                       allocation.num_bytes));
  }
  if (above != end) {
    report("memory",
           fmt::format("written {} bytes past the end of an allocation of {} bytes",
                       above - data - static_cast<std::ptrdiff_t>(allocation.num_bytes) + 1,
                       allocation.num_bytes));
  }
}

}  // namespace

const Allocation* find_allocation(const void* address) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  const auto& all = memory().allocations;
  auto next = all.upper_bound(wanted);
  if (next == all.begin()) return nullptr;
  const Allocation& found = std::prev(next)->second;
  return wanted < found.address + found.num_bytes ? &found : nullptr;
}

bool is_on_device(const void* address) {
  const Allocation* found = find_allocation(address);
  return found != nullptr && found->space == Space::kDevice;
}

cudaError_t allocate(void** address, std::size_t num_bytes, Space space) {
  if (address == nullptr) return cudaErrorInvalidValue;
  *address = nullptr;
  if (num_bytes == 0) return cudaSuccess;
  if (space == Space::kDevice && num_bytes > free_device_bytes()) return cudaErrorMemoryAllocation;
  Allocation made{0, num_bytes, space, nullptr};
  unsigned char* data = is_checking() ? take_from_arena(padded(num_bytes) + kGuardBytes, space)
                                      : allocate_guarded(num_bytes, &made.block);
  if (data == nullptr) return cudaErrorMemoryAllocation;
  std::memset(data, kFill, num_bytes);
  if (made.block == nullptr) {
    // Much of what fills pinned memory (reads of files, MPI) was compiled without the checks.
    mark_allocated(data, num_bytes, space == Space::kDevice ? Content::kNone : Content::kDefined);
  }
  made.address = reinterpret_cast<std::uintptr_t>(data);
  memory().allocations[made.address] = made;
  if (space == Space::kDevice) memory().device_bytes += num_bytes;
  *address = data;
  return cudaSuccess;
}

cudaError_t release(void* address, Space space) {
  if (address == nullptr) return cudaSuccess;
  auto& all = memory().allocations;
  const auto found = all.find(reinterpret_cast<std::uintptr_t>(address));
  if (found == all.end() || found->second.space != space) {
    report("memory",
           fmt::format("{} is freed, but is no allocation of {} memory",
                       address,
                       space == Space::kDevice ? "device" : "pinned host"));
    return cudaErrorInvalidValue;
  }
  const Allocation allocation = found->second;
  all.erase(found);
  if (space == Space::kDevice) memory().device_bytes -= allocation.num_bytes;
  if (allocation.block != nullptr) {
    check_guards(allocation);
    std::free(allocation.block);
  } else {
    mark_freed(address, allocation.num_bytes);
  }
  return cudaSuccess;
}

cudaError_t register_memory(void* address, std::size_t num_bytes) {
  if (address == nullptr || num_bytes == 0) return cudaErrorInvalidValue;
  const auto start = reinterpret_cast<std::uintptr_t>(address);
  auto& all = memory().allocations;
  const auto next = all.lower_bound(start);
  if (find_allocation(address) != nullptr ||
      (next != all.end() && next->first < start + num_bytes)) {
    return cudaErrorHostMemoryAlreadyRegistered;
  }
  all[start] = {start, num_bytes, Space::kRegistered, nullptr};
  watch_registered(address, num_bytes);
  return cudaSuccess;
}

cudaError_t unregister_memory(void* address) {
  auto& all = memory().allocations;
  const auto found = all.find(reinterpret_cast<std::uintptr_t>(address));
  if (found == all.end() || found->second.space != Space::kRegistered) {
    return cudaErrorHostMemoryNotRegistered;
  }
  if (!is_mapped(found->second.address)) {
    report("memory", fmt::format("host memory {} was freed before it was unregistered", address));
  }
  all.erase(found);
  forget_registered(address);
  return cudaSuccess;
}

bool lies_within(const void* address, std::size_t num_bytes, const char* what) {
  if (num_bytes == 0) return true;
  const Allocation* found = find_allocation(address);
  if (found == nullptr) {
    if (!is_in_device_arena(address)) return true;
    report("memory", fmt::format("{} on device memory {} that is not allocated", what, address));
    return false;
  }
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(address) - found->address;
  if (num_bytes <= found->num_bytes - offset) return true;
  report("memory",
         fmt::format("{} of {} bytes at byte {} of an allocation of {}",
                     what,
                     num_bytes,
                     offset,
                     found->num_bytes));
  return false;
}

std::size_t free_device_bytes() {
  const std::size_t total = settings().memory_bytes;
  return total - std::min(total, memory().device_bytes);
}

std::size_t device_bytes_in_use() {
  const std::scoped_lock lock(device_mutex());
  return memory().device_bytes;
}

}  // namespace pecan::emulation
