#pragma once
/// A parameter's elements in their storage order, which need not be their logical order.

#include <cstdint>
#include <span>

#include <pecan/core/tensor.hpp>

namespace pecan::device {

/// How a matrix [R, C] (R outputs, C inputs) is laid out.
/// kRowMajor: logical order. kRowPanels: panels of `panel_rows` rows, each stored transposed as
/// [C][panel_rows] (the last panel as [C][rest]), so that a panel is the right-hand matrix of a
/// product, read in sequence.
enum class StorageOrder : std::uint8_t { kRowMajor, kRowPanels };

/// Non-owning. All access by logical coordinates to a stored parameter (weight, gradient, moments)
/// goes through here.
class ParamStorage {
 public:
  ParamStorage() = default;
  /// `memory` holds shape.num_elements() elements of dtype; kRowPanels needs two dims and
  /// panel_rows >= 1.
  ParamStorage(std::byte* memory,
               DType dtype,
               const Shape& shape,
               StorageOrder order = StorageOrder::kRowMajor,
               std::int64_t panel_rows = 0);
  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] StorageOrder order() const { return order_; }
  [[nodiscard]] std::int64_t panel_rows() const { return panel_rows_; }
  [[nodiscard]] std::byte* memory() const { return memory_; }
  [[nodiscard]] std::size_t num_bytes() const;
  /// Position in storage of the element at logical row-major index `logical`.
  [[nodiscard]] std::int64_t stored_index(std::int64_t logical) const;
  /// Elements in storage order, for elementwise work that does not care (optimizer, norms).
  [[nodiscard]] TensorView flat() const;
  /// The row-major view; ShapeError in another order.
  [[nodiscard]] TensorView row_major() const;
  /// Copies `block` in logical row-major order to / from bytes of exactly its size.
  void copy_out(const Block& block, std::span<std::byte> destination) const;
  void copy_in(const Block& block, std::span<const std::byte> source) const;

 private:
  std::byte* memory_ = nullptr;
  DType dtype_ = DType::kF32;
  Shape shape_;
  StorageOrder order_ = StorageOrder::kRowMajor;
  std::int64_t panel_rows_ = 0;
};

}  // namespace pecan::device
