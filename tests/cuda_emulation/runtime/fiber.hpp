#pragma once
/// Fibers: stacks among which one thread of the operating system switches by itself.

#include <cstddef>
#include <cstdint>

namespace pecan::emulation {

struct Fiber {
  void* stack_pointer = nullptr;
  std::uintptr_t low = 0;  ///< first byte of the stack; 0 for the thread's own
  std::uintptr_t high = 0;
};

/// As many fibers as a block has threads, each of which starts in `entry`, which never returns.
class FiberPool {
 public:
  FiberPool(std::size_t num_fibers, void (*entry)());
  FiberPool(const FiberPool&) = delete;
  FiberPool& operator=(const FiberPool&) = delete;

  [[nodiscard]] Fiber* take() { return free_[--num_free_]; }
  /// A fiber may give itself back, if it switches away next.
  void give_back(Fiber* fiber) { free_[num_free_++] = fiber; }
  /// Takes all of them back, wherever they wait; what is on their stacks is forgotten.
  void reset();
  [[nodiscard]] bool holds(std::uintptr_t address) const { return address - low_ < high_ - low_; }

 private:
  void prepare(std::size_t index);

  std::size_t num_fibers_;
  void (*entry_)();
  Fiber* fibers_;
  Fiber** free_;
  std::size_t num_free_ = 0;
  std::uintptr_t low_ = 0;
  std::uintptr_t high_ = 0;
};

}  // namespace pecan::emulation

/// Saves the running stack in *saved and goes on where `loaded` was saved.
extern "C" void pecan_emulation_switch_stack(void** saved, void* loaded);
