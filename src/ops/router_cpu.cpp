#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"
#include "ops/vector_kernels.hpp"

namespace pecan::ops::cpu {
namespace {

/// Keeps s / sum of s finite where every s is 0. Source: Megatron.
constexpr double kSumFloor = 1e-20;

/// Largest of the scores that are not among the `count` chosen ones; the first of equal ones, and
/// of NaNs any.
template <typename ScoreOf>
std::int32_t next_choice(const ScoreOf& score_of,
                         std::int64_t num_candidates,
                         const std::int32_t* chosen,
                         std::int64_t count) {
  std::int32_t best = -1;
  auto best_score = score_of(0);
  for (std::int32_t e = 0; e < num_candidates; ++e) {
    const auto score = score_of(e);
    if (best >= 0 && !(score > best_score)) continue;
    if (std::find(chosen, chosen + count, e) != chosen + count) continue;
    best = e;
    best_score = score;
  }
  return best;
}

/// Calls visit(e) for the `count` largest of n scores in descending order, equal ones by lower
/// index; needs no list of those visited. NaNs are never visited.
template <typename T, typename Visit>
void visit_largest(const T* scores, std::int64_t n, std::int64_t count, Visit&& visit) {
  std::int64_t last = -1;
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t best = -1;
    for (std::int64_t e = 0; e < n; ++e) {
      const bool is_left =
          last < 0 || scores[e] < scores[last] || (scores[e] == scores[last] && e > last);
      if (is_left && (best < 0 ? scores[e] == scores[e] : scores[e] > scores[best])) best = e;
    }
    if (best < 0) return;
    visit(best);
    last = best;
  }
}

/// exp_sum of the vector kernels, where the last few experts of a row fill up a vector with zeros:
/// rows are short.
template <typename T>
double row_exp_sum(const T* x, T* y, std::int64_t num_experts, T scale, T shift) {
  constexpr std::int64_t kVector = 16;
  const auto& kernels = detail::vector_kernels<T>();
  const std::int64_t rest = num_experts % kVector;
  const std::int64_t whole = num_experts - rest;
  double sum = whole == 0 ? 0 : kernels.exp_sum(x, y, whole, scale, shift);
  if (rest == 0) return sum;
  T padded[kVector];
  std::fill_n(std::copy_n(x + whole, rest, padded),
              kVector - rest,
              -scale * std::numeric_limits<T>::infinity());
  sum += kernels.exp_sum(padded, padded, kVector, scale, shift);
  std::copy_n(padded, rest, y + whole);
  return sum;
}

template <typename T>
void sigmoid_row(const T* logits, T* s, std::int64_t num_experts) {
  row_exp_sum(logits, s, num_experts, T(-1), T(0));
  for (std::int64_t e = 0; e < num_experts; ++e) s[e] = T(1 / (1 + double(s[e])));
}

/// log(sum exp(logits)) of one token.
template <typename T>
double log_sum_exp(const T* logits, std::int64_t num_experts) {
  constexpr std::int64_t kPiece = 64;
  T piece[kPiece];
  const auto& kernels = detail::vector_kernels<T>();
  const T largest = kernels.max(logits, num_experts);
  double sum = 0;
  for (std::int64_t e = 0; e < num_experts; e += kPiece) {
    sum += row_exp_sum(logits + e, piece, std::min(kPiece, num_experts - e), T(1), largest);
  }
  return double(largest) + std::log(sum);
}

/// Sets the scores of all groups but the best to -inf. `chosen` has room for group_topk numbers.
template <typename T>
void keep_best_groups(const RouterOptions& options,
                      std::int64_t num_experts,
                      std::int64_t k,
                      T* scores,
                      std::int32_t* chosen) {
  const std::int64_t size = num_experts / options.num_groups;
  const auto score_of_group = [&](std::int64_t group) {
    const T* first = scores + group * size;
    double sum = 0;
    visit_largest(
        first, size, k / options.group_topk, [&](std::int64_t e) { sum += double(first[e]); });
    return sum;
  };
  for (std::int64_t i = 0; i < options.group_topk; ++i) {
    chosen[i] = next_choice(score_of_group, options.num_groups, chosen, i);
  }
  const std::int32_t* end = chosen + options.group_topk;
  for (std::int32_t group = 0; group < options.num_groups; ++group) {
    if (std::find<const std::int32_t*>(chosen, end, group) == end) {
      std::fill_n(scores + group * size, size, -std::numeric_limits<T>::infinity());
    }
  }
}

/// Chooses the experts of one token. `scratch` holds num_experts elements.
template <typename T>
void choose(const RouterOptions& options,
            const T* logits,
            const T* bias,
            std::int64_t num_experts,
            std::int64_t k,
            T* scratch,
            std::int32_t* ids) {
  // The scores grow with the logits: where nothing is added to them, both choose alike.
  const T* scores = logits;
  if (options.num_groups > 0 || bias != nullptr) {
    switch (options.scores) {
      case RouterScores::kTopkThenSoftmax:
        std::copy_n(logits, num_experts, scratch);
        break;
      case RouterScores::kSoftmaxThenTopk: {
        const auto& kernels = detail::vector_kernels<T>();
        row_exp_sum(logits, scratch, num_experts, T(1), kernels.max(logits, num_experts));
        break;
      }
      case RouterScores::kSigmoid:
        sigmoid_row(logits, scratch, num_experts);
        break;
    }
    if (bias != nullptr) {
      for (std::int64_t e = 0; e < num_experts; ++e) scratch[e] += bias[e];
    }
    if (options.num_groups > 0) keep_best_groups(options, num_experts, k, scratch, ids);
    scores = scratch;
  }
  const auto score_of = [&](std::int64_t e) { return scores[e]; };
  for (std::int64_t i = 0; i < k; ++i) ids[i] = next_choice(score_of, num_experts, ids, i);
}

}  // namespace

