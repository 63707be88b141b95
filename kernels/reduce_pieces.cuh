#pragma once
/// What the members of a group gave to one of them, combined in ascending order of the members: the
/// order in which groups on the CPU do it, so that both have the same bits.
///
/// Block: 256 threads, no shared memory; a thread combines 16 bytes of each piece, or an element
/// where the pieces are not aligned to 16 bytes. Bytes: each piece once, and the output. Flops: one
/// an element and member: memory bounds it.

#include "kernels/common.cuh"

namespace pecan::kernels {

constexpr int kPieceThreads = 256;

/// Combined as S, which is T but for bf16.
template <typename T>
__device__ T summand(T x) {
  return x;
}
__device__ inline float summand(Bf16 x) {
  return wide(x);
}
template <typename T>
__device__ void store_sum(T& to, T sum) {
  to = sum;
}
__device__ inline void store_sum(Bf16& to, float sum) {
  put(to, sum);
}

struct InOrderSum {
  __device__ float operator()(float a, float b) const { return a + b; }
  __device__ double operator()(double a, double b) const { return a + b; }
  /// Wraps round.
  __device__ std::int32_t operator()(std::int32_t a, std::int32_t b) const {
    return std::int32_t(std::uint32_t(a) + std::uint32_t(b));
  }
  __device__ std::int64_t operator()(std::int64_t a, std::int64_t b) const {
    return std::int64_t(std::uint64_t(a) + std::uint64_t(b));
  }
};
struct InOrderMax {
  template <typename S>
  __device__ S operator()(S a, S b) const {
    return b > a || b != b ? b : a;
  }
};
struct InOrderMin {
  template <typename S>
  __device__ S operator()(S a, S b) const {
    return b < a || b != b ? b : a;
  }
};

/// Elements i .. i + kCount of all pieces, combined.
template <int kCount, typename T, typename Combine>
__device__ void combine_at(const T* own,
                           const T* others,
                           Index stride,
                           int member,
                           int num_members,
                           Combine combine,
                           Index i,
                           T* output) {
  using S = decltype(summand(T{}));
  struct alignas(sizeof(T) * kCount) Lanes {
    T values[kCount];
  };
  const auto lanes_of = [&](int m) {
    const T* piece = m == member ? own : others + Index(m < member ? m : m - 1) * stride;
    return *reinterpret_cast<const Lanes*>(piece + i);
  };
  S sums[kCount];
  const Lanes first = lanes_of(0);
#pragma unroll
  for (int k = 0; k < kCount; ++k) sums[k] = summand(first.values[k]);
  for (int m = 1; m < num_members; ++m) {
    const Lanes next = lanes_of(m);
#pragma unroll
    for (int k = 0; k < kCount; ++k) sums[k] = combine(sums[k], summand(next.values[k]));
  }
  Lanes result;
#pragma unroll
  for (int k = 0; k < kCount; ++k) store_sum(result.values[k], sums[k]);
  *reinterpret_cast<Lanes*>(output + i) = result;
}

/// output[i] = own[i] and others[i], others[stride + i], ... combined, own as that of `member`.
/// output may be own.
template <typename T, typename Combine>
__global__ void __launch_bounds__(kPieceThreads) reduce_pieces_kernel(const T* own,
                                                                      const T* others,
                                                                      Index stride,
                                                                      int member,
                                                                      int num_members,
                                                                      Combine combine,
                                                                      bool aligned,
                                                                      Index count,
                                                                      T* output) {
  constexpr int kEach = 16 / int(sizeof(T));
  const Index begin = (Index(blockIdx.x) * kPieceThreads + threadIdx.x) * kEach;
  const Index end = min(count, begin + kEach);
  if (aligned && begin + kEach <= count) {
    combine_at<kEach>(own, others, stride, member, num_members, combine, begin, output);
    return;
  }
  for (Index i = begin; i < end; ++i)
    combine_at<1>(own, others, stride, member, num_members, combine, i, output);
}

}  // namespace pecan::kernels
