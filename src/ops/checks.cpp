#include "ops/checks.hpp"

namespace pecan::ops::detail {

void Checks::floating(std::string_view name, DType dtype) const {
  PECAN_VALIDATE(dtype == DType::kF32 || dtype == DType::kF64,
                 ShapeError,
                 "{}: {} is {}; it computes in f32 or f64",
                 op_,
                 name,
                 name_of(dtype));
}

void Checks::storable(std::string_view name, DType dtype) const {
  PECAN_VALIDATE(dtype == DType::kF32 || dtype == DType::kF64 || dtype == DType::kBF16,
                 ShapeError,
                 "{}: {} is {}; it must be f32, f64 or bf16",
                 op_,
                 name,
                 name_of(dtype));
}

void Checks::is(std::string_view name,
                const ConstTensorView& x,
                DType dtype,
                const Shape& shape) const {
  PECAN_VALIDATE(x.dtype == dtype && x.shape == shape,
                 ShapeError,
                 "{}: {} is {} {}; the other arguments ask for {} {}",
                 op_,
                 name,
                 name_of(x.dtype),
                 x.shape.to_string(),
                 name_of(dtype),
                 shape.to_string());
}

void Checks::num_dims(std::string_view name, const Shape& shape, int dims) const {
  PECAN_VALIDATE(shape.num_dims() == dims,
                 ShapeError,
                 "{}: {} has shape {}; it must have {} dims",
                 op_,
                 name,
                 shape.to_string(),
                 dims);
}

void Checks::holds(std::string_view name, std::int64_t extent, const VocabShard& shard) const {
  PECAN_VALIDATE(shard.first >= 0 && shard.count >= 0 && shard.count <= extent &&
                     (shard.count == 0 || shard.first + shard.count <= shard.total),
                 ShapeError,
                 "{}: entries [{}, {}) of a vocabulary of {} do not lie in it or in the {} rows or "
                 "columns of {}",
                 op_,
                 shard.first,
                 shard.first + shard.count,
                 shard.total,
                 extent,
                 name);
}

void Checks::is_true(bool condition, std::string_view what) const {
  PECAN_VALIDATE(condition, ShapeError, "{}: {}", op_, what);
}

void Checks::disjoint(std::string_view name,
                      const ConstTensorView& x,
                      std::string_view other_name,
                      const ConstTensorView& other) const {
  const bool apart = x.num_bytes() == 0 || other.num_bytes() == 0 ||
                     x.data + x.num_bytes() <= other.data ||
                     other.data + other.num_bytes() <= x.data;
  PECAN_VALIDATE(apart,
                 ShapeError,
                 "{}: {} and {} overlap in memory; give them tensors of their own",
                 op_,
                 name,
                 other_name);
}

void Checks::disjoint(std::string_view name,
                      const ConstTensorView& x,
                      std::span<const ParamStorage> weights) const {
  for (const ParamStorage& weight : weights) disjoint(name, x, "a weight", bytes_of(weight));
}

void Checks::complete(std::span<const ParamStorage> weights) const {
  for (const ParamStorage& weight : weights)
    is_true(weight.shape().num_dims() == 2, "a weight is missing");
}

void Checks::same_or_disjoint(std::string_view name,
                              const ConstTensorView& x,
                              std::string_view other_name,
                              const ConstTensorView& other) const {
  if (x.data != other.data || x.num_bytes() != other.num_bytes()) {
    disjoint(name, x, other_name, other);
  }
}

void Checks::refuse(const device::Device& device) const {
  if (device.backend != nullptr) {
    throw NotConfigured(fmt::format(
        "{}: there is no CUDA kernel for this operator; set training.device to cpu", op_));
  }
  throw NotConfigured(
      fmt::format("{}: this build does not compute on {} device {}; set training.device to cpu",
                  op_,
                  device.kind == device::DeviceKind::kCuda ? "CUDA" : "CPU",
                  device.ordinal));
}

}  // namespace pecan::ops::detail
