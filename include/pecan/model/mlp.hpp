#pragma once
/// Feed-forward networks: SwiGLU, y = down(silu(gate(x)) * up(x)), or without a gate y =
/// down(gelu(up(x))): one of a dense layer or of the shared expert, or those of all routed experts.

#include <optional>
#include <span>
#include <vector>

#include <pecan/model/blocks.hpp>

namespace pecan::model {

/// Rows that forward keeps for backward.
struct MlpActivations {
  TensorView gate_TF;  ///< of a gated network only
  TensorView up_TF, h_TF;
  [[nodiscard]] static MlpActivations plan(const ModelDims& dims,
                                           std::int64_t rows,
                                           std::int64_t ffn,
                                           device::Arena& arena);
  /// The first `count` rows of each.
  [[nodiscard]] MlpActivations first_rows(std::int64_t count) const;
};

class Mlp {
 public:
  /// Linear maps "<prefix>.{gate,up,down}_proj" of `params`, which outlives it.
  Mlp(const ModelDims& dims, parallel::ParamSet& params, const std::string& prefix);
  /// y_TH = mlp(x_TH) without the bias of `down`, which add_bias then adds: where ranks share the
  /// matrices, y_TH is a part of a sum over them. No rows are fine.
  void forward_part(Context& ctx, ConstTensorView x_TH, MlpActivations kept, TensorView y_TH) const;
  void add_bias(Context& ctx, TensorView y_TH) const { down_.add_bias(ctx, y_TH); }
  /// dx_TH (+)= the input's gradient (a part of a sum as above); kept is overwritten by gradients.
  /// dx_TH may be dy_TH with kOverwrite.
  void backward(Context& ctx,
                ConstTensorView dy_TH,
                ConstTensorView x_TH,
                MlpActivations kept,
                TensorView dx_TH,
                ops::Accumulate accumulate,
                WeightGradient weight_gradient) const;

 private:
  std::optional<Linear> gate_;
  Linear up_, down_;
};

/// The routed experts of one layer that this rank holds, whole or in part.
class Experts {
 public:
  Experts(const ModelDims& dims,
          parallel::ParamSet& params,
          LayerId layer,
          const parallel::MeshShape& mesh,
          Rank rank);
  [[nodiscard]] int num_local() const { return int(up_->size()); }
  /// x_RH holds counts[i] rows for local expert i, one expert after the other; y_RH is a part of a
  /// sum over etp. `topology_memory` as in ExpertRows, until backward.
  void forward(Context& ctx,
               std::span<const std::int64_t> counts,
               ConstTensorView x_RH,
               const MlpActivations& kept,
               TensorView topology_memory,
               TensorView y_RH);
  /// Of the last forward, whose counts these are. dx_RH is overwritten, kept by gradients; experts
  /// whose weight gradient is off only pass the gradient on.
  void backward(Context& ctx,
                std::span<const std::int64_t> counts,
                ConstTensorView dy_RH,
                ConstTensorView x_RH,
                const MlpActivations& kept,
                TensorView dx_RH) const;
  void set_weight_gradient(int local_expert, WeightGradient value);

 private:
  std::optional<GroupedLinear> gate_, up_, down_;  ///< gate_ of gated networks only
  config::ExpertCompute compute_;
  ExpertRows rows_;  ///< of the last forward
  bool adds_bias_;   ///< one of the ranks that share an expert adds its bias
};

}  // namespace pecan::model