void router_forward(Context& ctx,
                    const RouterOptions& options,
                    ConstTensorView logits_TE,
                    ConstTensorView bias_E,
                    TensorView topk_ids_TK,
                    TensorView weights_TK,
                    TensorView probs_TE) {
  with_float_type(logits_TE.dtype, [&]<typename T>(T) {
    const std::int64_t num_experts = logits_TE.shape[1];
    const std::int64_t k = topk_ids_TK.shape[1];
    const T* bias = bias_E.data == nullptr ? nullptr : bias_E.as<T>().data();
    const auto& kernels = detail::vector_kernels<T>();
    const T* all_logits = logits_TE.as<T>().data();
    std::int32_t* all_ids = topk_ids_TK.as<std::int32_t>().data();
    T* all_weights = weights_TK.as<T>().data();
    T* all_probs = probs_TE.as<T>().data();
    parallel_for(ctx, logits_TE.shape[0], logits_TE.num_elements() * k, [&](std::int64_t t) {
      const T* logits = all_logits + t * num_experts;
      std::int32_t* ids = all_ids + t * k;
      T* weights = all_weights + t * k;
      T* probs = all_probs + t * num_experts;
      if (options.choice == RouterChoice::kInTurn) {
        for (std::int64_t i = 0; i < k; ++i) {
          ids[i] = std::int32_t((options.first_in_turn + t * k + i) % num_experts);
        }
      } else {
        choose(options, logits, bias, num_experts, k, probs, ids);
      }
      double sum = 0;
      if (options.scores == RouterScores::kSigmoid) {
        sigmoid_row(logits, probs, num_experts);
        for (std::int64_t e = 0; e < num_experts; ++e) sum += double(probs[e]);
        sum += kSumFloor;
        double chosen = k == 1 ? 1 : kSumFloor;
        for (std::int64_t i = 0; k > 1 && i < k; ++i) chosen += double(probs[ids[i]]);
        for (std::int64_t i = 0; i < k; ++i) {
          weights[i] = T(options.scaling_factor * double(probs[ids[i]]) / chosen);
        }
      } else {
        const T row_largest = kernels.max(logits, num_experts);
        sum = row_exp_sum(logits, probs, num_experts, T(1), row_largest);
        if (options.scores == RouterScores::kSoftmaxThenTopk) {
          for (std::int64_t i = 0; i < k; ++i) {
            weights[i] = T(options.scaling_factor * double(probs[ids[i]]) / sum);
          }
        } else {
          // The chosen ones may all lie far below the largest logit: they get a shift of their own.
          double largest = double(logits[ids[0]]);
          for (std::int64_t i = 1; i < k; ++i) largest = std::max(largest, double(logits[ids[i]]));
          const bool is_known = largest == double(row_largest);
          const auto exponential = [&](std::int64_t i) {
            return is_known ? double(probs[ids[i]]) : std::exp(double(logits[ids[i]]) - largest);
          };
          double chosen = 0;
          for (std::int64_t i = 0; i < k; ++i) chosen += exponential(i);
          for (std::int64_t i = 0; i < k; ++i) {
            weights[i] = T(options.scaling_factor * exponential(i) / chosen);
          }
        }
      }
      for (std::int64_t e = 0; e < num_experts; ++e) probs[e] = T(double(probs[e]) / sum);
    });
  });
}

