#include "comm/reduce.hpp"

#include <array>
#include <cstring>
#include <type_traits>

#include <pecan/core/error.hpp>

namespace pecan::comm {
namespace {

template <typename T>
T add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;
    return T(U(a) + U(b));
  } else {
    return a + b;
  }
}

template <typename T>
bool is_nan(T value) {
  return value != value;
}

/// Elements are T, sums over them Sum, rounded once at the end.
template <typename T, typename Sum, typename Combine>
void reduce(std::span<const std::byte* const> pieces,
            std::byte* output,
            std::int64_t num_elements,
            Combine combine) {
  // Partial sums stay in registers; and output, which may be a piece, is written last.
  constexpr std::int64_t kBlock = 128 / std::int64_t(sizeof(Sum));
  const auto reduce_block = [&](std::int64_t begin, auto count) {
    const auto elements_of = [&](const std::byte* piece) {
      return reinterpret_cast<const T*>(piece) + begin;
    };
    std::array<Sum, std::size_t(kBlock)> sums;
    const T* first = elements_of(pieces[0]);
    for (std::int64_t i = 0; i < count; ++i) sums[std::size_t(i)] = Sum(first[i]);
    for (const std::byte* piece : pieces.subspan(1)) {
      const T* elements = elements_of(piece);
      for (std::int64_t i = 0; i < count; ++i) {
        sums[std::size_t(i)] = combine(sums[std::size_t(i)], Sum(elements[i]));
      }
    }
    T* to = reinterpret_cast<T*>(output) + begin;
    for (std::int64_t i = 0; i < count; ++i) to[i] = T(sums[std::size_t(i)]);
  };
  std::int64_t begin = 0;
  for (; begin + kBlock <= num_elements; begin += kBlock) {
    reduce_block(begin, std::integral_constant<std::int64_t, kBlock>());
  }
  reduce_block(begin, num_elements - begin);
}

template <typename T, typename Sum = T>
void reduce(ReduceOp op,
            std::span<const std::byte* const> pieces,
            std::byte* output,
            std::int64_t num_elements) {
  switch (op) {
    case ReduceOp::kSum:
      return reduce<T, Sum>(pieces, output, num_elements, add<Sum>);
    case ReduceOp::kMax:
      return reduce<T, Sum>(
          pieces, output, num_elements, [](Sum a, Sum b) { return b > a || is_nan(b) ? b : a; });
    case ReduceOp::kMin:
      return reduce<T, Sum>(
          pieces, output, num_elements, [](Sum a, Sum b) { return b < a || is_nan(b) ? b : a; });
  }
}

}  // namespace

void validate_reducible(DType dtype, ReduceOp op) {
  PECAN_VALIDATE(dtype != DType::kU8 || op != ReduceOp::kSum,
                 ShapeError,
                 "u8 is not summed, since sums over ranks overflow it; use i32, or max for flags");
}

void reduce_in_order(DType dtype,
                     ReduceOp op,
                     std::span<const std::byte* const> pieces,
                     std::byte* output,
                     std::int64_t num_elements) {
  validate_reducible(dtype, op);
  PECAN_EXPECTS(!pieces.empty());
  if (num_elements == 0) return;
  switch (dtype) {
    case DType::kF32:
      return reduce<float>(op, pieces, output, num_elements);
    case DType::kF64:
      return reduce<double>(op, pieces, output, num_elements);
    case DType::kI64:
      return reduce<std::int64_t>(op, pieces, output, num_elements);
    case DType::kI32:
      return reduce<std::int32_t>(op, pieces, output, num_elements);
    case DType::kU8:
      return reduce<std::uint8_t>(op, pieces, output, num_elements);
    case DType::kBF16:
      return reduce<BFloat16, float>(op, pieces, output, num_elements);
  }
  throw InternalError(fmt::format("no reduction of {}", name_of(dtype)));
}

}  // namespace pecan::comm
