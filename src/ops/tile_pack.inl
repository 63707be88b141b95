/// How tiles are laid out and stored, over vectors of the instruction set that this file is
/// compiled for. Nothing here may instantiate an inline function of a library (vector_kernels.inl).

#pragma once

#include <cstdint>

#include "ops/tile_kernels.hpp"
#include "ops/vector_bf16.inl"

namespace pecan::ops::detail {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;

using Units = Unit __attribute__((vector_size(kVectorBytes)));
using Floats = float __attribute__((vector_size(kVectorBytes)));
using Halves = std::uint16_t __attribute__((vector_size(kVectorBytes / 2)));

template <typename V>
V load(const void* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
template <typename V>
void store(void* to, V value) {
  __builtin_memcpy(to, &value, sizeof value);
}

template <int... kLane>
struct Lanes {};
template <typename V, int... kLane>
V shuffle_lanes(V a, V b, Lanes<kLane...>) {
  return __builtin_shufflevector(a, b, kLane...);
}
template <int kCount, int... kLane>
struct LanesUpTo : LanesUpTo<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct LanesUpTo<0, kLane...> {
  /// Those of two vectors of a pair whose lanes with the bit kStep change places.
  template <int kStep>
  using Low = Lanes<((kLane & kStep) != 0 ? kLanes + kLane - kStep : kLane)...>;
  template <int kStep>
  using High = Lanes<((kLane & kStep) != 0 ? kLanes + kLane : kLane + kStep)...>;
};

template <int kStep>
void exchange(Units* rows) {
  using All = LanesUpTo<kLanes>;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kStep) != 0) continue;
    const Units low = rows[i], high = rows[i + kStep];
    rows[i] = shuffle_lanes(low, high, typename All::template Low<kStep>{});
    rows[i + kStep] = shuffle_lanes(low, high, typename All::template High<kStep>{});
  }
}

/// Rows become columns.
inline void transpose(Units* rows) {
  exchange<1>(rows);
  exchange<2>(rows);
  if constexpr (kLanes > 4) exchange<4>(rows);
  if constexpr (kLanes > 8) exchange<8>(rows);
}

/// How stored elements become units.
struct FromF32 {
  using Stored = float;
  static constexpr int kElements = 1;
  /// kLanes units that follow one another in memory.
  static Units along(const float* from) { return load<Units>(from); }
  /// One unit of kLanes neighbours.
  static Units across(const float* from, std::int64_t /*stride*/) { return load<Units>(from); }
};
/// A bf16 as f32.
struct FromBf16 {
  using Stored = Bf16Bits;
  static constexpr int kElements = 1;
  static Units along(const Bf16Bits* from) {
    return __builtin_convertvector(load<Halves>(from), Units) << 16U;
  }
  static Units across(const Bf16Bits* from, std::int64_t /*stride*/) { return along(from); }
};
/// Two bf16 as a pair, the earlier one in the low half.
struct FromPairs {
  using Stored = Bf16Bits;
  static constexpr int kElements = 2;
  static Units along(const Bf16Bits* from) { return load<Units>(from); }
  static Units across(const Bf16Bits* from, std::int64_t stride) {
    return __builtin_convertvector(load<Halves>(from), Units) |
           __builtin_convertvector(load<Halves>(from + stride), Units) << 16U;
  }
};

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Elements of `lines` lines, the first `count` of each, in memory of kLanes units a line that is 0
/// beyond them.
template <typename Source>
struct Padded {
  using Stored = typename Source::Stored;
  static constexpr std::int64_t kCount = std::int64_t(kLanes) * 2;
  Stored elements[2 * kCount] = {};
  Padded(const Stored* from, std::int64_t stride, std::int64_t lines, std::int64_t count) {
    for (std::int64_t line = 0; line < lines; ++line)
      for (std::int64_t i = 0; i < count; ++i)
        elements[line * kCount + i] = from[line * stride + i];
  }
};

