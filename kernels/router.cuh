#pragma once
/// The router: choice of experts, weights, counts, losses and gradients, of f32 logits.
///
/// A warp a token, 4 tokens a block of 128 threads; shared: 4 (E + groups) + 4 K bytes a token.
/// Bytes a token: forward 8 E + 8 K, counts 4 K or 4 E, losses 16 E, backward 20 E + 12 K. Flops:
/// some 10 E, an exponential and a division among them, and E/32 rounds of comparisons a choice.
/// Intensity: 1 flop a byte: memory bounds them, and for the few tokens of a step the launch.

#include <pecan/ops/router.hpp>

#include "kernels/common.cuh"

namespace pecan::kernels {

constexpr int kRouterWarps = 4;
constexpr int kRouterThreads = kRouterWarps * kWarp;
/// Blocks that a multiprocessor must have room for, which leaves a thread 48 registers, or in f64
/// 80: what the kernels take. Where none are asked for, ptxas picks a number of its own, and spills
/// to keep to it.
template <typename T>
constexpr int kRouterBlocks = sizeof(T) == sizeof(float) ? 10 : 6;

/// Keeps s / sum of s finite where every s is 0. Source: Megatron.
constexpr double kSumFloor = 1e-20;

/// Shared memory of a token's warp.
template <typename T>
struct RouterRow {
  T* scores;             ///< [E]; -inf: not to be chosen (again)
  T* group_scores;       ///< [groups]
  std::int32_t* chosen;  ///< [K]
};

template <typename T>
[[nodiscard]] __host__ __device__ std::size_t router_row_bytes(Index experts,
                                                               Index groups,
                                                               Index k) {
  return std::size_t(experts + groups + k) * sizeof(T);
}

template <typename T>
__device__ RouterRow<T> router_row(Index experts, Index groups, Index k) {
  auto* memory = reinterpret_cast<T*>(dynamic_smem + threadIdx.x / kWarp *
                                                         router_row_bytes<T>(experts, groups, k));
  return {memory, memory + experts, reinterpret_cast<std::int32_t*>(memory + experts + groups)};
}

template <typename T>
__device__ T sigmoid(T x) {
  return 1 / (1 + exp_of(-x));
}

/// The larger score; of equal ones the lower index. NaN is smaller than all others.
template <typename T>
__device__ bool comes_first(T a, int a_index, T b, int b_index) {
  if (b_index < 0) return a_index >= 0;
  if (a_index < 0) return false;
  const bool a_nan = a != a, b_nan = b != b;
  if (a_nan || b_nan) return a_nan == b_nan ? a_index < b_index : b_nan;
  return a > b || (a == b && a_index < b_index);
}

/// Index of the best of scores[0..count) that `is_free` allows, for the whole warp; -1 if it allows
/// none.
template <typename T, typename IsFree>
__device__ int best_of(const T* scores, Index count, const IsFree& is_free) {
  T best = 0;
  int index = -1;
  for (int e = threadIdx.x % kWarp; e < count; e += kWarp) {
    if (is_free(e) && comes_first(scores[e], e, best, index)) {
      best = scores[e];
      index = e;
    }
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, best, distance);
    const int other_index = __shfl_xor_sync(kAllLanes, index, distance);
    if (comes_first(other, other_index, best, index)) {
      best = other;
      index = other_index;
    }
  }
  return index;
}

/// Writes the `count` best to chosen[0..count) in shared memory, in order.
template <typename T>
__device__ void choose_best(const T* scores,
                            Index num_candidates,
                            Index count,
                            std::int32_t* chosen) {
  for (Index i = 0; i < count; ++i) {
    const int best = best_of(scores, num_candidates, [&](int e) {
      for (Index j = 0; j < i; ++j) {
        if (chosen[j] == e) return false;
      }
      return true;
    });
    if (threadIdx.x % kWarp == 0) chosen[i] = best;
    __syncwarp();
  }
}

