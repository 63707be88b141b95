#include "comm/reduce.hpp"

#include <algorithm>
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
  // Partial sums stay in the nearest cache. Output may be a piece: each element is written after
  // all of its pieces are read, and no other element depends on it, which the compiler is told.
  constexpr std::int64_t kChunk = 8192 / std::int64_t(sizeof(Sum));
  std::array<Sum, std::size_t(kChunk)> sums;
  for (std::int64_t begin = 0; begin < num_elements; begin += kChunk) {
    const std::int64_t count = std::min(kChunk, num_elements - begin);
    const auto elements_of = [&](const std::byte* piece) {
      return reinterpret_cast<const T*>(piece) + begin;
    };
    T* const to = reinterpret_cast<T*>(output) + begin;
    const T* const first = elements_of(pieces.front());
    const T* const last = elements_of(pieces.back());
    if (pieces.size() == 1) {
      std::memmove(to, first, std::size_t(count) * sizeof(T));
      continue;
    }
    if (pieces.size() == 2) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < count; ++i) to[i] = T(combine(Sum(first[i]), Sum(last[i])));
      continue;
    }
    const T* const second = elements_of(pieces[1]);
    for (std::int64_t i = 0; i < count; ++i) {
      sums[std::size_t(i)] = combine(Sum(first[i]), Sum(second[i]));
    }
    for (const std::byte* piece : pieces.subspan(2, pieces.size() - 3)) {
      const T* const elements = elements_of(piece);
      for (std::int64_t i = 0; i < count; ++i) {
        sums[std::size_t(i)] = combine(sums[std::size_t(i)], Sum(elements[i]));
      }
    }
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) {
      to[i] = T(combine(sums[std::size_t(i)], Sum(last[i])));
    }
  }
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
