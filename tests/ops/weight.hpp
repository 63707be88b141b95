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
      : memory_(dtype, shape),
        storage_(
            memory_.view().data,
            dtype,
            shape,
            panel_rows == 0 ? device::StorageOrder::kRowMajor : device::StorageOrder::kRowPanels,
            panel_rows) {
    Guarded logical(dtype, shape, values);
    storage_.copy_in(Block::whole(shape), {logical.view().data, logical.view().num_bytes()});
  }
  [[nodiscard]] const ops::ParamStorage& storage() const { return storage_; }
  [[nodiscard]] Values values() {
    Guarded logical(storage_.dtype(), storage_.shape());
    storage_.copy_out(Block::whole(storage_.shape()),
                      {logical.view().data, logical.view().num_bytes()});
    return logical.values();
  }

 private:
  Guarded memory_;
  ops::ParamStorage storage_;
};

}  // namespace pecan::test