/// Sum of the `count` best of scores[0..size), by one lane alone; NaNs are passed over.
template <typename T>
__device__ T sum_of_best(const T* scores, Index size, Index count) {
  T sum = 0;
  int last = -1;
  for (Index i = 0; i < count; ++i) {
    int best = -1;
    for (int e = 0; e < size; ++e) {
      if (scores[e] != scores[e]) continue;
      if (last >= 0 && !comes_first(scores[last], last, scores[e], e)) continue;
      if (e != last && comes_first(scores[e], e, best < 0 ? 0 : scores[best], best)) best = e;
    }
    if (best < 0) return sum;
    sum += scores[best];
    last = best;
  }
  return sum;
}

/// Leaves the best groups their scores, and the others -inf.
template <typename T>
__device__ void keep_best_groups(const ops::RouterOptions& options,
                                 Index experts,
                                 Index k,
                                 const RouterRow<T>& row) {
  const int lane = threadIdx.x % kWarp;
  const Index size = experts / options.num_groups;
  for (Index group = lane; group < options.num_groups; group += kWarp)
    row.group_scores[group] = sum_of_best(row.scores + group * size, size, k / options.group_topk);
  __syncwarp();
  choose_best(row.group_scores, options.num_groups, options.group_topk, row.chosen);
  for (Index e = lane; e < experts; e += kWarp) {
    bool kept = false;
    for (Index i = 0; i < options.group_topk; ++i) kept |= row.chosen[i] == e / size;
    if (!kept) row.scores[e] = -T(INFINITY);
  }
  __syncwarp();
}

template <typename T>
__device__ T row_max_of(const T* logits, Index experts) {
  T largest = -T(INFINITY);
  for (Index e = threadIdx.x % kWarp; e < experts; e += kWarp)
    largest = larger_of(largest, logits[e]);
  return warp_reduce(largest, Larger{});
}

template <typename T>
__device__ T exp_sum_of(const T* logits, Index experts, T largest) {
  T sum = 0;
  for (Index e = threadIdx.x % kWarp; e < experts; e += kWarp) sum += exp_of(logits[e] - largest);
  return warp_reduce(sum);
}

template <typename T>
__device__ T log_sum_exp_of(const T* logits, Index experts) {
  const T largest = row_max_of(logits, experts);
  return largest + log_of(exp_sum_of(logits, experts, largest));
}

/// The token of this warp, or -1.
__device__ inline Index token_of_warp(Index tokens) {
  const Index t = Index(blockIdx.x) * kRouterWarps + threadIdx.x / kWarp;
  return t < tokens ? t : -1;
}

