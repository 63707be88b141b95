#include "kernels/operators.hpp"
#include "kernels/reduce.cuh"
#include "kernels/router.cuh"

namespace pecan::kernels {

void router_forward(Context& ctx,
                    const ops::RouterOptions& options,
                    ConstTensorView logits_TE,
                    ConstTensorView bias_E,
                    TensorView topk_ids_TK,
                    TensorView weights_TK,
                    TensorView probs_TE) {
  const Index tokens = logits_TE.shape[0], experts = logits_TE.shape[1], k = topk_ids_TK.shape[1];
  with_float_type(logits_TE.dtype, [&]<typename T>(T) {
    launch(router_forward_kernel<T>,
           blocks_of(tokens, kRouterWarps),
           kRouterThreads,
           kRouterWarps * router_row_bytes<T>(experts, options.num_groups, k),
           stream_of(ctx),
           options,
           data_of<T>(logits_TE),
           data_of<T>(bias_E),
           tokens,
           experts,
           k,
           data_of<std::int32_t>(topk_ids_TK),
           data_of<T>(weights_TK),
           data_of<T>(probs_TE));
  });
}

void router_counts(Context& ctx,
                   const ops::RouterOptions& options,
                   ConstTensorView logits_TE,
                   ConstTensorView topk_ids_TK,
                   ops::BalanceGroups groups,
                   TensorView counts_GE) {
  fill(ctx, 0, counts_GE);
  const Index tokens = logits_TE.shape[0], experts = logits_TE.shape[1], k = topk_ids_TK.shape[1];
  const bool ids_are_of_scores =
      options.choice == ops::RouterChoice::kInTurn ||
      (options.scores != ops::RouterScores::kSigmoid && options.num_groups == 0);
  with_float_type(logits_TE.dtype, [&]<typename T>(T) {
    launch(router_counts_kernel<T>,
           blocks_of(tokens, kRouterWarps),
           kRouterThreads,
           kRouterWarps * router_row_bytes<T>(0, 0, k),
           stream_of(ctx),
           ids_are_of_scores,
           data_of<T>(logits_TE),
           data_of<std::int32_t>(topk_ids_TK),
           tokens,
           experts,
           k,
           groups,
           data_of<unsigned long long>(counts_GE));
  });
}

void router_losses(Context& ctx,
                   ConstTensorView logits_TE,
                   ConstTensorView probs_TE,
                   ConstTensorView counts_GE,
                   ops::BalanceGroups groups,
                   ops::BalanceScales scales,
                   TensorView losses_2) {
  const Index tokens = logits_TE.shape[0];
  // Scales over the number of tokens are infinite without any.
  if (tokens == 0) return fill(ctx, 0, losses_2);
  Scratch scratch(ctx);
  double* terms = scratch.take<double>(2 * tokens);
  with_float_type(logits_TE.dtype, [&]<typename T>(T) {
    launch(router_losses_kernel<T>,
           blocks_of(tokens, kRouterWarps),
           kRouterThreads,
           0,
           stream_of(ctx),
           data_of<T>(logits_TE),
           data_of<T>(probs_TE),
           data_of<std::int64_t>(counts_GE),
           tokens,
           logits_TE.shape[1],
           groups,
           terms);
  });
  const auto sum_terms = [&](Index which, double factor) {
    const TensorView loss = losses_2.rows(which, 1);
    if (factor == 0) return fill(ctx, 0, loss);
    const double* first = terms + which * tokens;
    reduce_to<Value, Plus>(ctx, first, tokens, data_of<double>(loss));
    scale(ctx, factor, loss);
  };
  sum_terms(0, scales.aux);
  sum_terms(1, scales.z);
}

void router_backward(Context& ctx,
                     const ops::RouterOptions& options,
                     ConstTensorView logits_TE,
                     ConstTensorView probs_TE,
                     ConstTensorView topk_ids_TK,
                     ConstTensorView weights_TK,
                     ConstTensorView dweights_TK,
                     ConstTensorView counts_GE,
                     ops::BalanceGroups groups,
                     double aux_coeff,
                     double z_coeff,
                     TensorView dlogits_TE) {
  const Index tokens = logits_TE.shape[0];
  with_float_type(logits_TE.dtype, [&]<typename T>(T) {
    launch(router_backward_kernel<T>,
           blocks_of(tokens, kRouterWarps),
           kRouterThreads,
           0,
           stream_of(ctx),
           options,
           data_of<T>(logits_TE),
           data_of<T>(probs_TE),
           data_of<std::int32_t>(topk_ids_TK),
           data_of<T>(weights_TK),
           data_of<T>(dweights_TK),
           data_of<std::int64_t>(counts_GE),
           tokens,
           logits_TE.shape[1],
           topk_ids_TK.shape[1],
           groups,
           T(aux_coeff),
           T(2 * z_coeff),
           data_of<T>(dlogits_TE));
  });
}

}  // namespace pecan::kernels
