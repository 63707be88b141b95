#pragma once
/// Rows of a table, and the gradient back into them; with s bytes an element of a row.
///
/// Forward: a block a token. Block: 128 threads, no shared memory. Bytes: 2 s an element. No flops.
/// Backward: a block a token; that of a token's first occurrence adds the gradients of all its
/// occurrences in ascending order, the others leave, so that no two blocks write one row and no
/// order is left to chance. Shared: 1 byte a thread. Bytes: s + 8 an element, and at most 4 T a
/// block of token ids from the cache (4 T^2 in all: 0.36 ms at T = 16384 and 3 TB/s from it).
/// Flops: 1 an element. Memory bounds both.

#include <pecan/ops/types.hpp>

#include "kernels/common.cuh"

namespace pecan::kernels {

constexpr int kTokenThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kTokenThreads) embedding_forward_kernel(
    const std::int32_t* tokens_T, const T* w_VH, ops::VocabShard shard, Index width, T* y_TH) {
  const Index token = tokens_T[blockIdx.x];
  require(token >= 0 && token < shard.total);
  const bool held = shard.holds(token);
  const T* w = w_VH + (token - shard.first) * width;
  T* y = y_TH + Index(blockIdx.x) * width;
  for (Index h = threadIdx.x; h < width; h += kTokenThreads) {
    if (held) {
      y[h] = w[h];
    } else {
      put(y[h], MathOf<T>(0));
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kTokenThreads)
    embedding_backward_kernel(const T* dy_TH,
                              const std::int32_t* tokens_T,
                              Index num_tokens,
                              ops::VocabShard shard,
                              Index width,
                              MathOf<T>* dw_VH) {
  __shared__ bool is_same[kTokenThreads];
  const Index mine = blockIdx.x;
  const Index token = tokens_T[mine];
  require(token >= 0 && token < shard.total);
  if (!shard.holds(token)) return;
  for (Index start = 0; start < mine; start += kTokenThreads) {
    const Index t = start + threadIdx.x;
    if (__syncthreads_or(t < mine && tokens_T[t] == token)) return;
  }
  MathOf<T>* dw = dw_VH + (token - shard.first) * width;
  for (Index start = mine; start < num_tokens; start += kTokenThreads) {
    const Index t = start + threadIdx.x;
    const bool same = t < num_tokens && tokens_T[t] == token;
    is_same[threadIdx.x] = same;
    if (!__syncthreads_or(same)) continue;  // and all have written is_same
    for (int i = 0; i < kTokenThreads; ++i) {
      if (!is_same[i]) continue;
      for (Index h = threadIdx.x; h < width; h += kTokenThreads)
        dw[h] += wide(dy_TH[(start + i) * width + h]);
    }
    __syncthreads();
  }
}

}  // namespace pecan::kernels
