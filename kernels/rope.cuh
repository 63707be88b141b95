#pragma once
/// Turns element i of each head together with element i + D/2, in place.
///
/// A thread a pair. Block: 256 threads, no shared memory. Bytes a pair of elements of s: 4 s, and 8
/// of the table, which the heads of a token find in the cache. Flops: 6. Intensity in bf16: below
/// 0.8 flops a byte: memory bounds it.

#include "kernels/common.cuh"

namespace pecan::kernels {

constexpr int kRopeThreads = 256;

/// `sign` is 1 forward and -1 back; `positions_T` may be null: positions go round with the table.
template <typename T, typename M = MathOf<T>>
__global__ void __launch_bounds__(kRopeThreads) rotate_kernel(const M* table_SD,
                                                              const std::int32_t* positions_T,
                                                              Index sequence,
                                                              Index pairs,
                                                              Index heads,
                                                              Index half,
                                                              M sign,
                                                              T* x_TND) {
  const Index pair = Index(blockIdx.x) * kRopeThreads + threadIdx.x;
  if (pair >= pairs) return;
  const Index head = pair / half, i = pair % half, t = head / heads;
  const Index position = positions_T == nullptr ? t % sequence : Index(positions_T[t]);
  require(position >= 0 && position < sequence);
  const M cosine = table_SD[position * 2 * half + i];
  const M sine = sign * table_SD[position * 2 * half + half + i];
  T* x = x_TND + head * 2 * half + i;
  const M a = wide(x[0]), b = wide(x[half]);
  put(x[0], a * cosine - b * sine);
  put(x[half], b * cosine + a * sine);
}

}  // namespace pecan::kernels
