#pragma once
/// Element types, shapes, rectangular blocks and non-owning views of row-major tensors.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include <pecan/core/error.hpp>

namespace pecan {

enum class DType : std::uint8_t {  // on-disk: never renumber
  kF32 = 0,
  kF64 = 1,
  kBF16 = 2,
  kI64 = 3,
  kI32 = 4,
  kU8 = 5,
};

/// A bfloat16 in memory: the upper half of an f32. Arithmetic is done in f32.
struct BFloat16 {
  std::uint16_t bits = 0;
  BFloat16() = default;
  /// Rounds to nearest, ties to even; a NaN stays one.
  explicit BFloat16(float value) {
    const auto wide = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t rounded = wide + 0x7FFFU + ((wide >> 16U) & 1U);
    const std::uint32_t kept = (wide & 0x7FFFFFFFU) > 0x7F800000U ? (wide | 0x00400000U) : rounded;
    bits = static_cast<std::uint16_t>(kept >> 16U);
  }
  explicit BFloat16(double value) : BFloat16(static_cast<float>(value)) {}
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
  }
  explicit operator double() const { return static_cast<double>(static_cast<float>(*this)); }
  bool operator==(const BFloat16&) const = default;
};

/// What arithmetic on `dtype` is done in, and its master weights are kept in: f32 for bf16, else
/// itself.
[[nodiscard]] constexpr DType master_of(DType dtype) {
  return dtype == DType::kBF16 ? DType::kF32 : dtype;
}

/// Bytes of one element.
[[nodiscard]] std::size_t size_of(DType dtype);
/// "f32", "f64", "bf16", "i64", "i32" or "u8".
[[nodiscard]] std::string_view name_of(DType dtype);
/// Inverse of name_of; CorruptionError for any other word.
[[nodiscard]] DType dtype_from_name(std::string_view name);

template <typename T>
inline constexpr DType kDTypeOf = [] {
  static_assert(sizeof(T) == 0, "no DType for this C++ type");
  return DType::kU8;
}();
template <>
inline constexpr DType kDTypeOf<float> = DType::kF32;
template <>
inline constexpr DType kDTypeOf<double> = DType::kF64;
template <>
inline constexpr DType kDTypeOf<BFloat16> = DType::kBF16;
template <>
inline constexpr DType kDTypeOf<std::int64_t> = DType::kI64;
template <>
inline constexpr DType kDTypeOf<std::int32_t> = DType::kI32;
template <>
inline constexpr DType kDTypeOf<std::uint8_t> = DType::kU8;

inline constexpr int kMaxDims = 4;

/// Up to four non-negative extents, row-major (last dim fastest). No dims: a scalar of one element.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents);
  explicit Shape(std::span<const std::int64_t> extents);
  [[nodiscard]] int num_dims() const { return num_dims_; }
  [[nodiscard]] std::int64_t operator[](int dim) const { return extents_[std::size_t(dim)]; }
  [[nodiscard]] std::int64_t& operator[](int dim) { return extents_[std::size_t(dim)]; }
  [[nodiscard]] std::int64_t num_elements() const;
  [[nodiscard]] std::span<const std::int64_t> extents() const {
    return {extents_.data(), std::size_t(num_dims_)};
  }
  /// "[4, 256]".
  [[nodiscard]] std::string to_string() const;
  bool operator==(const Shape&) const = default;

 private:
  std::array<std::int64_t, kMaxDims> extents_{};
  int num_dims_ = 0;
};

/// A rectangular part of a tensor: `extent` elements from `offset` in each dim of the global shape.
struct Block {
  Shape offset;
  Shape extent;
  /// The whole of `shape`.
  [[nodiscard]] static Block whole(const Shape& shape);
  [[nodiscard]] bool fits(const Shape& shape) const;
  bool operator==(const Block&) const = default;
};

/// Writable view of a contiguous row-major tensor; owns nothing, and its memory must outlive it.
struct TensorView {
  std::byte* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;
  [[nodiscard]] std::int64_t num_elements() const { return shape.num_elements(); }
  [[nodiscard]] std::size_t num_bytes() const {
    return std::size_t(num_elements()) * size_of(dtype);
  }
  /// The elements as T; ShapeError if dtype is another.
  template <typename T>
  [[nodiscard]] std::span<T> as() const {
    PECAN_VALIDATE(dtype == kDTypeOf<T>,
                   ShapeError,
                   "a tensor of {} is read as {}",
                   name_of(dtype),
                   name_of(kDTypeOf<T>));
    return {reinterpret_cast<T*>(data), std::size_t(num_elements())};
  }
  /// The same elements under another shape of equal size.
  [[nodiscard]] TensorView reshaped(const Shape& other) const;
  /// Rows [first, first + count) of the first dim.
  [[nodiscard]] TensorView rows(std::int64_t first, std::int64_t count) const;
};

/// Read-only TensorView.
struct ConstTensorView {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;
  ConstTensorView() = default;
  ConstTensorView(const std::byte* d, DType t, const Shape& s) : data(d), dtype(t), shape(s) {}
  ConstTensorView(const TensorView& view)
      : data(view.data), dtype(view.dtype), shape(view.shape) {}  // NOLINT
  [[nodiscard]] std::int64_t num_elements() const { return shape.num_elements(); }
  [[nodiscard]] std::size_t num_bytes() const {
    return std::size_t(num_elements()) * size_of(dtype);
  }
  template <typename T>
  [[nodiscard]] std::span<const T> as() const {
    PECAN_VALIDATE(dtype == kDTypeOf<T>,
                   ShapeError,
                   "a tensor of {} is read as {}",
                   name_of(dtype),
                   name_of(kDTypeOf<T>));
    return {reinterpret_cast<const T*>(data), std::size_t(num_elements())};
  }
  [[nodiscard]] ConstTensorView reshaped(const Shape& other) const;
  [[nodiscard]] ConstTensorView rows(std::int64_t first, std::int64_t count) const;
};

/// View of a span of T, one-dimensional unless a shape is given.
template <typename T, std::size_t N>
[[nodiscard]] TensorView view_of(std::span<T, N> elements) {
  return {reinterpret_cast<std::byte*>(elements.data()),
          kDTypeOf<T>,
          Shape{std::int64_t(elements.size())}};
}
template <typename T, std::size_t N>
[[nodiscard]] ConstTensorView const_view_of(std::span<const T, N> elements) {
  return {reinterpret_cast<const std::byte*>(elements.data()),
          kDTypeOf<T>,
          Shape{std::int64_t(elements.size())}};
}

}  // namespace pecan