void router_counts(Context& /*ctx*/,
                   const RouterOptions& options,
                   ConstTensorView logits_TE,
                   ConstTensorView topk_ids_TK,
                   BalanceGroups groups,
                   TensorView counts_GE) {
  std::ranges::fill(counts_GE.as<std::int64_t>(), 0);
  const std::int64_t num_experts = logits_TE.shape[1];
  const std::int64_t k = topk_ids_TK.shape[1];
  const bool ids_are_of_scores =
      options.choice == RouterChoice::kInTurn ||
      (options.scores != RouterScores::kSigmoid && options.num_groups == 0);
  with_float_type(logits_TE.dtype, [&]<typename T>(T) {
    const T* all_logits = logits_TE.as<T>().data();
    const std::int32_t* all_ids = topk_ids_TK.as<std::int32_t>().data();
    std::int64_t* all_counts = counts_GE.as<std::int64_t>().data();
    for (std::int64_t t = 0; t < logits_TE.shape[0]; ++t) {
      std::int64_t* counts = all_counts + groups.group_of(t) * num_experts;
      if (ids_are_of_scores) {
        const std::int32_t* ids = all_ids + t * k;
        for (std::int64_t i = 0; i < k; ++i) ++counts[ids[i]];
      } else {
        visit_largest(
            all_logits + t * num_experts, num_experts, k, [&](std::int64_t e) { ++counts[e]; });
      }
    }
  });
}

void router_losses(Context& /*ctx*/,
                   ConstTensorView logits_TE,
                   ConstTensorView probs_TE,
                   ConstTensorView counts_GE,
                   BalanceGroups groups,
                   BalanceScales scales,
                   TensorView losses_2) {
  const std::int64_t tokens = logits_TE.shape[0];
  const std::int64_t num_experts = logits_TE.shape[1];
  double aux = 0, z = 0;
  with_float_type(logits_TE.dtype, [&]<typename T>(T) {
    const T* all_logits = logits_TE.as<T>().data();
    const T* all_probs = probs_TE.as<T>().data();
    const std::int64_t* all_counts = counts_GE.as<std::int64_t>().data();
    for (std::int64_t t = 0; t < tokens && scales.aux != 0; ++t) {
      const T* probs = all_probs + t * num_experts;
      const std::int64_t* counts = all_counts + groups.group_of(t) * num_experts;
      double balance = 0;
      for (std::int64_t e = 0; e < num_experts; ++e)
        balance += double(counts[e]) * double(probs[e]);
      aux += balance;
    }
    for (std::int64_t t = 0; t < tokens && scales.z != 0; ++t) {
      const double lse = log_sum_exp(all_logits + t * num_experts, num_experts);
      z += lse * lse;
    }
  });
  // Scales over the number of tokens are infinite without any.
  const auto losses = losses_2.as<double>();
  losses[0] = tokens == 0 ? 0 : scales.aux * aux;
  losses[1] = tokens == 0 ? 0 : scales.z * z;
}

