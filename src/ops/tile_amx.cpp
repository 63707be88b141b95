/// Tiles of bf16 pairs by AMX: registers of 16 rows of 16 units, four of which hold the sums of 32
/// x 32 elements.

#include "ops/tile_pack.inl"

#if defined(__AMX_BF16__)
#include <immintrin.h>

namespace pecan::ops::detail {
namespace {

constexpr std::int64_t kTileRows = 32, kGroupRows = 16, kTileUnits = 16;
constexpr std::int64_t kRowBytes = kTileUnits * std::int64_t(sizeof(Unit));

/// As the instruction reads it: palette 1, and registers of 16 rows of 64 bytes.
struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64);
// Not a local: the compiler's intrinsic says that it reads the first bytes only.
const TileShapes kTileShapes;

void begin() {
  _tile_loadconfig(&kTileShapes);
}

void end() {
  _tile_release();
}

/// The second group of rows starts `lower` rows after the first one, or there is none.
template <bool kTwoGroups>
void multiply_groups(std::int64_t lower,
                     std::int64_t units,
                     const Unit* a,
                     std::int64_t row_step,
                     const Unit* panel,
                     bool add,
                     float* c,
                     std::int64_t c_row,
                     Ahead& ahead) {
  const std::int64_t c_bytes = c_row * std::int64_t(sizeof(float));
  float* const c_lower = c + kGroupRows * c_row;
  if (add) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + 16, c_bytes);
    if constexpr (kTwoGroups) {
      _tile_loadd(2, c_lower, c_bytes);
      _tile_loadd(3, c_lower + 16, c_bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTwoGroups) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  const std::int64_t a_bytes = row_step * std::int64_t(sizeof(Unit));
  const std::int64_t steps = units / kTileUnits;
  const auto a_step = [steps](std::int64_t lines) {
    return steps > 0 ? (lines + steps - 1) / steps : 0;
  };
  const std::int64_t tile_lines = a_step(lines_in(ahead.tile)),
                     panel_lines = a_step(ahead.panel_lines);
  for (std::int64_t u = 0; u < units; u += kTileUnits) {
    const Unit* right = panel + u * kPanelColumns;
    _tile_loadd(4, a + u, a_bytes);
    _tile_loadd(6, right, 2 * kRowBytes);
    _tile_loadd(7, right + 16, 2 * kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwoGroups) {
      _tile_loadd(5, a + lower * row_step + u, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    fetch(ahead.tile, tile_lines);
    fetch(ahead.panel, panel_lines);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  if constexpr (kTwoGroups) {
    _tile_stored(2, c_lower, c_bytes);
    _tile_stored(3, c_lower + 16, c_bytes);
  }
}

void multiply(std::int64_t rows,
              std::int64_t /*columns*/,
              std::int64_t units,
              const Unit* a,
              std::int64_t row_step,
              std::int64_t /*unit_step*/,
              const Unit* panel,
              bool add,
              float* c,
              std::int64_t c_row,
              Ahead& ahead) {
  const auto groups = rows > kGroupRows ? multiply_groups<true> : multiply_groups<false>;
  groups(rows - kGroupRows, units, a, row_step, panel, add, c, c_row, ahead);
}

/// 32 rows of kPanelUnits units, whatever they come from.
void pack_rows(Contiguous contiguous,
               const void* from,
               std::int64_t stride,
               std::int64_t depth,
               std::int64_t rows,
               Unit* to) {
  const auto* elements = static_cast<const Bf16Bits*>(from);
  const std::int64_t units = round_up((depth + 1) / 2, kTileUnits);
  for (std::int64_t unit = 0; unit < units; unit += kTileUnits) {
    const std::int64_t left = depth - 2 * unit;
    for (std::int64_t first = 0; first < kTileRows; first += kLanes) {
      Units lines[kLanes];
      const bool whole = first + kLanes <= rows && left >= 2 * kTileUnits;
      if (contiguous == Contiguous::kAlongUnits && whole) {
        for (int i = 0; i < kLanes; ++i)
          lines[i] = FromPairs::along(elements + (first + i) * stride + 2 * unit);
      } else if (contiguous == Contiguous::kAlongUnits) {
        for (int i = 0; i < kLanes; ++i) {
          const auto* at = elements + (first + i) * stride + 2 * unit;
          lines[i] = first + i >= rows ? Units{}
                     : left >= 32      ? FromPairs::along(at)
                                  : FromPairs::along(Padded<FromPairs>(at, 0, 1, left).elements);
        }
      } else if (whole) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
          lines[i] = FromPairs::across(elements + (2 * unit + 2 * i) * stride + first, stride);
        transpose(lines);
      } else {
        const std::int64_t count = rows - first < kLanes ? rows - first : kLanes;
        for (int i = 0; i < kLanes; ++i) {
          const auto* at = elements + (2 * unit + 2 * i) * stride + first;
          const std::int64_t lines_left = left - 2 * i;
          if (count == kLanes && lines_left >= 2) {
            lines[i] = FromPairs::across(at, stride);
          } else if (count > 0 && lines_left > 0) {
            const Padded<FromPairs> padded(at, stride, lines_left < 2 ? 1 : 2, count);
            lines[i] = FromPairs::across(padded.elements, Padded<FromPairs>::kCount);
          } else {
            lines[i] = Units{};
          }
        }
        transpose(lines);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + (first + i) * kPanelUnits + unit, lines[i]);
    }
  }
}

}  // namespace

extern const TileKernels kAmxTilesBf16;
constinit const TileKernels kAmxTilesBf16{.name = "bf16 amx",
                                          .elements_per_unit = 2,
                                          .unit_multiple = kTileUnits,
                                          .tile_rows = kTileRows,
                                          .packed_rows = kTileRows,
                                          .packed_row_step = kPanelUnits,
                                          .packed_unit_step = 1,
                                          .reads_rows = true,
                                          .add_few = add_few<FromBf16>,
                                          .multiply_few = nullptr,
                                          .whole_blocks = false,
                                          .group_rows = kGroupRows,
                                          .begin = begin,
                                          .end = end,
                                          .multiply = multiply,
                                          .pack_panel = pack<FromPairs, kPanelColumns, kTileUnits>,
                                          .pack_rows = pack_rows,
                                          .store_bf16 = store_bf16};

}  // namespace pecan::ops::detail
#endif
