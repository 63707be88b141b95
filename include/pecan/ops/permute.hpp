#pragma once
/// Tokens to experts and back: a stable sort of token-slots, row gathers and weighted sums in slot
/// order. A dropped slot has no row: tensors of rows may be shorter than P by the dropped slots.
/// Rows and tokens are f32, f64 or bf16, weights and their gradients in the master type; a sum is
/// rounded once.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Sorts the slots s = t*K + k by (expert, s). Writes counts_E (i64, slots an expert), order_P
/// (i32, the slot at each sorted position) and positions_TK (i32, the inverse). Ids are i32 in [0,
/// E) or -1 for a dropped slot, else ShapeError; dropped slots stand at the end of order_P, count
/// nowhere, and have the position -1.
void permute_plan(Context& ctx,
                  ConstTensorView topk_ids_TK,
                  TensorView counts_E,
                  TensorView order_P,
                  TensorView positions_TK);

/// Gathers rows: rows_PH[p] = x_TH[order_P[p] / K], where K = order_P's size / T.
void permute_forward(Context& ctx,
                     ConstTensorView x_TH,
                     ConstTensorView order_P,
                     TensorView rows_PH);

/// Computes dx_TH[t] (+)= sum over k, ascending, of drows_PH[positions_TK[t, k]]; like all below it
/// passes over dropped slots.
void permute_backward(Context& ctx,
                      ConstTensorView drows_PH,
                      ConstTensorView positions_TK,
                      TensorView dx_TH,
                      Accumulate accumulate);

/// Computes y_TH[t] (+)= sum over k, ascending, of weights_TK[t, k] * rows_PH[positions_TK[t, k]].
void unpermute_forward(Context& ctx,
                       ConstTensorView rows_PH,
                       ConstTensorView positions_TK,
                       ConstTensorView weights_TK,
                       TensorView y_TH,
                       Accumulate accumulate);

/// Computes drows_PH and dweights_TK (both overwritten; 0 for dropped slots). drows may be rows
/// itself.
void unpermute_backward(Context& ctx,
                        ConstTensorView dy_TH,
                        ConstTensorView rows_PH,
                        ConstTensorView positions_TK,
                        ConstTensorView weights_TK,
                        TensorView drows_PH,
                        TensorView dweights_TK);

}  // namespace pecan::ops
