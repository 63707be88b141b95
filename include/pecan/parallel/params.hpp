#pragma once
/// Parameters: what the model has (ParamSpec, global), where each lies (placement, pure) and this
/// rank's share (ParamSet).

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/state_catalog.hpp>
#include <pecan/core/tensor.hpp>

#include <pecan/device/arena.hpp>
#include <pecan/device/context.hpp>
#include <pecan/device/param_storage.hpp>

#include <pecan/parallel/mesh.hpp>

namespace pecan::parallel {

enum class WeightDecay : std::uint8_t { kNone, kDecoupled };

/// What forward computes with: the model's type, or the master type (f32 where the model is bf16).
enum class ComputedIn : std::uint8_t { kModelType, kMasterType };

/// One parameter of the model, independent of any layout.
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
  [[nodiscard]] bool is_expert() const { return expert.value >= 0; }
  [[nodiscard]] Shape padded_shape() const;
};

/// Expert-parallel position that holds `expert`: contiguous blocks of num_experts / ep. Pure.
[[nodiscard]] int expert_position(ExpertId expert, int num_experts, const MeshShape& mesh);
/// The blocks of `spec` and their holders. Pure.
[[nodiscard]] std::vector<StateBlock> place(const ParamSpec& spec,
                                            int num_experts,
                                            const MeshShape& mesh);

/// One parameter as this rank holds it.
struct Param {
  ParamSpec spec;
  device::ParamStorage weight;  ///< what forward reads: the master, or its bf16 rounding
  device::ParamStorage master;  ///< what the optimizer updates and checkpoints hold
  device::ParamStorage grad;    ///< in the master type
  [[nodiscard]] bool is_derived() const { return weight.memory() != master.memory(); }
  std::size_t first = 0;  ///< element offset in the flat buffers
};

/// A contiguous part of the flat buffers, in elements.
struct FlatRange {
  std::size_t first = 0;
  std::size_t count = 0;
};

/// This rank's parameters and gradients in flat buffers, dense ones first, each parameter 64-byte
/// aligned. With bf16 a third buffer of the same order holds the weights rounded from the master.
class ParamSet {
 public:
  /// Plans and allocates; weights are zero until the model draws them. dtype: f32, f64 or bf16.
  ParamSet(device::Device device,
           const std::vector<ParamSpec>& specs,
           int num_experts,
           const MeshShape& mesh,
           Rank rank,
           DType dtype);
  void zero_grads();
  [[nodiscard]] std::span<Param> params() { return params_; }
  [[nodiscard]] std::span<const Param> params() const { return params_; }
  /// InternalError if this rank does not hold it.
  [[nodiscard]] Param& at(std::string_view name);
  [[nodiscard]] DType dtype() const { return dtype_; }
  /// Of masters, gradients and moments.
  [[nodiscard]] DType master_dtype() const { return master_of(dtype_); }
  [[nodiscard]] FlatRange dense_range() const { return dense_; }
  [[nodiscard]] FlatRange expert_range() const { return expert_; }
  [[nodiscard]] std::size_t num_elements() const { return dense_.count + expert_.count; }
  [[nodiscard]] TensorView flat_grads(FlatRange range) const;
  /// A storage of param's shape and order over other flat memory of the master type (an optimizer
  /// moment) laid out like the masters.
  [[nodiscard]] device::ParamStorage storage_in(const device::Buffer& flat,
                                                const Param& param) const;
  /// Elements that the flat buffers of `specs` on `rank` take, padding included. Pure.
  [[nodiscard]] static std::size_t plan_elements(const std::vector<ParamSpec>& specs,
                                                 int num_experts,
                                                 const MeshShape& mesh,
                                                 Rank rank,
                                                 DType dtype);

 private:
  DType dtype_;
  std::vector<Param> params_;
  FlatRange dense_;
  FlatRange expert_;
  device::Buffer master_;
  device::Buffer grads_;
  device::Buffer weights_;  ///< bf16 only
};

/// StateBinding over ParamStorages: each item that this rank holds a block of is bound once.
class StorageBinding : public StateBinding {
 public:
  StorageBinding(const StateCatalog& catalog, Rank rank);
  /// `storage` holds the block at `offset` of the item with this path; its memory outlives the
  /// binding.
  void bind(std::string_view path, const device::ParamStorage& storage, const Shape& offset);
  /// InternalError naming an item that this rank holds and nobody bound.
  void validate() const;
  void copy_out(ItemIndex item,
                const Block& block,
                std::span<std::byte> destination) const override;
  void copy_in(ItemIndex item, const Block& block, std::span<const std::byte> source) override;

 private:
  struct Bound {
    device::ParamStorage storage;
    Shape offset;
  };
  [[nodiscard]] std::pair<const Bound*, Block> locate(ItemIndex item, const Block& block) const;
  const StateCatalog& catalog_;
  Rank rank_;
  std::vector<std::vector<Bound>> bound_;  ///< by item
};

}  // namespace pecan::parallel
