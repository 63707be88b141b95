#pragma once
/// The attention half of a decoder layer: y = x + o_proj(attention(norm(x))).
/// Legend: T tokens of a micro-batch, t those of the residual stream that this rank holds, H
/// hidden, N heads and G key-value groups of this rank, D head dim, S sequence, B sequences.

#include <optional>

#include <pecan/model/blocks.hpp>

namespace pecan::model {

/// Where the tokens of a micro-batch stand.
struct TokenPlaces {
  ConstTensorView rope_table_SD;     ///< from ops::rope_table; only with rotary embedding
  ConstTensorView positions_T;       ///< as in Batch
  ConstTensorView document_start_T;  ///< as in Batch
};

/// What forward keeps for backward, and scratch that layers share.
struct AttentionActivations {
  TensorView normed_tH;
  NormStatistics norm;
  TensorView q_TND, k_TGD, v_TGD;   ///< after QK-norm and rotation
  TensorView raw_q_TND, raw_k_TGD;  ///< before QK-norm; without it unused
  NormStatistics q_norm, k_norm;
  TensorView out_TND, lse_BNS;
  [[nodiscard]] static AttentionActivations plan(const ModelDims& dims, device::Arena& arena);
};
struct AttentionScratch {
  TensorView d_normed_tH, d_out_TND, d_q_TND, d_k_TGD, d_v_TGD;
  [[nodiscard]] static AttentionScratch plan(const ModelDims& dims, device::Arena& arena);
};

class AttentionLayer {
 public:
  /// Refers to `dims`, `params` and `stream`, which outlive it.
  AttentionLayer(const ModelDims& dims,
                 parallel::ParamSet& params,
                 const parallel::StreamExchange& stream,
                 LayerId layer);
  /// y_tH = x_tH + attention. Collective over tp.
  void forward(Context& ctx,
               ConstTensorView x_tH,
               const TokenPlaces& places,
               AttentionActivations& kept,
               const WholeStream& whole,
               TensorView y_tH) const;
  /// Turns d_tH, the gradient of y, into that of x, and adds to the parameters' gradients.
  /// Collective over tp.
  void backward(Context& ctx,
                ConstTensorView x_tH,
                const TokenPlaces& places,
                AttentionActivations& kept,
                AttentionScratch& scratch,
                const WholeStream& whole,
                TensorView d_tH) const;

 private:
  const ModelDims& dims_;
  const parallel::StreamExchange& stream_;
  LayerId layer_;
  Norm norm_;
  Linear q_, k_, v_, o_;
  std::optional<Norm> q_norm_, k_norm_;
};

}  // namespace pecan::model
