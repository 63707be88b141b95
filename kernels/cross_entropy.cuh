#pragma once
/// Loss and gradient of a row of logits, of a whole vocabulary or a shard; s bytes a logit.
///
/// A block a token. Block: 256 threads; shared: 32 bytes for the maximum, 64 for the sums, 96 for
/// the loss (f64 64, 64 and 128). A row is read for its maximum, for its sum and for its gradient;
/// after the first time it comes from the cache if the rows of all blocks at work fit there: of
/// 50,000 logits in bf16 those of a launch of 128 tokens do (13 MB), those of 1056 blocks, as many
/// as an H100 runs, do not (106 MB). Bytes a logit: s for the loss and 2 s with the gradient; where
/// the rows do not fit 2 s and 4 s. Flops: 3 and 6, an exponential each time. Intensity in bf16:
/// 1.5 flops a byte and less: memory bounds all of them.

#include <pecan/ops/types.hpp>

#include "kernels/common.cuh"

namespace pecan::kernels {

constexpr int kLossThreads = 256;

template <typename T>
__device__ double mask_of(const T* mask_T, Index t) {
  return mask_T == nullptr ? 1 : double(wide(mask_T[t]));
}

/// For the whole block; passes over NaNs, which show in the sum.
template <typename T, typename M = MathOf<T>>
__device__ M row_max(const T* row, Index count) {
  M largest = -M(INFINITY);
  for (Index v = threadIdx.x; v < count; v += kLossThreads)
    largest = larger_of(largest, wide(row[v]));
  return group_reduce<kLossThreads>(largest, Larger{});
}

template <typename T, typename M = MathOf<T>>
__device__ double row_exp_sum(const T* row, Index count, M largest) {
  double sum = 0;
  for (Index v = threadIdx.x; v < count; v += kLossThreads)
    sum += double(exp_of(wide(row[v]) - largest));
  return group_reduce<kLossThreads>(sum);
}

/// row = (softmax - onehot(label)) factor up to `count`, 0 from there on. The label may lie
/// outside.
template <typename T, typename M = MathOf<T>>
__device__ void put_gradient(
    T* row, Index count, Index columns, Index label, M largest, M sum, M factor) {
  for (Index v = threadIdx.x; v < columns; v += kLossThreads) {
    if (v >= count) {
      put(row[v], M(0));
    } else {
      const M p = exp_of(wide(row[v]) - largest) / sum;
      put(row[v], (v == label ? p - 1 : p) * factor);
    }
  }
}

template <typename T, typename M = MathOf<T>>
__device__ void put_zeros(T* row, Index columns) {
  for (Index v = threadIdx.x; v < columns; v += kLossThreads) put(row[v], M(0));
}

/// With `kGradient`, logits are replaced by their gradient; else they are only read.
template <typename T, bool kGradient, typename M = MathOf<T>>
__global__ void __launch_bounds__(kLossThreads)
    cross_entropy_kernel(std::conditional_t<kGradient, T*, const T*> logits_TV,
                         Index vocab_size,
                         Index columns,
                         const std::int32_t* labels_T,
                         const T* mask_T,
                         double scale,
                         double* loss_T) {
  const Index t = blockIdx.x;
  auto* row = logits_TV + t * columns;
  const double mask = mask_of(mask_T, t);
  if (mask == 0) {
    if (threadIdx.x == 0) loss_T[t] = 0;
    if constexpr (kGradient) put_zeros(row, columns);
    return;
  }
  const Index label = labels_T[t];
  require(label >= 0 && label < vocab_size);
  const M label_logit = wide(row[label]);
  const M largest = row_max(row, vocab_size);
  const double sum = row_exp_sum(row, vocab_size, largest);
  if (threadIdx.x == 0) loss_T[t] = mask * (log(sum) - (double(label_logit) - double(largest)));
  // Everyone has read the label's logit: a sum of the block lies between.
  if constexpr (kGradient)
    put_gradient(row, vocab_size, columns, label, largest, M(sum), M(scale * mask));
}

template <typename T, typename M = MathOf<T>>
__global__ void __launch_bounds__(kLossThreads)
    cross_entropy_max_kernel(const T* logits_TV, Index count, Index columns, double* max_T) {
  const M largest = row_max(logits_TV + Index(blockIdx.x) * columns, count);
  if (threadIdx.x == 0) max_T[blockIdx.x] = double(largest);
}

/// Room for as many blocks is asked for as there are registers for: ptxas would spill f64's to make
/// room for more.
template <typename T, typename M = MathOf<T>>
__global__ void __launch_bounds__(kLossThreads, sizeof(M) == sizeof(float) ? 8 : 4)
    cross_entropy_sums_kernel(const T* logits_TV,
                              ops::VocabShard shard,
                              Index columns,
                              Index tokens,
                              const std::int32_t* labels_T,
                              const T* mask_T,
                              const double* max_T,
                              double* sums_2T) {
  const Index t = blockIdx.x;
  if (mask_of(mask_T, t) == 0) {
    if (threadIdx.x == 0) sums_2T[t] = sums_2T[tokens + t] = 0;
    return;
  }
  const T* row = logits_TV + t * columns;
  const Index label = labels_T[t];
  require(label >= 0 && label < shard.total);
  const double sum = row_exp_sum(row, shard.count, M(max_T[t]));
  if (threadIdx.x == 0) {
    const bool held = shard.holds(label);
    sums_2T[t] = sum;
    sums_2T[tokens + t] = held ? double(wide(row[label - shard.first])) - max_T[t] : 0;
  }
}

/// A thread a token.
template <typename T>
__global__ void __launch_bounds__(kLossThreads) cross_entropy_from_sums_kernel(
    const double* sums_2T, const T* mask_T, Index tokens, double* loss_T) {
  const Index t = Index(blockIdx.x) * kLossThreads + threadIdx.x;
  if (t >= tokens) return;
  const double mask = mask_of(mask_T, t);
  loss_T[t] = mask == 0 ? 0 : mask * (log(sums_2T[t]) - sums_2T[tokens + t]);
}

template <typename T, typename M = MathOf<T>>
__global__ void __launch_bounds__(kLossThreads)
    cross_entropy_backward_kernel(T* logits_TV,
                                  ops::VocabShard shard,
                                  Index columns,
                                  const std::int32_t* labels_T,
                                  const T* mask_T,
                                  const double* max_T,
                                  const double* sums_2T,
                                  double scale) {
  const Index t = blockIdx.x;
  T* row = logits_TV + t * columns;
  const double mask = mask_of(mask_T, t);
  if (mask == 0) return put_zeros(row, columns);
  const Index label = labels_T[t];
  require(label >= 0 && label < shard.total);
  put_gradient(
      row, shard.count, columns, label - shard.first, M(max_T[t]), M(sums_2T[t]), M(scale * mask));
}

}  // namespace pecan::kernels
