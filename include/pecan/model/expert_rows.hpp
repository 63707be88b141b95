#pragma once
/// Which rows belong to which expert, and how the products of all experts are computed.

#include <cstdint>
#include <span>
#include <vector>

#include <pecan/config/config.hpp>

#include <pecan/ops/block_sparse.hpp>

namespace pecan::model {

/// Which side of a map the experts' hidden activations are on, which are block-sparse where they
/// are seen as one matrix.
enum class HiddenSide : std::uint8_t { kOutput, kInput };

/// The rows of one call: counts()[e] of the e-th expert, one expert after the other. Weights are
/// [outputs, inputs], one an expert. Results are the same but for rounding, however they are
/// computed; see grouped_matmul.hpp for what the products do.
class ExpertRows {
 public:
  ExpertRows() = default;
  /// Of experts with `ffn` hidden activations. The topology of block-sparse products is made here,
  /// once for all products of the call and of its backward; a device's copy of it stands in
  /// `topology_memory` until then (ops::BlockTopology; nothing of it otherwise).
  ExpertRows(Context& ctx,
             config::ExpertCompute compute,
             std::span<const std::int64_t> counts,
             std::int64_t ffn,
             TensorView topology_memory);
  [[nodiscard]] std::span<const std::int64_t> counts() const { return counts_; }

  void forward(Context& ctx,
               HiddenSide side,
               ConstTensorView x_RI,
               std::span<const ops::ParamStorage> weights,
               TensorView y_RO) const;
  void backward_input(Context& ctx,
                      HiddenSide side,
                      ConstTensorView dy_RO,
                      std::span<const ops::ParamStorage> weights,
                      TensorView dx_RI,
                      ops::Accumulate accumulate) const;
  /// Gradients without memory are left out.
  void backward_weight(Context& ctx,
                       HiddenSide side,
                       ConstTensorView dy_RO,
                       ConstTensorView x_RI,
                       std::span<const ops::ParamStorage> grads) const;

 private:
  config::ExpertCompute compute_ = config::ExpertCompute::kGrouped;
  std::vector<std::int64_t> counts_;
  ops::BlockTopology topology_;  ///< of kBlockSparse
};

}  // namespace pecan::model
