#pragma once
/// Weights for tests of products.

#include "ops/op_test.hpp"

namespace pecan::test {

/// Workspace of products on up to three threads.
inline constexpr std::size_t kProductScratch = std::size_t(2) << 20U;

/// A weight in either storage order, filled and read by logical coordinates.
class Weight {
 public:
  Weight(DType dtype, const Shape& shape, std::int64_t panel_rows, const Values& values)
      : memory_(dtype, shape), panel_rows_(panel_rows) {
    Guarded logical(dtype, shape, values);
    stored_in(memory_.on_host()).copy_in(Block::whole(shape), bytes_of(logical));
  }
  /// For operators.
  [[nodiscard]] ops::ParamStorage storage() { return stored_in(memory_.view()); }
  [[nodiscard]] Values values() {
    const ops::ParamStorage found = stored_in(memory_.on_host());
    Guarded logical(found.dtype(), found.shape());
    found.copy_out(Block::whole(found.shape()), bytes_of(logical));
    return logical.values();
  }

 private:
  [[nodiscard]] static std::span<std::byte> bytes_of(Guarded& tensor) {
    const TensorView host = tensor.on_host();
    return {host.data, host.num_bytes()};
  }
  [[nodiscard]] ops::ParamStorage stored_in(const TensorView& memory) const {
    return {memory.data,
            memory.dtype,
            memory.shape,
            panel_rows_ == 0 ? device::StorageOrder::kRowMajor : device::StorageOrder::kRowPanels,
            panel_rows_};
  }
  Guarded memory_;
  std::int64_t panel_rows_;
};

}  // namespace pecan::test
