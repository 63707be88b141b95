#pragma once
/// Where each parameter lies: which part a rank holds, in which order, and who keeps its optimizer
/// state. Pure.

#include <cstddef>
#include <cstdint>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/parallel/mesh.hpp>
#include <pecan/parallel/param_spec.hpp>

namespace pecan::parallel {

/// What data-parallel ranks share out among themselves instead of holding it whole.
enum class Sharding : std::uint8_t {
  kNone,
  kOptimizer,  ///< ZeRO-1: masters and moments
  kGradients,  ///< ZeRO-2: sums of gradients too
};

/// Replicas of what lies in a bucket among the ranks that share a matrix.
enum class Replicas : std::uint8_t {
  kNone,  ///< each of them holds another part
  kTp,    ///< all of tp hold the same
  kKv,    ///< ranks of the kv group do
  kEtp,   ///< all of etp do
};

/// Rows of dim 0.
struct RowRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

/// A contiguous part of a flat order, in elements.
struct FlatRange {
  std::size_t first = 0;
  std::size_t count = 0;
};

/// One rank's part of a parameter.
struct ParamPart {
  std::size_t spec = 0;  ///< index into the model's parameters
  Block block;           ///< in the parameter's own coordinates, padding left out
  Shape shape;           ///< in memory, padded rows included
  std::size_t bucket = 0;
  std::size_t first = 0;         ///< in the flat order, 64-byte aligned
  std::vector<RowRange> shares;  ///< rows of `shape` by data-parallel position; some may be empty
};

/// Parameters in a row whose gradients are reduced, and whose weights are gathered, together.
struct Bucket {
  bool expert = false;  ///< reduced over edp instead of dp
  Replicas replicas = Replicas::kNone;
  ReplicaGradient replica_gradient = ReplicaGradient::kWhole;
  ComputedIn computed_in = ComputedIn::kModelType;
  int first_stage = 0;  ///< as in ParamSpec; of all its parameters
  int last_stage = 0;
  FlatRange range;
  std::vector<std::int64_t> share_counts;  ///< elements by data-parallel position, in a row
  /// Elements of `range` before `position`'s share.
  [[nodiscard]] std::size_t share_first(int position) const;
};

/// One rank's parameters in their flat order.
struct ParamLayout {
  std::vector<ParamPart> parts;
  std::vector<Bucket> buckets;
  std::size_t num_elements = 0;
};

/// Expert-parallel position that holds `expert`: contiguous blocks of num_experts / ep. Pure.
[[nodiscard]] int expert_position(ExpertId expert, int num_experts, const MeshShape& mesh);

/// The part of `spec` at tensor-parallel position `position` of `size`; ShapeError where it cannot
/// be cut so. Pure.
[[nodiscard]] Block part_of(const ParamSpec& spec, int position, int size);

/// Parts and buckets of the rank at `position`, equal in sizes and order for all ranks. Shares are
/// cut at rows, as evenly as rows allow, whether or not anything is sharded. Pure.
[[nodiscard]] ParamLayout plan_layout(const std::vector<ParamSpec>& specs,
                                      int num_experts,
                                      const MeshShape& mesh,
                                      const MeshPosition& position,
                                      DType dtype);

/// The blocks of each of `specs`, in their order, with the ranks that hold their optimizer state
/// (and with Sharding::kNone all else). Pure.
[[nodiscard]] std::vector<std::vector<StateBlock>> place(const std::vector<ParamSpec>& specs,
                                                         int num_experts,
                                                         const MeshShape& mesh,
                                                         Sharding sharding,
                                                         DType dtype);

}  // namespace pecan::parallel
