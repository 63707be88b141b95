#pragma once
/// What every operator checks of its arguments before it computes.

#include <span>
#include <string_view>

#include <pecan/ops/types.hpp>

namespace pecan::ops::detail {

/// Checks of one call; each throws ShapeError naming the operator, the tensor and what it has and
/// should have.
class Checks {
 public:
  explicit Checks(std::string_view op) : op_(op) {}
  [[nodiscard]] std::string_view op() const { return op_; }
  /// f32 or f64.
  void floating(std::string_view name, DType dtype) const;
  /// f32, f64 or bf16: what activations and weights may be stored in.
  void storable(std::string_view name, DType dtype) const;
  void is(std::string_view name, const ConstTensorView& x, DType dtype, const Shape& shape) const;
  void num_dims(std::string_view name, const Shape& shape, int dims) const;
  /// The shard lies in its vocabulary, and the `extent` rows or columns of `name` hold it.
  void holds(std::string_view name, std::int64_t extent, const VocabShard& shard) const;
  void is_true(bool condition, std::string_view what) const;
  /// The tensors share no byte.
  void disjoint(std::string_view name,
                const ConstTensorView& x,
                std::string_view other_name,
                const ConstTensorView& other) const;
  /// The tensor shares none with any of the weights.
  void disjoint(std::string_view name,
                const ConstTensorView& x,
                std::span<const ParamStorage> weights) const;
  /// None of the weights is left out.
  void complete(std::span<const ParamStorage> weights) const;
  /// The tensors share all bytes or none.
  void same_or_disjoint(std::string_view name,
                        const ConstTensorView& x,
                        std::string_view other_name,
                        const ConstTensorView& other) const;
  /// Throws NotConfigured: the switch over devices of an operator ends here.
  [[noreturn]] void refuse(const device::Device& device) const;

 private:
  std::string_view op_;
};

/// View of all stored bytes of a parameter, for overlap checks.
[[nodiscard]] inline ConstTensorView bytes_of(const ParamStorage& storage) {
  return {storage.memory(), storage.dtype(), Shape{storage.shape().num_elements()}};
}

/// The elements of x where the host can read them; none of a tensor in the memory of a device,
/// whose kernels look at them instead (types.hpp).
template <typename T>
[[nodiscard]] std::span<const T> on_host(const Context& ctx, const ConstTensorView& x) {
  return ctx.device.kind == device::DeviceKind::kCpu ? x.as<T>() : std::span<const T>();
}

}  // namespace pecan::ops::detail
