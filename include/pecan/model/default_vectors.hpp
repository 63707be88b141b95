#pragma once
/// Default MoE: each expert's moving average of outputs stands in, weighted by its score, for what
/// the expert would have said of the tokens that are not sent to it, so that the router gets a
/// gradient from all experts. Legend: t tokens of the residual stream that this rank holds, K
/// choices, S slots sent, P = t*K, H hidden, E experts, C = H + 1.

#include <cstddef>

#include <pecan/device/device.hpp>

#include <pecan/ops/types.hpp>

#include <pecan/comm/traffic.hpp>

#include <pecan/parallel/mesh.hpp>

#include <pecan/model/dims.hpp>

namespace pecan::model {

/// Whether the moving averages take in what a forward sees.
enum class Averages : std::uint8_t { kFollow, kFrozen };

struct DefaultVectorScratch {
  TensorView sums_EC;     ///< of outputs and of their weights
  TensorView weights_tE;  ///< of default vectors, and their gradients
  [[nodiscard]] static DefaultVectorScratch plan(const ModelDims& dims, device::Arena& arena);
};

/// Bytes that a MoE layer keeps between steps for its default vectors; 0 without them. Pure.
[[nodiscard]] std::size_t plan_default_vectors(const ModelDims& dims);
/// What a rank sends for the default vectors of a layer in one micro-batch. Pure.
[[nodiscard]] std::int64_t plan_default_vectors_sent(const ModelDims& dims,
                                                     const parallel::MeshShape& mesh,
                                                     const parallel::MeshPosition& position);

/// The default vectors of one layer's experts, those of all ranks, in the master type, 0 at first.
/// All ranks sum the outputs of a micro-batch together and so compute the same vectors. What a
/// checkpoint holds of an expert's vector is that of the ranks that hold the expert.
/// Source: Panda et al., "Dense Backpropagation Improves Training for Sparse Mixture-of-Experts"
/// (arXiv 2504.12463), section 3. Differs from the paper: averages see a micro-batch of all ranks
/// at a time; choices that were dropped over capacity count as not made.
class DefaultVectors {
 public:
  /// Refers to `dims` and `groups`, which outlive it; vectors are on `device`.
  DefaultVectors(device::Device device,
                 const ModelDims& dims,
                 const parallel::MeshGroups& groups,
                 LayerId layer);
  [[nodiscard]] TensorView vectors_EH() const;
  /// What follows is a new step.
  void begin_step() { changed_ = false; }
  /// Vectors become those of the step's begin: where its update is skipped.
  void undo_step(Context& ctx);
  /// Takes the vectors of other ranks' experts from them, after each rank restored its own.
  /// Collective over the dispatch group.
  void gather(Context& ctx);
  /// Adds what experts made of a chunk's slots to the sums, which a micro-batch's first chunk
  /// overwrites. order_P, ids_tK and weights_tK are those of its tokens.
  void sum_outputs(Context& ctx,
                   ConstTensorView returned_SH,
                   ConstTensorView order_P,
                   ConstTensorView ids_tK,
                   ConstTensorView weights_tK,
                   const DefaultVectorScratch& scratch,
                   ops::Accumulate accumulate);
  /// Moves the vectors by the sums of all ranks. Collective over the world.
  void update(Context& ctx, const DefaultVectorScratch& scratch);
  /// y_tH += sum of score times default vector over the experts that a token was not sent to.
  /// wide_tH: memory in the master type, for bf16 only.
  void forward(Context& ctx,
               ConstTensorView probs_tE,
               ConstTensorView ids_tK,
               const DefaultVectorScratch& scratch,
               TensorView wide_tH,
               TensorView y_tH) const;
  /// d_logits_tE += the gradient through those scores, d_tH being that of forward's y.
  void backward(Context& ctx,
                ConstTensorView d_tH,
                ConstTensorView probs_tE,
                ConstTensorView ids_tK,
                const DefaultVectorScratch& scratch,
                TensorView wide_tH,
                TensorView d_logits_tE) const;

 private:
  [[nodiscard]] TensorView at_begin_EH() const;
  [[nodiscard]] device::ParamStorage as_weight() const;
  const ModelDims& dims_;
  const parallel::MeshGroups& groups_;
  LayerId layer_;
  device::Buffer memory_;  ///< the vectors, and what they were at the step's begin
  bool changed_ = false;   ///< since then
};

}  // namespace pecan::model
