#pragma once
/// Limits on how many token-slots an expert takes.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Which token-slots an expert over its capacity keeps.
enum class DropPolicy : std::uint8_t {
  kProbs,     ///< those of largest weight, equal ones by earlier token
  kPosition,  ///< those of the earliest tokens
};

/// Token-slots that each of `num_experts` takes of `tokens` tokens with `topk` choices:
/// ceil(T*K/E * factor), factor > 0. Pure. Source: Megatron-LM; Switch Transformer (arXiv
/// 2101.03961), eq. 3. Differs from the paper: rounded up.
[[nodiscard]] std::int64_t expert_capacity(std::int64_t tokens,
                                           std::int64_t topk,
                                           std::int64_t num_experts,
                                           double factor);

/// Copies topk_ids_TK (i32, in [0, E), else ShapeError) to kept_ids_TK, with -1 in place of the
/// choices that exceed `capacity` at their expert, and returns how many those are. Counts the
/// choices of each expert, the dropped ones too, into counts_E (i64). weights_TK in f32 or f64; NaN
/// counts as the smallest.
[[nodiscard]] std::int64_t drop_over_capacity(Context& ctx,
                                              DropPolicy policy,
                                              std::int64_t capacity,
                                              ConstTensorView topk_ids_TK,
                                              ConstTensorView weights_TK,
                                              TensorView counts_E,
                                              TensorView kept_ids_TK);

}  // namespace pecan::ops