/// `bias_E` may be null.
template <typename T>
__global__ void __launch_bounds__(kRouterThreads, kRouterBlocks<T>)
    router_forward_kernel(ops::RouterOptions options,
                          const T* logits_TE,
                          const T* bias_E,
                          Index tokens,
                          Index experts,
                          Index k,
                          std::int32_t* topk_ids_TK,
                          T* weights_TK,
                          T* probs_TE) {
  const Index t = token_of_warp(tokens);
  if (t < 0) return;
  const int lane = threadIdx.x % kWarp;
  const RouterRow<T> row = router_row<T>(experts, options.num_groups, k);
  const T* logits = logits_TE + t * experts;
  T* probs = probs_TE + t * experts;
  T* weights = weights_TK + t * k;
  const bool of_sigmoid = options.scores == ops::RouterScores::kSigmoid;
  const T largest = of_sigmoid ? 0 : row_max_of(logits, experts);

  if (options.choice == ops::RouterChoice::kInTurn) {
    for (Index i = lane; i < k; i += kWarp)
      row.chosen[i] = std::int32_t((options.first_in_turn + t * k + i) % experts);
  } else {
    // The scores grow with the logits: where nothing is added to them, both choose alike.
    const bool by_logits = (options.num_groups == 0 && bias_E == nullptr) ||
                           options.scores == ops::RouterScores::kTopkThenSoftmax;
    for (Index e = lane; e < experts; e += kWarp) {
      const T score = by_logits    ? logits[e]
                      : of_sigmoid ? sigmoid(logits[e])
                                   : exp_of(logits[e] - largest);
      row.scores[e] = bias_E == nullptr ? score : score + bias_E[e];
    }
    __syncwarp();
    if (options.num_groups > 0) keep_best_groups(options, experts, k, row);
    choose_best(row.scores, experts, k, row.chosen);
  }
  __syncwarp();

  T sum = 0;
  for (Index e = lane; e < experts; e += kWarp)
    sum += of_sigmoid ? sigmoid(logits[e]) : exp_of(logits[e] - largest);
  sum = warp_reduce(sum) + (of_sigmoid ? T(kSumFloor) : 0);
  for (Index e = lane; e < experts; e += kWarp)
    probs[e] = (of_sigmoid ? sigmoid(logits[e]) : exp_of(logits[e] - largest)) / sum;

  // Every lane adds up the few chosen ones, in their order.
  const T factor = T(options.scaling_factor);
  T shift = largest, of_chosen = sum;
  if (of_sigmoid) {
    of_chosen = k == 1 ? 1 : T(kSumFloor);
    for (Index i = 0; k > 1 && i < k; ++i) of_chosen += sigmoid(logits[row.chosen[i]]);
  } else if (options.scores == ops::RouterScores::kTopkThenSoftmax) {
    // The chosen ones may all lie far below the largest logit: they get a shift of their own.
    shift = logits[row.chosen[0]];
    for (Index i = 1; i < k; ++i) shift = larger_of(shift, logits[row.chosen[i]]);
    of_chosen = 0;
    for (Index i = 0; i < k; ++i) of_chosen += exp_of(logits[row.chosen[i]] - shift);
  }
  for (Index i = lane; i < k; i += kWarp) {
    const T logit = logits[row.chosen[i]];
    topk_ids_TK[t * k + i] = row.chosen[i];
    weights[i] = factor * (of_sigmoid ? sigmoid(logit) : exp_of(logit - shift)) / of_chosen;
  }
}

/// `by_ids`: the choices count; else those that the logits alone would make. Integers may be added
/// in any order.
template <typename T>
__global__ void __launch_bounds__(kRouterThreads)
    router_counts_kernel(bool by_ids,
                         const T* logits_TE,
                         const std::int32_t* topk_ids_TK,
                         Index tokens,
                         Index experts,
                         Index k,
                         ops::BalanceGroups groups,
                         unsigned long long* counts_GE) {
  const Index t = token_of_warp(tokens);
  if (t < 0) return;
  const RouterRow<T> row = router_row<T>(0, 0, k);
  if (!by_ids) choose_best(logits_TE + t * experts, experts, k, row.chosen);
  unsigned long long* counts = counts_GE + groups.group_of(t) * experts;
  for (Index i = threadIdx.x % kWarp; i < k; i += kWarp) {
    const Index id = by_ids ? topk_ids_TK[t * k + i] : row.chosen[i];
    require(id >= 0 && id < experts);
    const T logit = logits_TE[t * experts + id];
    if (by_ids || logit == logit) atomicAdd(&counts[id], 1ULL);  // a NaN chooses nothing by itself
  }
}

/// terms[t]: sum of counts times probs; terms[tokens + t]: square of the logits' log-sum-exp.
template <typename T>
__global__ void __launch_bounds__(kRouterThreads)
    router_losses_kernel(const T* logits_TE,
                         const T* probs_TE,
                         const std::int64_t* counts_GE,
                         Index tokens,
                         Index experts,
                         ops::BalanceGroups groups,
                         double* terms_2T) {
  const Index t = token_of_warp(tokens);
  if (t < 0) return;
  const int lane = threadIdx.x % kWarp;
  const std::int64_t* counts = counts_GE + groups.group_of(t) * experts;
  T balance = 0;
  for (Index e = lane; e < experts; e += kWarp) balance += T(counts[e]) * probs_TE[t * experts + e];
  balance = warp_reduce(balance);
  const T lse = log_sum_exp_of(logits_TE + t * experts, experts);
  if (lane == 0) {
    terms_2T[t] = double(balance);
    terms_2T[tokens + t] = double(lse) * double(lse);
  }
}

