#pragma once
/// The CPU side of every operator. Same signatures as the public ones, arguments already checked.

#include <span>

#include <pecan/ops/adamw.hpp>
#include <pecan/ops/attention.hpp>
#include <pecan/ops/block_sparse.hpp>
#include <pecan/ops/capacity.hpp>
#include <pecan/ops/router.hpp>
#include <pecan/ops/types.hpp>

namespace pecan::ops::cpu {

void adamw_update(Context& ctx,
                  const AdamWOptions& options,
                  ConstTensorView g,
                  TensorView p,
                  TensorView m,
                  TensorView v,
                  TensorView rounded_p);
void attention_forward(Context& ctx,
                       const AttentionShape& shape,
                       ConstTensorView document_start_T,
                       ConstTensorView q_TND,
                       ConstTensorView k_TGD,
                       ConstTensorView v_TGD,
                       TensorView out_TND,
                       TensorView lse_BNS);
void attention_backward(Context& ctx,
                        const AttentionShape& shape,
                        ConstTensorView document_start_T,
                        ConstTensorView dout_TND,
                        ConstTensorView q_TND,
                        ConstTensorView k_TGD,
                        ConstTensorView v_TGD,
                        ConstTensorView out_TND,
                        ConstTensorView lse_BNS,
                        TensorView dq_TND,
                        TensorView dk_TGD,
                        TensorView dv_TGD);
void block_sparse_sdd(Context& ctx,
                      const BlockTopology& topology,
                      ConstTensorView x_RI,
                      std::span<const ParamStorage> w_E,
                      WeightForm form,
                      TensorView h_RF);
void block_sparse_dsd(Context& ctx,
                      const BlockTopology& topology,
                      ConstTensorView h_RF,
                      std::span<const ParamStorage> w_E,
                      WeightForm form,
                      TensorView y_RI,
                      Accumulate accumulate);
void block_sparse_backward_weight(Context& ctx,
                                  const BlockTopology& topology,
                                  ConstTensorView h_RF,
                                  ConstTensorView x_RI,
                                  std::span<const ParamStorage> dw_E,
                                  WeightForm form);
[[nodiscard]] std::int64_t drop_over_capacity(Context& ctx,
                                              DropPolicy policy,
                                              std::int64_t capacity,
                                              ConstTensorView topk_ids_TK,
                                              ConstTensorView weights_TK,
                                              TensorView counts_E,
                                              TensorView kept_ids_TK);
void default_weights_forward(Context& ctx,
                             double scale,
                             ConstTensorView probs_TE,
                             ConstTensorView ids_TK,
                             TensorView weights_TE);
void default_weights_backward(Context& ctx,
                              double scale,
                              ConstTensorView probs_TE,
                              ConstTensorView ids_TK,
                              ConstTensorView dweights_TE,
                              TensorView dlogits_TE);
void expert_output_sums(Context& ctx,
                        ConstTensorView rows_SH,
                        ConstTensorView order_P,
                        ConstTensorView ids_TK,
                        ConstTensorView weights_TK,
                        TensorView sums_EC,
                        Accumulate accumulate);
void default_vectors_update(Context& ctx,
                            double beta,
                            ConstTensorView sums_EC,
                            TensorView vectors_EH);
void cross_entropy_forward(Context& ctx,
                           ConstTensorView logits_TV,
                           std::int64_t vocab_size,
                           ConstTensorView labels_T,
                           ConstTensorView mask_T,
                           TensorView loss_T);
void cross_entropy_forward_backward(Context& ctx,
                                    TensorView logits_TV,
                                    std::int64_t vocab_size,
                                    ConstTensorView labels_T,
                                    ConstTensorView mask_T,
                                    double scale,
                                    TensorView loss_T);
void fill(Context& ctx, double value, TensorView y);
void copy(Context& ctx, ConstTensorView x, TensorView y);
void cross_entropy_max(Context& ctx, ConstTensorView logits_TV, VocabShard shard, TensorView max_T);
void cross_entropy_sums(Context& ctx,
                        ConstTensorView logits_TV,
                        VocabShard shard,
                        ConstTensorView labels_T,
                        ConstTensorView mask_T,
                        ConstTensorView max_T,
                        TensorView sums_2T);
void cross_entropy_from_sums(Context& ctx,
                             ConstTensorView sums_2T,
                             ConstTensorView mask_T,
                             TensorView loss_T);
void cross_entropy_backward(Context& ctx,
                            TensorView logits_TV,
                            VocabShard shard,
                            ConstTensorView labels_T,
                            ConstTensorView mask_T,
                            ConstTensorView max_T,
                            ConstTensorView sums_2T,
                            double scale);
void add_bias(Context& ctx, ConstTensorView b_O, TensorView y_TO);
void bias_backward(Context& ctx, ConstTensorView dy_TO, TensorView db_O);
void cast(Context& ctx, ConstTensorView x, TensorView y);
void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y);
void axpy(Context& ctx, double alpha, ConstTensorView x, TensorView y);
void scale(Context& ctx, double alpha, TensorView y);
void embedding_forward(Context& ctx,
                       ConstTensorView tokens_T,
                       const ParamStorage& w_VH,
                       VocabShard shard,
                       TensorView y_TH);
void embedding_backward(Context& ctx,
                        ConstTensorView dy_TH,
                        ConstTensorView tokens_T,
                        VocabShard shard,
                        const ParamStorage& dw_VH);
