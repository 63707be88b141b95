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

inline std::int64_t lines_in(const Lines& lines) {
  return lines.rows * ((lines.row_bytes + kLineBytes - 1) / kLineBytes);
}

/// Asks for the next `count` lines.
inline void fetch(Lines& lines, std::int64_t count) {
  if (lines.row_bytes <= kLineBytes) {
    count = count < lines.rows ? count : lines.rows;
    for (std::int64_t i = 0; i < count; ++i) __builtin_prefetch(lines.row + i * lines.stride, 0, 2);
    lines.row += count * lines.stride;
    lines.rows -= count;
    return;
  }
  while (count > 0 && lines.rows > 0) {
    const std::int64_t left = (lines.row_bytes - lines.done + kLineBytes - 1) / kLineBytes;
    const std::int64_t in_row = count < left ? count : left;
    const std::byte* const first = lines.row + lines.done;
    for (std::int64_t i = 0; i < in_row; ++i) __builtin_prefetch(first + i * kLineBytes, 0, 2);
    count -= in_row;
    lines.done += in_row * kLineBytes;
    if (in_row < left) return;
    lines.done = 0;
    lines.row += lines.stride;
    --lines.rows;
  }
}
inline void fetch(Ahead& ahead) {
  fetch(ahead.tile, lines_in(ahead.tile));
  fetch(ahead.panel, ahead.panel_lines);
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
      const bool whole = line + kLanes <= width && first + kPerVector <= depth;
      if (whole) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
          rows[i] = Source::along(from + (line + i) * stride + first);
      }
      for (int i = 0; i < kLanes && !whole; ++i) {
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
      if (unit + kLanes <= units) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + (unit + i) * kWidth + line, rows[i]);
      } else {
        for (int i = 0; i < units - unit; ++i) store(to + (unit + i) * kWidth + line, rows[i]);
      }
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
  std::int64_t unit = 0;
  for (; unit < whole_units && width == kWidth; ++unit) {
    const auto* at = from + unit * Source::kElements * stride;
#pragma GCC unroll 8
    for (std::int64_t column = 0; column < kWidth; column += kLanes)
      store(to + unit * kWidth + column, Source::across(at + column, stride));
  }
  for (; unit < units; ++unit) {
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

/// Lines of the right factor that are added to some rows at once, and fetched ahead.
constexpr std::int64_t kLinesAtOnce = 16;
/// What multiply_lines() is for.
enum class Use : std::uint8_t {
  kGradient,  ///< rows of a are one element apart; adds, and fetches the rows below in c
  kFirst,     ///< elements of a row of a follow one another; fetches kLinesAtOnce lines ahead in b
  kOthers,    ///< the same for lines of b that are near already
};

/// c[i][j] = [c[i][j] +] sum over u < depth, ascending, of a's element (i, u) times b[u * b_line +
/// j], for some rows. Lines of a are a_line apart.
template <int kRows, Use kUse>
void multiply_lines(std::int64_t columns,
                    std::int64_t depth,
                    const float* a,
                    std::int64_t a_line,
                    const float* b,
                    std::int64_t b_line,
                    bool add,
                    float* c,
                    std::int64_t c_row) {
  constexpr int kVectors = 2;
  constexpr bool kGradient = kUse == Use::kGradient;
  const auto factor_at = [&](std::int64_t i, std::int64_t u) {
    return kGradient ? a[u * a_line + i] : a[i * a_line + u];
  };
  const bool adds = kGradient || add;
  std::int64_t j = 0;
  for (; j + kVectors * kLanes <= columns; j += kVectors * kLanes) {
    Floats sums[kRows][kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const float* const at = c + i * c_row + j + v * kLanes;
        sums[i][v] = adds ? load<Floats>(at) : Floats{};
        if (kGradient) __builtin_prefetch(at + kRows * c_row, 0, 3);
      }
    }
    for (std::int64_t u = 0; u < depth; ++u) {
      Floats right[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const float* const at = b + u * b_line + j + v * kLanes;
        right[v] = load<Floats>(at);
        if (kUse == Use::kFirst) __builtin_prefetch(at + kLinesAtOnce * b_line, 0, 3);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const float factor = factor_at(i, u);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[i][v] += factor * right[v];
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) store(c + i * c_row + j + v * kLanes, sums[i][v]);
    }
  }
  for (; j < columns; ++j) {
    for (int i = 0; i < kRows; ++i) {
      float sum = adds ? c[i * c_row + j] : 0.0F;
      for (std::int64_t u = 0; u < depth; ++u) sum += factor_at(i, u) * b[u * b_line + j];
      c[i * c_row + j] = sum;
    }
  }
}

template <typename Source>
void add_few(std::int64_t rows,
             std::int64_t columns,
             std::int64_t depth,
             const void* a,
             std::int64_t a_line,
             const void* b,
             std::int64_t b_line,
             float* c,
             std::int64_t c_row,
             float* widened) {
  const auto* left = static_cast<const typename Source::Stored*>(a);
  const auto* right = static_cast<const typename Source::Stored*>(b);
  if constexpr (sizeof(typename Source::Stored) == sizeof(float)) {
    constexpr int kRows = 4;
    std::int64_t i = 0;
    for (; i + kRows <= rows; i += kRows)
      multiply_lines<kRows, Use::kGradient>(
          columns, depth, left + i, a_line, right, b_line, true, c + i * c_row, c_row);
    for (; i < rows; ++i)
      multiply_lines<1, Use::kGradient>(
          columns, depth, left + i, a_line, right, b_line, true, c + i * c_row, c_row);
  } else {
    float* const wide_right = widened + depth * rows;
    for (std::int64_t u = 0; u < depth; ++u) {
      for (std::int64_t i = 0; i < rows; ++i) widened[u * rows + i] = wide(left[u * a_line + i]);
      for (std::int64_t j = 0; j < columns; ++j)
        wide_right[u * columns + j] = wide(right[u * b_line + j]);
    }
    add_few<FromF32>(rows, columns, depth, widened, rows, wide_right, columns, c, c_row, nullptr);
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
