#pragma once
/// The groups of a block that kernels use, instead of NVIDIA's <cooperative_groups.h>. Groups
/// larger than a block do not exist here: blocks run one after the other.

#include <cuda_runtime.h>

namespace cooperative_groups {

class thread_block {
 public:
  static unsigned thread_rank() {
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  }
  static unsigned num_threads() { return blockDim.x * blockDim.y * blockDim.z; }
  static unsigned size() { return num_threads(); }
  static void sync(std::source_location where = std::source_location::current()) {
    __syncthreads(where);
  }
};
inline thread_block this_thread_block() {
  return {};
}

/// Neighbouring lanes, a power of two of them.
template <unsigned kSize, typename Parent = thread_block>
class thread_block_tile {
  static_assert(kSize <= warpSize && (kSize & (kSize - 1)) == 0);
  using Where = std::source_location;

 public:
  static unsigned thread_rank() { return thread_block::thread_rank() % kSize; }
  static unsigned meta_group_rank() { return thread_block::thread_rank() / kSize; }
  static unsigned meta_group_size() { return thread_block::num_threads() / kSize; }
  static constexpr unsigned num_threads() { return kSize; }
  static constexpr unsigned size() { return kSize; }

  static void sync(Where where = Where::current()) { __syncwarp(mask(), where); }
  template <typename T>
  static T shfl(T value, unsigned source, Where where = Where::current()) {
    return __shfl_sync(mask(), value, static_cast<int>(source), kSize, where);
  }
  template <typename T>
  static T shfl_up(T value, unsigned delta, Where where = Where::current()) {
    return __shfl_up_sync(mask(), value, delta, kSize, where);
  }
  template <typename T>
  static T shfl_down(T value, unsigned delta, Where where = Where::current()) {
    return __shfl_down_sync(mask(), value, delta, kSize, where);
  }
  template <typename T>
  static T shfl_xor(T value, unsigned lane_mask, Where where = Where::current()) {
    return __shfl_xor_sync(mask(), value, static_cast<int>(lane_mask), kSize, where);
  }
  static unsigned ballot(int predicate, Where where = Where::current()) {
    return __ballot_sync(mask(), predicate, where) >> first_lane();
  }
  static int any(int predicate, Where where = Where::current()) {
    return __any_sync(mask(), predicate, where);
  }
  static int all(int predicate, Where where = Where::current()) {
    return __all_sync(mask(), predicate, where);
  }

 private:
  static unsigned first_lane() { return pecan::emulation::lane_id() / kSize * kSize; }
  static unsigned mask() { return 0xFFFFFFFFu >> (warpSize - kSize) << first_lane(); }
};

template <unsigned kSize, typename Parent>
thread_block_tile<kSize, Parent> tiled_partition(const Parent&) {
  return {};
}

}  // namespace cooperative_groups