/// A softmax gives dlogit = p (dp - sum of p dp): one over all experts, and one over the chosen for
/// kTopkThenSoftmax. With D = sum of s + floor, s / D gives ds = (dp - sum of p dp) / D: once over
/// all experts, and for K > 1 once over the chosen; then dlogit = s (1 - s) ds.
template <typename T>
__global__ void __launch_bounds__(kRouterThreads, kRouterBlocks<T>)
    router_backward_kernel(ops::RouterOptions options,
                           const T* logits_TE,
                           const T* probs_TE,
                           const std::int32_t* topk_ids_TK,
                           const T* weights_TK,
                           const T* dweights_TK,
                           const std::int64_t* counts_GE,
                           Index tokens,
                           Index experts,
                           Index k,
                           ops::BalanceGroups groups,
                           T aux_factor,
                           T z_factor,
                           T* dlogits_TE) {
  const Index t = token_of_warp(tokens);
  if (t < 0) return;
  const int lane = threadIdx.x % kWarp;
  const T* logits = logits_TE + t * experts;
  const T* probs = probs_TE + t * experts;
  const std::int32_t* ids = topk_ids_TK + t * k;
  const T* weights = weights_TK + t * k;
  const T* dweights = dweights_TK + t * k;
  const std::int64_t* counts = counts_GE + groups.group_of(t) * experts;
  const T scaling = T(options.scaling_factor);

  T mean = 0;
  for (Index e = lane; e < experts; e += kWarp) mean += probs[e] * aux_factor * T(counts[e]);
  mean = warp_reduce(mean);
  T weighted = 0;
  for (Index i = 0; i < k; ++i) {
    require(ids[i] >= 0 && ids[i] < experts);
    weighted += weights[i] * dweights[i];
  }
  const T lse = z_factor == 0 ? 0 : log_sum_exp_of(logits, experts);

  if (options.scores == ops::RouterScores::kSigmoid) {
    T sum = 0;
    for (Index e = lane; e < experts; e += kWarp) sum += sigmoid(logits[e]);
    sum = warp_reduce(sum) + T(kSumFloor);
    T of_chosen = k > 1 ? T(kSumFloor) : 1;
    for (Index i = 0; k > 1 && i < k; ++i) of_chosen += sigmoid(logits[ids[i]]);
    if (k == 1) weighted = 0;
    for (Index e = lane; e < experts; e += kWarp) {
      T ds = (aux_factor * T(counts[e]) - mean) / sum;
      for (Index i = 0; i < k; ++i) {
        if (ids[i] == e) ds += (scaling * dweights[i] - weighted) / of_chosen;
      }
      const T s = sigmoid(logits[e]);
      const T z = z_factor == 0 ? 0 : z_factor * lse * exp_of(logits[e] - lse);
      dlogits_TE[t * experts + e] = s * (1 - s) * ds + z;
    }
    return;
  }
  const bool all_weighted = options.scores == ops::RouterScores::kSoftmaxThenTopk;
  if (all_weighted) mean += weighted;
  for (Index e = lane; e < experts; e += kWarp) {
    T slot = 0;
    for (Index i = 0; i < k; ++i) {
      if (ids[i] != e) continue;
      slot = weights[i] * (all_weighted ? dweights[i] : dweights[i] - weighted / scaling);
    }
    dlogits_TE[t * experts + e] =
        probs[e] * (aux_factor * T(counts[e]) - mean + z_factor * lse) + slot;
  }
}

}  // namespace pecan::kernels
