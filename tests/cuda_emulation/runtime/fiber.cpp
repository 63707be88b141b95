#include "fiber.hpp"

#include <cstdio>
#include <cstdlib>

#include <sys/mman.h>

#ifndef __x86_64__
#error "the CUDA emulation switches stacks by hand, and only on x86-64"
#endif

// What the calling convention lets a function keep, and nothing else. The floating-point modes are
// the same in all fibers.
asm(R"(
.text
.globl pecan_emulation_switch_stack
.hidden pecan_emulation_switch_stack
.type pecan_emulation_switch_stack,@function
pecan_emulation_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pecan_emulation_switch_stack,.-pecan_emulation_switch_stack
)");

namespace pecan::emulation {
namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::size_t kStrideBytes = kStackBytes + kPageBytes;
constexpr int kSavedRegisters = 6;

}  // namespace

FiberPool::FiberPool(std::size_t num_fibers, void (*entry)())
    : num_fibers_(num_fibers),
      entry_(entry),
      fibers_(new Fiber[num_fibers]),
      free_(new Fiber*[num_fibers]) {
  void* stacks = mmap(nullptr,
                      num_fibers * kStrideBytes,
                      PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1,
                      0);
  if (stacks == MAP_FAILED) {
    std::perror("cuda emulation: no memory for stacks");
    std::abort();
  }
  low_ = reinterpret_cast<std::uintptr_t>(stacks);
  high_ = low_ + num_fibers * kStrideBytes;
  for (std::size_t index = 0; index < num_fibers; ++index) {
    mprotect(static_cast<char*>(stacks) + index * kStrideBytes, kPageBytes, PROT_NONE);
    fibers_[index].low = low_ + index * kStrideBytes + kPageBytes;
    fibers_[index].high = fibers_[index].low + kStackBytes;
  }
  reset();
}

void FiberPool::reset() {
  num_free_ = 0;
  for (std::size_t index = num_fibers_; index-- > 0;) {
    prepare(index);
    free_[num_free_++] = &fibers_[index];
  }
}

void FiberPool::prepare(std::size_t index) {
  // Stacks that start at the same offset of a page would meet in few sets of the caches.
  constexpr std::size_t kNumColours = 61;
  constexpr std::size_t kColourBytes = 192;
  const std::uintptr_t top = fibers_[index].high - 64 - index % kNumColours * kColourBytes;
  auto** slot = reinterpret_cast<void**>(top & ~std::uintptr_t{15});
  *--slot = nullptr;  // the entry is called, as it were, from nowhere
  *--slot = reinterpret_cast<void*>(entry_);
  for (int saved = 0; saved < kSavedRegisters; ++saved) *--slot = nullptr;
  fibers_[index].stack_pointer = slot;
}

}  // namespace pecan::emulation
