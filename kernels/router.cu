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
           kRouterWarps * router_row_bytes<T>(experts, 0, k),
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

ops::RouterLosses router_losses(Context& ctx,
                                ConstTensorView logits_TE,
                                ConstTensorView probs_TE,
                                ConstTensorView counts_GE,
                                ops::BalanceGroups groups,
                                ops::BalanceScales scales) {
  const Index tokens = logits_TE.shape[0];
  // Scales over the number of tokens are infinite without any.
  if (tokens == 0 || (scales.aux == 0 && scales.z == 0)) return {};
  Scratch scratch(ctx);
  double* terms = scratch.take<double>(2 * tokens);
  double* sums = scratch.take<double>(2);
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
  for (Index i = 0; i < 2; ++i)
    reduce_to<Value, Plus>(ctx, static_cast<const double*>(terms) + i * tokens, tokens, sums + i);
  double found[2] = {};
  fetch(ctx, sums, 2, found);
  return {.aux = scales.aux == 0 ? 0 : scales.aux * found[0],
          .z = scales.z == 0 ? 0 : scales.z * found[1]};
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