void gelu_forward(Context& ctx, ConstTensorView x_TF, TensorView h_TF);
void gelu_backward(Context& ctx, ConstTensorView dh_TF, ConstTensorView x_TF, TensorView dx_TF);
void grouped_matmul_forward(Context& ctx,
                            std::span<const std::int64_t> counts_E,
                            ConstTensorView x_RI,
                            std::span<const ParamStorage> w_EOI,
                            TensorView y_RO);
void grouped_matmul_backward_input(Context& ctx,
                                   std::span<const std::int64_t> counts_E,
                                   ConstTensorView dy_RO,
                                   std::span<const ParamStorage> w_EOI,
                                   TensorView dx_RI,
                                   Accumulate accumulate);
void grouped_matmul_backward_weight(Context& ctx,
                                    std::span<const std::int64_t> counts_E,
                                    ConstTensorView dy_RO,
                                    ConstTensorView x_RI,
                                    std::span<const ParamStorage> dw_EOI);
void layer_norm_forward(Context& ctx,
                        ConstTensorView x_TH,
                        ConstTensorView w_H,
                        ConstTensorView b_H,
                        double eps,
                        TensorView y_TH,
                        TensorView mean_T,
                        TensorView rstd_T);
void layer_norm_backward(Context& ctx,
                         ConstTensorView dy_TH,
                         ConstTensorView x_TH,
                         ConstTensorView w_H,
                         ConstTensorView mean_T,
                         ConstTensorView rstd_T,
                         TensorView dx_TH,
                         Accumulate accumulate,
                         TensorView dw_H,
                         TensorView db_H);
void matmul_forward(Context& ctx, ConstTensorView x_TI, const ParamStorage& w_OI, TensorView y_TO);
void matmul_backward_input(Context& ctx,
                           ConstTensorView dy_TO,
                           const ParamStorage& w_OI,
                           TensorView dx_TI,
                           Accumulate accumulate);
void matmul_backward_weight(Context& ctx,
                            ConstTensorView dy_TO,
                            ConstTensorView x_TI,
                            const ParamStorage& dw_OI);
void permute_plan(Context& ctx,
                  ConstTensorView topk_ids_TK,
                  TensorView counts_E,
                  TensorView order_P,
                  TensorView positions_TK);
void permute_forward(Context& ctx,
                     ConstTensorView x_TH,
                     ConstTensorView order_P,
                     TensorView rows_PH);
void permute_backward(Context& ctx,
                      ConstTensorView drows_PH,
                      ConstTensorView positions_TK,
                      TensorView dx_TH,
                      Accumulate accumulate);
void unpermute_forward(Context& ctx,
                       ConstTensorView rows_PH,
                       ConstTensorView positions_TK,
                       ConstTensorView weights_TK,
                       TensorView y_TH,
                       Accumulate accumulate);
void unpermute_backward(Context& ctx,
                        ConstTensorView dy_TH,
                        ConstTensorView rows_PH,
                        ConstTensorView positions_TK,
                        ConstTensorView weights_TK,
                        TensorView drows_PH,
                        TensorView dweights_TK);
void init_normal(Context& ctx,
                 const ParamStorage& block_storage,
                 const Shape& global_shape,
                 const Shape& offset,
                 std::uint64_t seed,
                 std::uint64_t stream,
                 double std_dev);
void init_constant(Context& ctx, const ParamStorage& storage, double value);
[[nodiscard]] double sum(Context& ctx, ConstTensorView x);
void sum_of_squares(Context& ctx, ConstTensorView x, TensorView sum_1);
[[nodiscard]] std::int64_t count_non_finite(Context& ctx, ConstTensorView x);
[[nodiscard]] double max_abs(Context& ctx, ConstTensorView x);
void rms_norm_forward(Context& ctx,
                      ConstTensorView x_TH,
                      ConstTensorView w_H,
                      double eps,
                      TensorView y_TH,
                      TensorView rstd_T);
void rms_norm_backward(Context& ctx,
                       ConstTensorView dy_TH,
                       ConstTensorView x_TH,
                       ConstTensorView w_H,
                       ConstTensorView rstd_T,
                       TensorView dx_TH,
                       Accumulate accumulate,
                       TensorView dw_H);
void rope_table(Context& ctx, double rotary_base, TensorView table_SD);
void rope_forward(Context& ctx,
                  ConstTensorView table_SD,
                  ConstTensorView positions_T,
                  TensorView x_TND);
void rope_backward(Context& ctx,
                   ConstTensorView table_SD,
                   ConstTensorView positions_T,
                   TensorView dx_TND);
void router_forward(Context& ctx,
                    const RouterOptions& options,
                    ConstTensorView logits_TE,
                    ConstTensorView bias_E,
                    TensorView topk_ids_TK,
                    TensorView weights_TK,
                    TensorView probs_TE);
void router_counts(Context& ctx,
                   const RouterOptions& options,
                   ConstTensorView logits_TE,
                   ConstTensorView topk_ids_TK,
                   BalanceGroups groups,
                   TensorView counts_GE);
void router_losses(Context& ctx,
                   ConstTensorView logits_TE,
                   ConstTensorView probs_TE,
                   ConstTensorView counts_GE,
                   BalanceGroups groups,
                   BalanceScales scales,
                   TensorView losses_2);
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
void swiglu_forward(Context& ctx, ConstTensorView gate_TF, ConstTensorView up_TF, TensorView h_TF);
void swiglu_backward(Context& ctx,
                     ConstTensorView dh_TF,
                     ConstTensorView gate_TF,
                     ConstTensorView up_TF,
                     TensorView dgate_TF,
                     TensorView dup_TF);

}  // namespace pecan::ops::cpu
