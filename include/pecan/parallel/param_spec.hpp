#pragma once
/// What the model has: its parameters, independent of any layout.

#include <cstdint>
#include <string>

#include <pecan/core/ids.hpp>
#include <pecan/core/tensor.hpp>

namespace pecan::parallel {

enum class WeightDecay : std::uint8_t { kNone, kDecoupled };

/// What forward computes with: the model's type, or the master type (f32 where the model is bf16).
enum class ComputedIn : std::uint8_t { kModelType, kMasterType };

/// How ranks that share a matrix (tp; etp for experts) cut a parameter.
enum class TensorSplit : std::uint8_t {
  kNone,     ///< each rank holds all of it
  kRows,     ///< along dim 0: outputs of a column-parallel map, the vocabulary
  kColumns,  ///< along dim 1: inputs of a row-parallel map
};

/// Which part of an uncut parameter's gradient a rank computes.
enum class ReplicaGradient : std::uint8_t {
  kWhole,    ///< all of it, on each rank alike
  kPartial,  ///< that of its own tokens or heads: to be summed over the ranks that share a matrix
};

/// One parameter of the model.
struct ParamSpec {
  std::string name;  ///< Hugging Face's Qwen3-MoE name
  Shape shape;       ///< true shape, as in checkpoints
  std::int64_t
      padded_rows;  ///< rows of dim 0 in memory, >= shape[0]; the rest are zero and stay zero
  LayerId layer = kNoLayer;
  ExpertId expert{-1};  ///< of a routed expert, else -1
  double init_std = 0;  ///< N(0, init_std), or for 0 the constant init_value
  double init_value = 0;
  WeightDecay decay = WeightDecay::kNone;
  ComputedIn computed_in = ComputedIn::kModelType;
  TensorSplit split = TensorSplit::kNone;
  /// Parts that are never cut, of equal size (key-value groups); with fewer parts than ranks each
  /// part has several holders. 0: rows or columns.
  int num_parts = 0;
  ReplicaGradient replica_gradient = ReplicaGradient::kWhole;
  /// Stages of forward that read it, from the first to the last: 0 the embedding, 1 + i layer i,
  /// the last the head. Its gradient is complete when backward has left `first_stage`.
  int first_stage = 0;
  int last_stage = 0;
  [[nodiscard]] bool is_expert() const { return expert.value >= 0; }
  [[nodiscard]] Shape padded_shape() const;
};

}  // namespace pecan::parallel
