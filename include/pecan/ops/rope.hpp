#pragma once
/// Rotary position embedding, half-split: element i turns together with element i + D/2.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Fills the table of a model once: row s holds cos(s * base^(-2i/D)) for i < D/2, then the sines.
/// D even. Angles are computed in double and rounded once. Source: Su et al., "RoFormer" (arXiv
/// 2104.09864), eq. 34. Differs from the paper: pairs are (i, i + D/2) instead of (2i, 2i + 1), as
/// in the Hugging Face models.
void rope_table(Context& ctx, double rotary_base, TensorView table_SD);

/// Rotates x_TND (f32, f64 or bf16; the table in its master type) in place. Token t has position
/// positions_T[t] (i32, inside the table) or, with `{}`, t mod S, so that sequences stand one after
/// the other; T is then a multiple of S, and for sequences shorter than the table pass
/// table.rows(0, S).
void rope_forward(Context& ctx,
                  ConstTensorView table_SD,
                  ConstTensorView positions_T,
                  TensorView x_TND);

/// Rotates the gradient back, in place: the inverse of rope_forward.
void rope_backward(Context& ctx,
                   ConstTensorView table_SD,
                   ConstTensorView positions_T,
                   TensorView dx_TND);

}  // namespace pecan::ops
