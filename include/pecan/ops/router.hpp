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

/// The groups of tokens over which load is balanced: token t of a call belongs to group
/// (first_token + t) / tokens_per_group. One group is a micro-batch, a sequence or a global batch,
/// and a call may be over any part of it.
struct BalanceGroups {
  std::int64_t first_token = 0;       ///< position of the call's first token, >= 0
  std::int64_t tokens_per_group = 0;  ///< >= 1 where there are tokens
  [[nodiscard]] PECAN_HD constexpr std::int64_t group_of(std::int64_t token) const {
    return (first_token + token) / tokens_per_group;
  }
};

/// Factors of the losses' sums; 0 leaves a loss out. Over T tokens with K choices of E experts,
/// the losses of Megatron, of which an auxiliary loss of 1 is perfect balance, are
///   z, mean of the tokens:                              z = 1/T
///   aux of the micro-batch, one group:                  aux = E/(K T^2)
///   aux of sequences of S tokens, a group each, mean:   aux = E/(K S T)
///   aux of a global batch of N tokens, one group, whose counts are the sums over all of them,
///   mean over micro-batches of T tokens:                aux = E/(K N T)
struct BalanceScales {
  double aux = 0;
  double z = 0;
};

/// aux is scales.aux * sum over t and e of counts[group of t][e] * p_te, z is
/// scales.z * sum over t of logsumexp(logits_t)^2. Both 0 without tokens, whatever the scales.
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

/// Counts into counts_GE (i64, overwritten; zeros for groups without tokens) the token-slots an
/// expert that enter the auxiliary loss, from what router_forward was given and made. These are the
/// choices that the scores alone would make, without bias and groups of experts, as in Megatron; of
/// choices in turn, those made. G here and below: groups of tokens; a token of group G or above
/// throws ShapeError. Counts of the parts of a group add up to those of the whole.
void router_counts(Context& ctx,
                   const RouterOptions& options,
                   ConstTensorView logits_TE,
                   ConstTensorView probs_TE,
                   ConstTensorView topk_ids_TK,
                   BalanceGroups groups,
                   TensorView counts_GE);

/// Returns both losses, summed in double. counts_GE are router_counts' of the whole groups, of
/// which the call's tokens may be a part: losses of the parts add up to those of the whole.
[[nodiscard]] RouterLosses router_losses(Context& ctx,
                                         ConstTensorView logits_TE,
                                         ConstTensorView probs_TE,
                                         ConstTensorView counts_GE,
                                         BalanceGroups groups,
                                         BalanceScales scales);
/// The same to losses_2 (f64; aux, then z): on a device the host does not wait.
void router_losses(Context& ctx,
                   ConstTensorView logits_TE,
                   ConstTensorView probs_TE,
                   ConstTensorView counts_GE,
                   BalanceGroups groups,
                   BalanceScales scales,
                   TensorView losses_2);

/// Computes dlogits_TE (overwritten) from dweights_TK plus the gradient of the losses with the
/// scales aux_coeff and z_coeff: BalanceScales times coefficients and whatever else scales the
/// loss. `weights_TK` is router_forward's, with those of dropped choices; counts and choices carry
/// no gradient.
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
                     TensorView dlogits_TE);

}  // namespace pecan::ops
