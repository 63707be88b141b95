#pragma once
/// Top-k router: scores, choices, combine weights, and the balancing losses of Megatron.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

enum class RouterScores : std::uint8_t {
  kTopkThenSoftmax,  ///< softmax over the K chosen logits: weights sum to the scaling factor
  kSoftmaxThenTopk,  ///< softmax over all E, then the K largest, not renormalised
  kSigmoid,          ///< s = sigmoid(logit); for K > 1 weights are s / (sum of the chosen + 1e-20)
};

enum class RouterChoice : std::uint8_t {
  kBest,    ///< by score
  kInTurn,  ///< choice k of token t is expert (first_in_turn + t*K + k) mod E, whatever its score:
            ///< balanced load for benchmarks. Weights and their gradients stay those of the scores.
};

struct RouterOptions {
  RouterScores scores = RouterScores::kTopkThenSoftmax;
  double scaling_factor = 1.0;  ///< multiplies the weights
  std::int64_t num_groups = 0;  ///< groups of E / num_groups consecutive experts; 0: none
  std::int64_t group_topk = 0;  ///< groups that a token chooses from; divides K
  RouterChoice choice = RouterChoice::kBest;
  std::int64_t first_in_turn = 0;  ///< >= 0
};

/// Values before coefficients: aux is E/(K T^2) * sum_e n_e * sum_t p_te (1 at perfect balance), z
/// is mean_t logsumexp(logits_t)^2. Both 0 without tokens.
struct RouterLosses {
  double aux = 0;
  double z = 0;
};

/// Chooses the K = topk_ids_TK's width best experts of each token, in descending order, equal ones
/// by lower index, and writes topk_ids_TK (i32), weights_TK and probs_TE: the softmax over all
/// experts, or for sigmoid scores s / (sum of all s + 1e-20).
/// bias_E ({}: none) is added to sigmoid scores for the choice alone. With groups, a group's score
/// is the sum of its best K / group_topk scores (bias included; scores are logits for
/// kTopkThenSoftmax), and the choice stays inside the best group_topk groups, equal ones by lower
/// index. 1 <= K <= E. NaN scores still give K distinct valid ids, of any group.
/// Source: Megatron-LM's topk routing; groups and bias from DeepSeek-V3 (arXiv 2412.19437).
/// Differs from the source: ties are settled.
void router_forward(Context& ctx,
                    const RouterOptions& options,
                    ConstTensorView logits_TE,
                    ConstTensorView bias_E,
                    TensorView topk_ids_TK,
                    TensorView weights_TK,
                    TensorView probs_TE);

/// Counts into counts_E (i64, overwritten) the token-slots an expert that enter the auxiliary loss
/// as n_e, and returns both losses, summed in double. These are the choices that the scores alone
/// would make, without bias and groups, as in Megatron; of choices in turn, those made.
[[nodiscard]] RouterLosses router_losses(Context& ctx,
                                         const RouterOptions& options,
                                         ConstTensorView logits_TE,
                                         ConstTensorView probs_TE,
                                         ConstTensorView topk_ids_TK,
                                         TensorView counts_E);

/// Computes dlogits_TE (overwritten) from dweights_TK plus the gradients of aux_coeff * aux +
/// z_coeff * z. `weights_TK` is router_forward's, with those of dropped choices, and `counts_E`
/// router_losses' (counts and choices carry no gradient); coefficients come with every scale
/// already multiplied in.
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
                     TensorView dlogits_TE);

}  // namespace pecan::ops
