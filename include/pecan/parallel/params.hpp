#pragma once
/// This rank's share of the parameters: weights, masters and gradients in flat buffers.

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <pecan/device/context.hpp>
#include <pecan/device/param_storage.hpp>

#include <pecan/parallel/param_layout.hpp>

namespace pecan::parallel {

/// One parameter as this rank holds it.
struct Param {
  ParamSpec spec;
  Block block;                  ///< this rank's part, padding left out
  device::ParamStorage weight;  ///< what forward reads: the master, or its bf16 rounding
  device::ParamStorage grad;    ///< of the part, in the master type
  RowRange owned;               ///< rows of the part whose optimizer state this rank keeps
  device::ParamStorage owned_weight;
  device::ParamStorage owned_grad;  ///< their gradient, once it is summed over the ranks
  device::ParamStorage
      master;  ///< of the owned rows: what the optimizer updates and checkpoints hold
  std::size_t owned_first = 0;  ///< element offset in flat buffers of what is owned
  [[nodiscard]] bool is_derived() const { return owned_weight.memory() != master.memory(); }
  /// Where the owned rows lie in the parameter's own coordinates.
  [[nodiscard]] Shape owned_offset() const;
  /// The owned rows without padding; no elements if the rank owns none.
  [[nodiscard]] Block owned_block() const;
};

/// Bytes of a rank's state.
struct StateBytes {
  std::size_t weights = 0;
  std::size_t masters = 0;  ///< those that are not the weights themselves
  std::size_t gradients = 0;
  std::size_t moment = 0;  ///< of one moment
};

/// Where buckets lie in the buffers, in elements (weights: bytes). Pure.
struct BucketMemory {
  std::size_t weight_byte = 0;
  std::size_t master = 0;
  std::size_t grad = 0;
  std::size_t owned = 0;
};
struct MemoryLayout {
  std::vector<BucketMemory> buckets;
  StateBytes bytes;
};
/// With Sharding::kGradients layers take turns in two places for unreduced gradients: a layer's
/// backward may begin when that of the layer two above is reduced.
[[nodiscard]] MemoryLayout plan_state_memory(const ParamLayout& layout,
                                             Sharding sharding,
                                             const MeshPosition& position,
                                             DType dtype);

/// This rank's parameters and gradients, in buckets (ParamLayout), each parameter 64-byte aligned.
/// With bf16, masters have memory of their own but where forward computes in the master type.
class ParamSet {
 public:
  /// Plans and allocates; weights are zero until the model draws them, but on a device only after
  /// zero(). dtype: f32, f64 or bf16.
  ParamSet(device::Device device,
           const std::vector<ParamSpec>& specs,
           int num_experts,
           const MeshShape& mesh,
           Rank rank,
           DType dtype,
           Sharding sharding = Sharding::kNone);
  /// Weights and masters become zero.
  void zero(Context& ctx);
  /// All gradients become zero, the summed ones too.
  void zero_grads(Context& ctx);
  /// The gradients of one bucket, not yet summed, become zero.
  void zero_grads(Context& ctx, const Bucket& bucket);
  [[nodiscard]] std::span<Param> params() { return params_; }
  [[nodiscard]] std::span<const Param> params() const { return params_; }
  /// InternalError if this rank does not hold it.
  [[nodiscard]] Param& at(std::string_view name);
  [[nodiscard]] DType dtype() const { return dtype_; }
  /// Of masters, gradients and moments.
  [[nodiscard]] DType master_dtype() const { return master_of(dtype_); }
  [[nodiscard]] Sharding sharding() const { return sharding_; }
  [[nodiscard]] const MeshShape& mesh() const { return mesh_; }
  [[nodiscard]] const MeshPosition& position() const { return position_; }
  [[nodiscard]] std::span<const Bucket> buckets() const { return layout_.buckets; }
  /// Position of this rank among the replicas of `bucket`'s parameters: dp or edp.
  [[nodiscard]] int data_position(const Bucket& bucket) const {
    return bucket.expert ? position_.edp : position_.dp;
  }
  /// Weights of a bucket, and their part that this rank shares out.
  [[nodiscard]] TensorView weights(const Bucket& bucket) const;
  [[nodiscard]] TensorView weight_share(const Bucket& bucket) const;
  /// Gradients of a bucket as backward writes them, and this rank's share of them.
  [[nodiscard]] TensorView grads(const Bucket& bucket) const;
  [[nodiscard]] TensorView grad_share(const Bucket& bucket) const;
  /// This rank's share of the summed gradients: memory of its own with Sharding::kGradients, else
  /// grad_share.
  [[nodiscard]] TensorView summed_share(const Bucket& bucket) const;
  /// Whether this rank counts the bucket's share in a sum over the world in which each element
  /// stands once.
  [[nodiscard]] bool counts(const Bucket& bucket) const;
  /// Elements, padding included, whose optimizer state this rank keeps.
  [[nodiscard]] std::size_t num_owned() const;
  /// A storage of param's owned rows over other flat memory of the master type and num_owned()
  /// elements (an optimizer moment).
  [[nodiscard]] device::ParamStorage storage_in(const device::Buffer& flat,
                                                const Param& param) const;

 private:
  [[nodiscard]] const BucketMemory& memory_of(const Bucket& bucket) const;
  [[nodiscard]] TensorView master_view(std::byte* memory,
                                       std::size_t first,
                                       std::int64_t count) const;

  DType dtype_;
  Sharding sharding_;
  MeshShape mesh_;
  MeshPosition position_;
  int kv_replicas_ = 1;
  ParamLayout layout_;
  MemoryLayout memory_;
  std::vector<Param> params_;
  device::Buffer weights_;
  device::Buffer masters_;
  device::Buffer grads_;
  device::Buffer summed_;  ///< Sharding::kGradients only
};

}  // namespace pecan::parallel
