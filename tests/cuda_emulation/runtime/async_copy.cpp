#include "async_copy.hpp"

#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include <pecan_emulation/ptx.hpp>

#include "checker.hpp"
#include "scheduler.hpp"

namespace pecan::emulation {
namespace {

constexpr std::size_t kMaxThreads = 1024;

struct Copy {
  void* to;
  const void* from;
  std::size_t num_bytes;
  int group;
  const void* code;
};

struct ThreadCopies {
  std::vector<Copy> pending;
  int num_groups = 0;
};

struct BlockCopies {
  std::array<ThreadCopies, kMaxThreads> threads;
  bool has_any = false;
};
BlockCopies& copies() {
  static auto* all = new BlockCopies;
  return *all;
}
ThreadCopies& copies_of_thread() {
  return copies().threads[running.position.thread];
}

}  // namespace

void copy_later(void* shared, const void* global, std::size_t num_bytes) {
  const void* code = __builtin_return_address(0);
  check_alignment(shared, num_bytes, code);
  check_alignment(global, num_bytes, code);
  copies().has_any = true;
  ThreadCopies& own = copies_of_thread();
  own.pending.push_back({shared, global, num_bytes, own.num_groups, code});
}

void close_copy_group() {
  copies().has_any = true;
  ++copies_of_thread().num_groups;
}

void wait_for_copies(int num_open) {
  ThreadCopies& own = copies_of_thread();
  std::erase_if(own.pending, [&](const Copy& copy) {
    if (copy.group >= own.num_groups - num_open) return false;
    if (is_checking()) {
      check_access(copy.from, copy.num_bytes, Access::kRead, copy.code);
      check_access(copy.to, copy.num_bytes, Access::kWrite, copy.code);
    }
    std::memcpy(copy.to, copy.from, copy.num_bytes);
    return true;
  });
}

void forget_copies() {
  if (!std::exchange(copies().has_any, false)) return;
  for (ThreadCopies& thread : copies().threads) {
    thread.pending.clear();
    thread.num_groups = 0;
  }
}

}  // namespace pecan::emulation
