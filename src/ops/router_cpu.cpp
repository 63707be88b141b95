#include <algorithm>
#include <cmath>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"
#include "ops/vector_kernels.hpp"

namespace pecan::ops::cpu {
namespace {

/// Largest of the logits that are not among the `count` chosen ones; the first of equal ones, and
/// of NaNs any.
template <typename T>
std::int32_t next_choice(const T* logits,
                         std::int64_t num_experts,
                         const std::int32_t* chosen,
                         std::int64_t count) {
  std::int32_t best = -1;
  for (std::int32_t e = 0; e < num_experts; ++e) {
    if (best >= 0 && !(logits[e] > logits[best])) continue;
    if (std::find(chosen, chosen + count, e) == chosen + count) best = e;
  }
  return best;
}

/// log(sum exp(logits)) of one token, from its most probable expert: -log p is small and exact
/// there.
template <typename T>
double log_sum_exp(const T* logits, const T* probs, std::int32_t top) {
  return double(logits[top]) - std::log(double(probs[top]));
}

}  // namespace

void router_forward(Context& ctx,
                    const RouterOptions& options,
                    ConstTensorView logits_TE,
                    TensorView topk_ids_TK,
                    TensorView weights_TK,
                    TensorView probs_TE) {
  with_float_type(logits_TE.dtype, [&]<typename T>(T) {
    const std::int64_t num_experts = logits_TE.shape[1];
    const std::int64_t k = topk_ids_TK.shape[1];
    const auto& kernels = detail::vector_kernels<T>();
    parallel_for(ctx, logits_TE.shape[0], logits_TE.num_elements() * k, [&](std::int64_t t) {
      const T* logits = logits_TE.as<T>().data() + t * num_experts;
      std::int32_t* ids = topk_ids_TK.as<std::int32_t>().data() + t * k;
      T* weights = weights_TK.as<T>().data() + t * k;
      T* probs = probs_TE.as<T>().data() + t * num_experts;
      for (std::int64_t i = 0; i < k; ++i) ids[i] = next_choice(logits, num_experts, ids, i);
      const double sum = kernels.exp_sum(logits, probs, num_experts, T(1), logits[ids[0]]);
      double denominator = sum;
      if (options.order == RouterOrder::kTopkThenSoftmax) {
        denominator = 0;
        for (std::int64_t i = 0; i < k; ++i) denominator += double(probs[ids[i]]);
      }
      for (std::int64_t i = 0; i < k; ++i) {
        weights[i] = T(options.scaling_factor * double(probs[ids[i]]) / denominator);
      }
      for (std::int64_t e = 0; e < num_experts; ++e) probs[e] = T(double(probs[e]) / sum);
    });
  });
}

RouterLosses router_losses(Context& /*ctx*/,
                           ConstTensorView logits_TE,
                           ConstTensorView probs_TE,
                           ConstTensorView topk_ids_TK,
                           TensorView counts_E) {
  const auto ids = topk_ids_TK.as<std::int32_t>();
  const auto counts = counts_E.as<std::int64_t>();
  std::ranges::fill(counts, 0);
  for (const std::int32_t id : ids) ++counts[std::size_t(id)];
  const std::int64_t tokens = logits_TE.shape[0];
  const std::int64_t num_experts = logits_TE.shape[1];
  const std::int64_t k = topk_ids_TK.shape[1];
  RouterLosses losses;
  if (tokens == 0) return losses;
  with_float_type(logits_TE.dtype, [&]<typename T>(T) {
    const T* logits = logits_TE.as<T>().data();
    const T* probs = probs_TE.as<T>().data();
    for (std::int64_t t = 0; t < tokens; ++t) {
      double balance = 0;
      for (std::int64_t e = 0; e < num_experts; ++e) {
        balance += double(counts[std::size_t(e)]) * double(probs[t * num_experts + e]);
      }
      losses.aux += balance;
      const double lse =
          log_sum_exp(logits + t * num_experts, probs + t * num_experts, ids[std::size_t(t * k)]);
      losses.z += lse * lse;
    }
  });
  losses.aux *= double(num_experts) / (double(k) * double(tokens) * double(tokens));
  losses.z /= double(tokens);
  return losses;
}

void router_backward(Context& ctx,
                     const RouterOptions& options,
                     ConstTensorView logits_TE,
                     ConstTensorView probs_TE,
                     ConstTensorView topk_ids_TK,
                     ConstTensorView weights_TK,
                     ConstTensorView dweights_TK,
                     ConstTensorView counts_E,
                     double aux_coeff,
                     double z_coeff,
                     TensorView dlogits_TE) {
  with_float_type(logits_TE.dtype, [&]<typename T>(T) {
    const std::int64_t tokens = logits_TE.shape[0];
    const std::int64_t num_experts = logits_TE.shape[1];
    const std::int64_t k = topk_ids_TK.shape[1];
    const std::int64_t* counts = counts_E.as<std::int64_t>().data();
    const double aux_factor =
        aux_coeff * double(num_experts) / (double(k) * double(tokens) * double(tokens));
    const double z_factor = 2 * z_coeff / double(tokens);
    parallel_for(ctx, tokens, logits_TE.num_elements() * 8, [&](std::int64_t t) {
      const T* logits = logits_TE.as<T>().data() + t * num_experts;
      const T* probs = probs_TE.as<T>().data() + t * num_experts;
      const std::int32_t* ids = topk_ids_TK.as<std::int32_t>().data() + t * k;
      const T* weights = weights_TK.as<T>().data() + t * k;
      const T* dweights = dweights_TK.as<T>().data() + t * k;
      T* dlogits = dlogits_TE.as<T>().data() + t * num_experts;

      // Each softmax gives dlogit = p (dp - sum of p dp); first the one over all experts.
      const bool all_weighted = options.order == RouterOrder::kSoftmaxThenTopk;
      double mean = 0;
      for (std::int64_t e = 0; e < num_experts; ++e) {
        mean += double(probs[e]) * aux_factor * double(counts[e]);
      }
      double weighted = 0;
      for (std::int64_t i = 0; i < k; ++i) weighted += double(weights[i]) * double(dweights[i]);
      if (all_weighted) mean += weighted;
      const double z_gradient = z_factor == 0 ? 0 : z_factor * log_sum_exp(logits, probs, ids[0]);
      for (std::int64_t e = 0; e < num_experts; ++e) {
        double slot = 0;
        for (std::int64_t i = 0; i < k; ++i) {
          if (ids[i] != e) continue;
          slot = all_weighted ? double(weights[i]) * double(dweights[i])
                              : double(weights[i]) *
                                    (double(dweights[i]) - weighted / options.scaling_factor);
        }
        dlogits[e] =
            T(double(probs[e]) * (aux_factor * double(counts[e]) - mean + z_gradient) + slot);
      }
    });
  });
}

}  // namespace pecan::ops::cpu