/// Lines run along the units: kLanes lines at a time are turned round.
template <typename Source, std::int64_t kWidth, std::int64_t kMultiple>
void pack_along(const typename Source::Stored* from,
                std::int64_t stride,
                std::int64_t depth,
                std::int64_t width,
                Unit* to) {
  constexpr std::int64_t kPerVector = std::int64_t(kLanes) * Source::kElements;
  const std::int64_t units =
      round_up((depth + Source::kElements - 1) / Source::kElements, kMultiple);
  for (std::int64_t line = 0; line < kWidth; line += kLanes) {
    for (std::int64_t unit = 0; unit < units; unit += kLanes) {
      const std::int64_t first = unit * Source::kElements;
      Units rows[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const auto* at = from + (line + i) * stride + first;
        if (line + i >= width || first >= depth) {
          rows[i] = Units{};
        } else if (first + kPerVector <= depth) {
          rows[i] = Source::along(at);
        } else {
          rows[i] = Source::along(Padded<Source>(at, 0, 1, depth - first).elements);
        }
      }
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        if (unit + i < units) store(to + (unit + i) * kWidth + line, rows[i]);
    }
  }
}

/// Lines run across the units: they are copied, or pairs of them merged.
template <typename Source, std::int64_t kWidth, std::int64_t kMultiple>
void pack_across(const typename Source::Stored* from,
                 std::int64_t stride,
                 std::int64_t depth,
                 std::int64_t width,
                 Unit* to) {
  const std::int64_t units =
      round_up((depth + Source::kElements - 1) / Source::kElements, kMultiple);
  const std::int64_t whole_units = depth / Source::kElements;
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const auto* at = from + unit * Source::kElements * stride;
    const std::int64_t lines = depth - unit * Source::kElements;
#pragma GCC unroll 8
    for (std::int64_t column = 0; column < kWidth; column += kLanes) {
      Units value{};
      if (unit < whole_units && column + kLanes <= width) {
        value = Source::across(at + column, stride);
      } else if (lines > 0 && column < width) {
        const std::int64_t count = width - column < kLanes ? width - column : kLanes;
        const Padded<Source> padded(
            at + column, stride, lines < Source::kElements ? lines : Source::kElements, count);
        value = Source::across(padded.elements, Padded<Source>::kCount);
      }
      store(to + unit * kWidth + column, value);
    }
  }
}

template <typename Source, std::int64_t kWidth, std::int64_t kMultiple = 1>
void pack(Contiguous contiguous,
          const void* from,
          std::int64_t stride,
          std::int64_t depth,
          std::int64_t width,
          Unit* to) {
  const auto* elements = static_cast<const typename Source::Stored*>(from);
  if (contiguous == Contiguous::kAlongUnits) {
    pack_along<Source, kWidth, kMultiple>(elements, stride, depth, width, to);
  } else {
    pack_across<Source, kWidth, kMultiple>(elements, stride, depth, width, to);
  }
}

inline void store_bf16(std::int64_t rows,
                       std::int64_t columns,
                       const float* x,
                       std::int64_t x_row,
                       bool add,
                       std::uint16_t* y,
                       std::int64_t y_row) {
  const auto store_row = [add](std::int64_t n, const float* from, Bf16Bits* to) {
    if (add) {
      for (std::int64_t j = 0; j < n; ++j) put(to[j], wide(to[j]) + from[j]);
    } else {
      for (std::int64_t j = 0; j < n; ++j) put(to[j], from[j]);
    }
  };
  if (columns == kPanelColumns) {
    for (std::int64_t i = 0; i < rows; ++i) store_row(kPanelColumns, x + i * x_row, y + i * y_row);
  } else {
    for (std::int64_t i = 0; i < rows; ++i) store_row(columns, x + i * x_row, y + i * y_row);
  }
}

}  // namespace
}  // namespace pecan::ops::detail
