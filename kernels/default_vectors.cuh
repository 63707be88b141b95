#pragma once
/// Weights of default vectors and their gradient, sums of experts' outputs, moving averages. With s
/// bytes an element of a row:
///
/// weights: a thread an element of [T, E]; 256 threads, no shared memory. Bytes: 8 and 4 K. 1 flop.
/// their gradient: a warp a token, 4 tokens a block. Bytes an element: 16 and 4 K; 5 flops.
/// sums: a thread a column of an expert, 128 threads, no shared memory; 3 log2(S) loads to find an
/// expert's rows. Bytes: s an element and 8 a row and block; 2 flops.
/// averages: a thread an element of [E, H]. Bytes: 12; 3 flops.
/// Intensity below 1 flop a byte: memory bounds them all.

#include "kernels/common.cuh"

namespace pecan::kernels {

constexpr int kDefaultThreads = 256;
constexpr int kDefaultTokens = 4;  ///< of a block, each by a warp
constexpr int kSumThreads = 128;

__device__ inline bool is_among(const std::int32_t* ids_K, Index k, Index expert) {
  for (Index i = 0; i < k; ++i) {
    if (ids_K[i] == expert) return true;
  }
  return false;
}

template <typename T>
__global__ void __launch_bounds__(kDefaultThreads)
    default_weights_kernel(T scale,
                           const T* probs_TE,
                           const std::int32_t* ids_TK,
                           Index count,
                           Index experts,
                           Index k,
                           T* weights_TE) {
  const Index i = Index(blockIdx.x) * kDefaultThreads + threadIdx.x;
  if (i >= count) return;
  const bool own = is_among(ids_TK + i / experts * k, k, i % experts);
  weights_TE[i] = own ? T(0) : scale * probs_TE[i];
}

template <typename T>
__global__ void __launch_bounds__(kDefaultTokens* kWarp)
    default_weights_backward_kernel(T scale,
                                    const T* probs_TE,
                                    const std::int32_t* ids_TK,
                                    const T* dweights_TE,
                                    Index tokens,
                                    Index experts,
                                    Index k,
                                    T* dlogits_TE) {
  const Index token = Index(blockIdx.x) * kDefaultTokens + threadIdx.x / kWarp;
  if (token >= tokens) return;  // a whole warp
  const std::int32_t* ids = ids_TK + token * k;
  const T* probs = probs_TE + token * experts;
  const T* dweights = dweights_TE + token * experts;
  const auto dprob = [&](Index e) { return is_among(ids, k, e) ? T(0) : scale * dweights[e]; };
  T mean = 0;
  for (Index e = threadIdx.x % kWarp; e < experts; e += kWarp) mean += probs[e] * dprob(e);
  mean = warp_reduce(mean);
  for (Index e = threadIdx.x % kWarp; e < experts; e += kWarp)
    dlogits_TE[token * experts + e] += probs[e] * (dprob(e) - mean);
}

/// First of the rows, which are sorted by expert, whose expert is not below `expert`.
__device__ inline Index first_row_of(
    Index expert, const std::int32_t* order_P, const std::int32_t* ids, Index slots, Index rows) {
  Index low = 0, high = rows;
  while (low < high) {
    const Index middle = (low + high) / 2, slot = order_P[middle];
    require(slot >= 0 && slot < slots);
    if (ids[slot] < expert) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Grid: strips of the width and one for the column of weights, experts.
template <typename T, typename M = MathOf<T>>
__global__ void __launch_bounds__(kSumThreads)
    expert_output_sums_kernel(const T* rows_SH,
                              const std::int32_t* order_P,
                              const std::int32_t* ids_TK,
                              const M* weights_TK,
                              Index slots,
                              Index rows,
                              Index width,
                              bool add,
                              M* sums_EC) {
  const Index column = Index(blockIdx.x) * kSumThreads + threadIdx.x;
  if (column > width) return;
  const Index expert = blockIdx.y;
  const Index end = first_row_of(expert + 1, order_P, ids_TK, slots, rows);
  M sum = 0;
  for (Index row = first_row_of(expert, order_P, ids_TK, slots, rows); row < end; ++row) {
    const Index slot = order_P[row];
    require(slot >= 0 && slot < slots);
    const M weight = weights_TK[slot];
    sum += column == width ? weight : weight * wide(rows_SH[row * width + column]);
  }
  M& to = sums_EC[expert * (width + 1) + column];
  to = add ? to + sum : sum;
}

template <typename T>
__global__ void __launch_bounds__(kDefaultThreads) default_vectors_update_kernel(
    T beta, const T* sums_EC, Index count, Index width, T* vectors_EH) {
  const Index i = Index(blockIdx.x) * kDefaultThreads + threadIdx.x;
  if (i >= count) return;
  const T* sums = sums_EC + i / width * (width + 1);
  if (sums[width] == 0) return;
  vectors_EH[i] = beta * vectors_EH[i] + (1 - beta) / sums[width] * sums[i % width];
}

}  // namespace pecan::kernels