namespace {

/// One token's rows and the factors of its losses' gradients.
template <typename T>
struct TokenGradient {
  std::int64_t num_experts;
  std::int64_t k;
  const T* logits;
  const T* probs;
  const std::int32_t* ids;
  const T* weights;
  const T* dweights;
  const std::int64_t* counts;
  double scaling_factor;
  double aux_factor;
  double z_factor;
  T* dlogits;
};

/// A softmax gives dlogit = p (dp - sum of p dp): one over all experts, and one over the chosen
/// where `scores` says so.
template <typename T>
void softmax_gradient(RouterScores scores, const TokenGradient<T>& g) {
  const bool all_weighted = scores == RouterScores::kSoftmaxThenTopk;
  double mean = 0;
  for (std::int64_t e = 0; e < g.num_experts; ++e) {
    mean += double(g.probs[e]) * g.aux_factor * double(g.counts[e]);
  }
  double weighted = 0;
  for (std::int64_t i = 0; i < g.k; ++i) weighted += double(g.weights[i]) * double(g.dweights[i]);
  if (all_weighted) mean += weighted;
  const double z_gradient = g.z_factor == 0 ? 0 : g.z_factor * log_sum_exp(g.logits, g.num_experts);
  for (std::int64_t e = 0; e < g.num_experts; ++e) {
    double slot = 0;
    for (std::int64_t i = 0; i < g.k; ++i) {
      if (g.ids[i] != e) continue;
      slot = all_weighted
                 ? double(g.weights[i]) * double(g.dweights[i])
                 : double(g.weights[i]) * (double(g.dweights[i]) - weighted / g.scaling_factor);
    }
    g.dlogits[e] =
        T(double(g.probs[e]) * (g.aux_factor * double(g.counts[e]) - mean + z_gradient) + slot);
  }
}

/// With D = sum of s + floor, s / D gives ds = (dp - sum of p dp) / D: once over all experts, and
/// for K > 1 once over the chosen. Then dlogit = s (1 - s) ds. The z-loss is that of the logits.
template <typename T>
void sigmoid_gradient(const TokenGradient<T>& g) {
  // dlogits first holds exp(-logit).
  row_exp_sum(g.logits, g.dlogits, g.num_experts, T(-1), T(0));
  const auto sigmoid_of = [&](std::int64_t e) { return 1 / (1 + double(g.dlogits[e])); };
  double mean = 0, sum = kSumFloor;
  for (std::int64_t e = 0; e < g.num_experts; ++e) {
    mean += double(g.probs[e]) * g.aux_factor * double(g.counts[e]);
    sum += sigmoid_of(e);
  }
  double weighted = 0, chosen = 1;
  if (g.k > 1) {
    chosen = kSumFloor;
    for (std::int64_t i = 0; i < g.k; ++i) {
      chosen += sigmoid_of(g.ids[i]);
      weighted += double(g.weights[i]) * double(g.dweights[i]);
    }
  }
  const double lse = g.z_factor == 0 ? 0 : log_sum_exp(g.logits, g.num_experts);
  for (std::int64_t e = 0; e < g.num_experts; ++e) {
    double ds = (g.aux_factor * double(g.counts[e]) - mean) / sum;
    for (std::int64_t i = 0; i < g.k; ++i) {
      if (g.ids[i] == e) {
        ds += (g.scaling_factor * double(g.dweights[i]) - weighted) / chosen;
      }
    }
    const double s = sigmoid_of(e);
    double dlogit = s * (1 - s) * ds;
    if (g.z_factor != 0) {
      dlogit += g.z_factor * lse * std::exp(double(g.logits[e]) - lse);
    }
    g.dlogits[e] = T(dlogit);
  }
}

}  // namespace

void router_backward(Context& ctx,
                     const RouterOptions& options,
                     ConstTensorView logits_TE,
                     ConstTensorView probs_TE,
                     ConstTensorView topk_ids_TK,
                     ConstTensorView weights_TK,
                     ConstTensorView dweights_TK,
                     ConstTensorView counts_GE,
                     BalanceGroups groups,
                     double aux_coeff,
                     double z_coeff,
                     TensorView dlogits_TE) {
  with_float_type(logits_TE.dtype, [&]<typename T>(T) {
    const std::int64_t num_experts = logits_TE.shape[1];
    const std::int64_t k = topk_ids_TK.shape[1];
    const T* logits = logits_TE.as<T>().data();
    const T* probs = probs_TE.as<T>().data();
    const std::int32_t* ids = topk_ids_TK.as<std::int32_t>().data();
    const T* weights = weights_TK.as<T>().data();
    const T* dweights = dweights_TK.as<T>().data();
    const std::int64_t* counts = counts_GE.as<std::int64_t>().data();
    T* dlogits = dlogits_TE.as<T>().data();
    parallel_for(ctx, logits_TE.shape[0], logits_TE.num_elements() * 8, [&](std::int64_t t) {
      const TokenGradient<T> gradient{num_experts,
                                      k,
                                      logits + t * num_experts,
                                      probs + t * num_experts,
                                      ids + t * k,
                                      weights + t * k,
                                      dweights + t * k,
                                      counts + groups.group_of(t) * num_experts,
                                      options.scaling_factor,
                                      aux_coeff,
                                      2 * z_coeff,
                                      dlogits + t * num_experts};
      if (options.scores == RouterScores::kSigmoid) {
        sigmoid_gradient(gradient);
      } else {
        softmax_gradient(options.scores, gradient);
      }
    });
  });
}

}  // namespace pecan::ops::cpu
