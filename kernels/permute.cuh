#pragma once
/// Tokens to experts and back. The stable sort of token-slots by expert: each block counts its
/// chunk's slots an expert, one block turns the counts into first positions, and each block then
/// ranks its slots. Rows are gathered, and summed in the order of the choices; nothing is added in
/// an order left to chance. With s bytes an element of a row:
///
/// count, scan, rank: 256, 1024 and 256 threads; shared 4 (E + 1), 128 and 32 (E + 1) bytes. Bytes:
/// 20 a slot and 12 (E + 1) a chunk of 256 slots. No flops: launches and latency bound them.
/// gather: a block a row. Bytes: 2 s an element. No flops.
/// sums of rows: a block a token. Bytes: (K + 1) s a token's element. Flops: 2 K. Intensity in
/// bf16: below 1 flop a byte. gradients of the weighted sum: a block a slot. Bytes: 3 s an element.
/// Flops: 3. Memory bounds all that moves rows.

#include <pecan/ops/kernel_plan.hpp>

#include "kernels/common.cuh"

namespace pecan::kernels {

constexpr int kChunk = int(ops::kSlotsOfBlock);
constexpr int kScanThreads = 1024;
constexpr int kMoveThreads = 128;

/// Bin of a slot: its expert, or behind all experts if it is dropped.
__device__ inline int bin_of(std::int32_t expert, int num_experts) {
  require(expert >= -1 && expert < num_experts);
  return expert < 0 ? num_experts : expert;
}

/// counts[bin][chunk], bins outermost, so that a running sum over all gives first positions.
/// Integers may be added in any order.
__global__ void __launch_bounds__(kChunk)
    count_kernel(const std::int32_t* ids_P, Index slots, int num_experts, std::int32_t* counts) {
  auto* mine = reinterpret_cast<std::int32_t*>(dynamic_smem);
  for (int bin = threadIdx.x; bin <= num_experts; bin += kChunk) mine[bin] = 0;
  __syncthreads();
  const Index slot = Index(blockIdx.x) * kChunk + threadIdx.x;
  if (slot < slots) atomicAdd(&mine[bin_of(ids_P[slot], num_experts)], 1);
  __syncthreads();
  for (int bin = threadIdx.x; bin <= num_experts; bin += kChunk)
    counts[Index(bin) * gridDim.x + blockIdx.x] = mine[bin];
}

/// Replaces counts by the sum of those before, and writes each expert's own; one block.
__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(std::int32_t* counts, Index chunks, int num_experts, std::int64_t* counts_E) {
  __shared__ std::int32_t of_warp[kScanThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Index total = (Index(num_experts) + 1) * chunks;
  std::int32_t carry = 0;
  for (Index start = 0; start < total; start += kScanThreads) {
    const Index i = start + threadIdx.x;
    const std::int32_t count = i < total ? counts[i] : 0;
    std::int32_t sum = count;  // of the warp, up to here
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const std::int32_t before = __shfl_up_sync(kAllLanes, sum, distance);
      if (lane >= distance) sum += before;
    }
    __syncthreads();  // of_warp was read, in the round before
    if (lane == kWarp - 1) of_warp[warp] = sum;
    __syncthreads();
    std::int32_t before = carry;
    for (int other = 0; other < kScanThreads / kWarp; ++other) {
      if (other < warp) before += of_warp[other];
      carry += of_warp[other];
    }
    if (i < total) counts[i] = before + sum - count;
  }
  __syncthreads();  // the counts of the whole block are there
  for (int expert = threadIdx.x; expert < num_experts; expert += kScanThreads)
    counts_E[expert] = counts[(expert + 1) * chunks] - counts[expert * chunks];
}

/// Writes both directions of the sort from the first positions.
__global__ void __launch_bounds__(kChunk) rank_kernel(const std::int32_t* ids_P,
                                                      Index slots,
                                                      int num_experts,
                                                      const std::int32_t* first,
                                                      std::int32_t* order_P,
                                                      std::int32_t* positions_P) {
  constexpr int kWarps = kChunk / kWarp;
  auto* of_warp = reinterpret_cast<std::int32_t*>(dynamic_smem);  // [kWarps][num_experts + 1]
  const int bins = num_experts + 1;
  for (int i = threadIdx.x; i < kWarps * bins; i += kChunk) of_warp[i] = 0;
  __syncthreads();
  const Index slot = Index(blockIdx.x) * kChunk + threadIdx.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int bin = slot < slots ? bin_of(ids_P[slot], num_experts) : -1;
  const unsigned alike = __match_any_sync(kAllLanes, bin);
  const int rank = __popc(alike & ((1U << lane) - 1));
  if (bin >= 0 && rank == 0) of_warp[warp * bins + bin] = __popc(alike);
  __syncthreads();
  if (bin < 0) return;
  std::int32_t position = first[Index(bin) * gridDim.x + blockIdx.x] + rank;
  for (int other = 0; other < warp; ++other) position += of_warp[other * bins + bin];
  order_P[position] = std::int32_t(slot);
  positions_P[slot] = bin == num_experts ? -1 : position;
}

/// to = from, `units` of 16 bytes or of an element.
template <typename Unit>
__global__ void __launch_bounds__(kMoveThreads) gather_kernel(const Unit* x_TU,
                                                              const std::int32_t* order_P,
                                                              Index slots,
                                                              Index k,
                                                              Index units,
                                                              Unit* rows_PU) {
  const Index slot = order_P[blockIdx.x];
  require(slot >= 0 && slot < slots);
  const Unit* from = x_TU + slot / k * units;
  Unit* to = rows_PU + Index(blockIdx.x) * units;
  for (Index u = threadIdx.x; u < units; u += kMoveThreads) to[u] = from[u];
}

/// y[t] (+)= sum over k, ascending, of weights[t, k] rows[positions[t, k]]; null weights are ones.
template <typename T, typename M = MathOf<T>>
__global__ void __launch_bounds__(kMoveThreads) sum_rows_kernel(const T* rows_PH,
                                                                const std::int32_t* positions_TK,
                                                                const M* weights_TK,
                                                                Index num_rows,
                                                                Index k,
                                                                Index width,
                                                                bool add_to_y,
                                                                T* y_TH) {
  const Index t = blockIdx.x;
  T* y = y_TH + t * width;
  for (Index h = threadIdx.x; h < width; h += kMoveThreads) {
    M sum = add_to_y ? wide(y[h]) : M(0);
    for (Index i = 0; i < k; ++i) {
      const Index position = positions_TK[t * k + i];
      require(position >= -1 && position < num_rows);
      if (position < 0) continue;
      const M row = wide(rows_PH[position * width + h]);
      sum += weights_TK == nullptr ? row : weights_TK[t * k + i] * row;
    }
    put(y[h], sum);
  }
}

/// dweights[s] = dy[t] . rows[p], drows[p] = weights[s] dy[t] of slot s at position p. drows may be
/// rows.
template <typename T, typename M = MathOf<T>>
__global__ void __launch_bounds__(kMoveThreads)
    unpermute_backward_kernel(const T* dy_TH,
                              const T* rows_PH,
                              const std::int32_t* positions_TK,
                              const M* weights_TK,
                              Index num_rows,
                              Index k,
                              Index width,
                              T* drows_PH,
                              M* dweights_TK) {
  const Index slot = blockIdx.x;
  const Index position = positions_TK[slot];
  require(position >= -1 && position < num_rows);
  if (position < 0) {
    if (threadIdx.x == 0) dweights_TK[slot] = 0;
    return;
  }
  const T* dy = dy_TH + slot / k * width;
  const T* row = rows_PH + position * width;
  T* drow = drows_PH + position * width;
  const M weight = weights_TK[slot];
  M product = 0;
  for (Index h = threadIdx.x; h < width; h += kMoveThreads) {
    const M g = wide(dy[h]);
    product += g * wide(row[h]);
    put(drow[h], weight * g);
  }
  product = group_reduce<kMoveThreads>(product);
  if (threadIdx.x == 0) dweights_TK[slot] = product;
}

}  // namespace pecan::kernels
