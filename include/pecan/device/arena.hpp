#pragma once
/// Memory planned before step 0: the same allocation calls measure (plan) and serve (run).

#include <cstddef>
#include <cstdint>
#include <memory>

#include <pecan/core/tensor.hpp>

#include <pecan/device/device.hpp>

namespace pecan::device {

/// Bump allocator with marks. A measuring arena hands out null views and only counts, so that the
/// plan is made by the very calls that run: the high-water mark of both is equal, exactly.
class Arena {
 public:
  /// Measures: owns no memory, every view's data is null.
  Arena() = default;
  /// Serves from `capacity` bytes; allocation beyond it throws InternalError with both figures.
  Arena(Device device, std::size_t capacity);
  [[nodiscard]] bool measuring() const { return measuring_; }
  /// 64-byte aligned, not cleared; valid until release() of an earlier mark. Empty tensors take no
  /// bytes.
  [[nodiscard]] TensorView allocate(DType dtype, const Shape& shape);
  [[nodiscard]] std::size_t mark() const { return used_; }
  /// Gives back everything allocated since `mark`.
  void release(std::size_t mark);
  [[nodiscard]] std::size_t used() const { return used_; }
  [[nodiscard]] std::size_t high_water() const { return high_water_; }
  [[nodiscard]] std::size_t capacity() const { return memory_.size(); }

 private:
  Buffer memory_;
  std::size_t used_ = 0;
  std::size_t high_water_ = 0;
  bool measuring_ = true;
};

/// Releases what was allocated from an arena in a scope.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  std::size_t mark_;
};

}  // namespace pecan::device
