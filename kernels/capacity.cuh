#pragma once
/// Which token-slots an expert over its capacity keeps.
///
/// A block an expert, which passes over all P slots: once to count its own, once a bit of a weight
/// to find the least one that stays, and once to write. Block: 256 threads; shared: 96 bytes.
/// Bytes: 12 a slot from memory, the rest from the cache (P is a few ten thousand). No flops:
/// latency bounds it.

#include "kernels/common.cuh"

namespace pecan::kernels {

constexpr int kCapacityThreads = 256;

/// Unsigned numbers in the order of the weights; 0 for NaN and whatever is negative.
__device__ inline unsigned order_of(float weight) {
  return weight >= 0 ? __float_as_uint(weight + 0.0F) + 1 : 0;
}
__device__ inline unsigned long long order_of(double weight) {
  return weight >= 0 ? static_cast<unsigned long long>(__double_as_longlong(weight + 0.0)) + 1 : 0;
}

/// Calls body(slot) for slots of `expert`, shared out among the threads.
template <typename Body>
__device__ void for_slots(const std::int32_t* ids_P, Index slots, Index expert, Body&& body) {
  for (Index slot = threadIdx.x; slot < slots; slot += kCapacityThreads) {
    if (ids_P[slot] == expert) body(slot);
  }
}

/// dropped_E: how many slots of each expert get -1.
template <typename T>
__global__ void __launch_bounds__(kCapacityThreads) capacity_kernel(bool by_weight,
                                                                    Index capacity,
                                                                    const std::int32_t* ids_P,
                                                                    const T* weights_P,
                                                                    Index slots,
                                                                    std::int64_t* counts_E,
                                                                    std::int32_t* kept_ids_P,
                                                                    double* dropped_E) {
  using Order = decltype(order_of(T{}));
  const Index expert = blockIdx.x;
  Index count = 0;
  for (Index slot = threadIdx.x; slot < slots; slot += kCapacityThreads) {
    require(ids_P[slot] >= 0 && ids_P[slot] < Index(gridDim.x));
    if (ids_P[slot] == expert) ++count;
  }
  count = group_reduce<kCapacityThreads>(count);
  if (threadIdx.x == 0) {
    counts_E[expert] = count;
    dropped_E[expert] = double(max(count - capacity, Index(0)));
  }
  if (count <= capacity) {
    for_slots(ids_P, slots, expert, [&](Index slot) { kept_ids_P[slot] = std::int32_t(expert); });
    return;
  }

  // The largest `least` that `capacity` slots reach, and how many lie above it.
  Order least = 0;
  Index above = 0;
  if (by_weight) {
    const auto how_many = [&](auto&& is_counted) {
      Index found = 0;
      for_slots(ids_P, slots, expert, [&](Index slot) {
        if (is_counted(order_of(weights_P[slot]))) ++found;
      });
      return group_reduce<kCapacityThreads>(found);
    };
    for (Order bit = Order(1) << (8 * sizeof(Order) - 1); bit != 0; bit /= 2) {
      const Order more = least | bit;
      if (how_many([&](Order order) { return order >= more; }) >= capacity) least = more;
    }
    above = how_many([&](Order order) { return order > least; });
  }

  // Those above stay, and of those at `least` the first.
  __shared__ int of_warp[kCapacityThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Index places = capacity - above;
  for (Index begin = 0; begin < slots; begin += kCapacityThreads) {
    const Index slot = begin + threadIdx.x;
    const bool is_own = slot < slots && ids_P[slot] == expert;
    const Order order = is_own && by_weight ? order_of(weights_P[slot]) : 0;
    const unsigned at_least = __ballot_sync(kAllLanes, is_own && order == least);
    __syncthreads();  // of_warp was read, in the round before
    if (lane == 0) of_warp[warp] = __popc(at_least);
    __syncthreads();
    Index place = __popc(at_least & ((1U << lane) - 1)), all = 0;
    for (int other = 0; other < kCapacityThreads / kWarp; ++other) {
      if (other < warp) place += of_warp[other];
      all += of_warp[other];
    }
    if (is_own) {
      const bool stays = order > least || (order == least && place < places);
      kept_ids_P[slot] = stays ? std::int32_t(expert) : -1;
    }
    places -= all;
  }
}

}  // namespace pecan::kernels
