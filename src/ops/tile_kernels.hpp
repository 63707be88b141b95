#pragma once
/// The innermost loops of f32 and bf16 products: a tile of rows times a panel of columns, built for
/// several instruction sets and chosen at run time.
///
/// Both factors are read as units of 32 bits: one f32, or two neighbours along the contracted
/// dimension as a pair of bf16. A panel holds kPanelColumns columns of the right factor,
/// [units][kPanelColumns]; what fills up columns and units is 0.

#include <cstddef>
#include <cstdint>
#include <span>

namespace pecan::ops::detail {

using Unit = std::uint32_t;

inline constexpr std::int64_t kPanelColumns = 32;
/// Units of a panel at most, so that it stays in the nearest cache: 32 KB.
inline constexpr std::int64_t kPanelUnits = 256;
/// What tile_rows of all kernels do not exceed.
inline constexpr std::int64_t kMaxTileRows = 32;

/// Up to so many elements along the contracted dimension add_few() is ahead of tiles.
inline constexpr std::int64_t kFewUnits = 16;
/// Up to so many rows multiply_few() is ahead of whole blocks.
inline constexpr std::int64_t kFewRows = 24;

/// The side of a factor whose elements follow one another in memory.
enum class Contiguous : std::uint8_t {
  kAlongUnits,   ///< the contracted dimension
  kAcrossUnits,  ///< the other one
};

/// Lines of memory: `rows` pieces of `row_bytes`, `stride` bytes apart, of the first of which
/// `done` bytes are behind.
struct Lines {
  const std::byte* row = nullptr;
  std::int64_t rows = 0, row_bytes = 0, stride = 0, done = 0;
};
/// What will be needed soon. multiply() asks for it along the way, all of `tile` and `panel_lines`
/// of `panel`: asked for in one go, it would be waited for.
struct Ahead {
  Lines tile, panel;
  std::int64_t panel_lines = 0;
};
inline constexpr std::int64_t kLineBytes = 64;

struct TileKernels {
  const char* name;
  std::int64_t elements_per_unit;  ///< 1, or 2 for pairs of bf16
  std::int64_t unit_multiple;      ///< numbers of units are multiples of it
  std::int64_t tile_rows;          ///< rows that multiply() takes at most
  std::int64_t packed_rows;        ///< that pack_rows lays out together: one or more tiles
  std::int64_t packed_row_step;    ///< between rows of what it lays out
  std::int64_t packed_unit_step;   ///< between units
  /// Whether multiply() may read rows of the left factor where they lie, if their units are
  /// contiguous and none is filled up.
  bool reads_rows;
  /// c[i][j] += sum over u < depth <= kFewUnits, ascending, of a[u * a_line + i] times b[u * b_line
  /// + j]: stored elements of both factors, which are not packed. Takes the rows of c in the order
  /// of memory. `widened` has room for depth * (rows + columns) floats.
  void (*add_few)(std::int64_t rows,
                  std::int64_t columns,
                  std::int64_t depth,
                  const void* a,
                  std::int64_t a_line,
                  const void* b,
                  std::int64_t b_line,
                  float* c,
                  std::int64_t c_row,
                  float* widened);
  /// c[i][j] = [c[i][j] +] sum over u < depth of a[i * a_row + u] times the right factor, whose
  /// lines are b_line apart: f32 that is not packed, for few rows. Used beside whole_blocks only,
  /// which pack both factors; its sums are not those of multiply().
  void (*multiply_few)(Contiguous b_contiguous,
                       std::int64_t rows,
                       std::int64_t columns,
                       std::int64_t depth,
                       const float* a,
                       std::int64_t a_row,
                       const float* b,
                       std::int64_t b_line,
                       bool add,
                       float* c,
                       std::int64_t c_row);
  /// oneDNN computes whole blocks of f32, one a thread; all that follows is unused.
  bool whole_blocks;
  /// multiply() computes so many rows together, at least, and whole panels. Where the last group of
  /// a tile lacks rows it starts earlier and repeats some of the group before.
  std::int64_t group_rows;
  /// Called on each thread before and after a run of multiply(); may be null.
  void (*begin)();
  void (*end)();
  /// c[i][j] = [c[i][j] +] sum over u < units, ascending, of a[i * row_step + u * unit_step] times
  /// panel[u][j], for i < rows and j < columns. Groups of rows follow one another in c without
  /// gaps, repeated rows included.
  void (*multiply)(std::int64_t rows,
                   std::int64_t columns,
                   std::int64_t units,
                   const Unit* a,
                   std::int64_t row_step,
                   std::int64_t unit_step,
                   const Unit* panel,
                   bool add,
                   float* c,
                   std::int64_t c_row,
                   Ahead& ahead);
  /// Fills a panel from `depth` x `columns` stored elements, lines of memory `stride` apart.
  void (*pack_panel)(Contiguous contiguous,
                     const void* from,
                     std::int64_t stride,
                     std::int64_t depth,
                     std::int64_t columns,
                     Unit* panel);
  /// The same for packed_rows rows of the left factor.
  void (*pack_rows)(Contiguous contiguous,
                    const void* from,
                    std::int64_t stride,
                    std::int64_t depth,
                    std::int64_t rows,
                    Unit* packed);
  /// y[i][j] = [y[i][j] +] x[i][j] rounded to bf16, of a part of a panel.
  void (*store_bf16)(std::int64_t rows,
                     std::int64_t columns,
                     const float* x,
                     std::int64_t x_row,
                     bool add,
                     std::uint16_t* y,
                     std::int64_t y_row);
};

/// Of products of f32, for each instruction set that this CPU runs and isa_limit() allows, the best
/// one last.
[[nodiscard]] std::span<const TileKernels* const> f32_tile_kernels();
/// Of products of bf16, likewise.
[[nodiscard]] std::span<const TileKernels* const> bf16_tile_kernels();

}  // namespace pecan::ops::detail
