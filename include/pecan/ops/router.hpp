#pragma once
/// Top-k softmax router with the balancing losses of Megatron.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

enum class RouterOrder : std::uint8_t {
  kTopkThenSoftmax,  ///< softmax over the K chosen logits: weights sum to the scaling factor
  kSoftmaxThenTopk,  ///< softmax over all E, then the K largest, not renormalised
};

struct RouterOptions {
  RouterOrder order = RouterOrder::kTopkThenSoftmax;
  double scaling_factor = 1.0;  ///< multiplies the weights
};

/// Values before coefficients: aux is E/(K T^2) * sum_e n_e * sum_t p_te (1 at perfect balance), z
/// is mean_t logsumexp(logits_t)^2. Both 0 without tokens.
struct RouterLosses {
  double aux = 0;
  double z = 0;
};

/// Chooses the K = topk_ids_TK's width largest logits of each token, in descending order, equal
/// ones by lower index. Writes topk_ids_TK (i32), weights_TK and probs_TE, the softmax over all
/// experts. 1 <= K <= E. NaN logits still give K distinct valid ids.
void router_forward(Context& ctx,
                    const RouterOptions& options,
                    ConstTensorView logits_TE,
                    TensorView topk_ids_TK,
                    TensorView weights_TK,
                    TensorView probs_TE);

/// Counts token-slots an expert into counts_E (i64, overwritten) and returns both losses, summed in
/// double.
[[nodiscard]] RouterLosses router_losses(Context& ctx,
                                         ConstTensorView logits_TE,
                                         ConstTensorView probs_TE,
                                         ConstTensorView topk_ids_TK,
                                         TensorView counts_E);

/// Computes dlogits_TE (overwritten) from dweights_TK plus the gradients of aux_coeff * aux +
/// z_coeff * z. `counts_E` is router_losses' (counts carry no gradient); coefficients come with
/// every scale already multiplied in.
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
