#pragma once
/// The two blocks that all layers are made of: linear maps and norms, each with or without a bias.

#include <span>
#include <string>
#include <vector>

#include <pecan/ops/types.hpp>

#include <pecan/model/dims.hpp>
#include <pecan/model/expert_rows.hpp>

namespace pecan::model {

/// Whether backward adds to the weights' gradients. kOff computes the input's gradient only (a
/// frozen expert).
enum class WeightGradient : std::uint8_t { kOn, kOff };

/// y_TO = x_TI W^T + b: "<name>.weight" [O, I] and, where dims.linear_bias, "<name>.bias" [O].
class Linear {
 public:
  /// Refers to `params`, which outlives it.
  Linear(const ModelDims& dims, parallel::ParamSet& params, const std::string& name);
  void forward(Context& ctx, ConstTensorView x_TI, TensorView y_TO) const;
  /// y_TO = x_TI W^T alone: of a row-parallel map a part of a sum, to which add_bias then adds b.
  void forward_part(Context& ctx, ConstTensorView x_TI, TensorView y_TO) const;
  void add_bias(Context& ctx, TensorView y_TO) const;
  /// Adds to the gradients of weight and bias.
  void backward_weight(Context& ctx, ConstTensorView dy_TO, ConstTensorView x_TI) const;
  /// dx_TI (+)= the input's gradient.
  void backward_input(Context& ctx,
                      ConstTensorView dy_TO,
                      TensorView dx_TI,
                      ops::Accumulate accumulate) const;

 private:
  parallel::Param* weight_;
  parallel::Param* bias_ = nullptr;
};

/// Linear maps of equal shape, each for the rows of an expert: y_RO = x_RI W_e^T + b_e.
class GroupedLinear {
 public:
  /// Refers to `params`, which outlives it. `side`: where the experts' hidden activations are.
  GroupedLinear(const ModelDims& dims,
                parallel::ParamSet& params,
                HiddenSide side,
                std::span<const std::string> names);
  [[nodiscard]] std::size_t size() const { return weights_.size(); }
  /// As Linear: without the bias, which add_bias adds.
  void forward_part(Context& ctx,
                    const ExpertRows& rows,
                    ConstTensorView x_RI,
                    TensorView y_RO) const;
  void add_bias(Context& ctx, const ExpertRows& rows, TensorView y_RO) const;
  /// Adds to the gradients of weights and biases of those that are on.
  void backward_weight(Context& ctx,
                       const ExpertRows& rows,
                       ConstTensorView dy_RO,
                       ConstTensorView x_RI) const;
  void backward_input(Context& ctx,
                      const ExpertRows& rows,
                      ConstTensorView dy_RO,
                      TensorView dx_RI,
                      ops::Accumulate accumulate) const;
  void set_weight_gradient(std::size_t index, WeightGradient value);

 private:
  HiddenSide side_;
  std::vector<parallel::Param*> params_, biases_;  ///< no biases without dims.linear_bias
  std::vector<ops::ParamStorage> weights_;
  std::vector<ops::ParamStorage> grads_;  ///< without memory where they are off
};

/// Scratch for whole micro-batches of the residual stream; empty where that is not shared out.
struct WholeStream {
  TensorView first_TH, second_TH;
  [[nodiscard]] static WholeStream plan(const ModelDims& dims, device::Arena& arena);
};

/// What a norm's forward keeps for its backward, one element a row, in the master type.
struct NormStatistics {
  TensorView rstd_T;
  TensorView mean_T;  ///< of LayerNorm only
  [[nodiscard]] static NormStatistics plan(const ModelDims& dims,
                                           std::int64_t rows,
                                           device::Arena& arena);
};

/// RMSNorm ("<name>.weight") or LayerNorm (and "<name>.bias"), of rows of the weight's size.
class Norm {
 public:
  /// Refers to `dims` and `params`, which outlive it.
  Norm(const ModelDims& dims, parallel::ParamSet& params, const std::string& name);
  void forward(Context& ctx, ConstTensorView x, NormStatistics statistics, TensorView y) const;
  /// dx (+)= the input's gradient; adds to the parameters'. dx may be dy with kOverwrite.
  void backward(Context& ctx,
                ConstTensorView dy,
                ConstTensorView x,
                const NormStatistics& statistics,
                TensorView dx,
                ops::Accumulate accumulate) const;

 private:
  const ModelDims& dims_;
  parallel::Param* weight_;
  parallel::Param* bias_ = nullptr;
};

}  // namespace pecan::model
