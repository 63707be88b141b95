/// Tiles of f32, of stored f32 and of bf16 that is widened when it is packed; compiled once for
/// each instruction set by tile_<isa>.cpp.

#include "ops/tile_pack.inl"

namespace pecan::ops::detail {
namespace {

// As many sums as registers hold beside the factors.
#if defined(__AVX512F__)
constexpr int kRows = 12, kPackedRows = 48;
#elif defined(__AVX2__)
constexpr int kRows = 6, kPackedRows = 24;
#else
constexpr int kRows = 4, kPackedRows = 4;
#endif

template <int kTileRows, int kVectors>
void multiply_columns(std::int64_t columns,
                      std::int64_t units,
                      const float* a,
                      std::int64_t row_step,
                      std::int64_t unit_step,
                      const float* panel,
                      bool add,
                      float* c,
                      std::int64_t c_row) {
  Floats sums[kTileRows][kVectors] = {};
  for (std::int64_t u = 0; u < units; ++u) {
    Floats b[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) b[v] = load<Floats>(panel + u * kPanelColumns + v * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      const float factor = a[i * row_step + u * unit_step];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[i][v] += factor * b[v];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) {
    float* row = c + i * c_row;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t left = columns - std::int64_t(v) * kLanes;
      float* at = row + v * kLanes;
      if (left >= kLanes) {
        store(at, add ? load<Floats>(at) + sums[i][v] : sums[i][v]);
        continue;
      }
      float part[kLanes];
      store(part, sums[i][v]);
      for (std::int64_t j = 0; j < left; ++j) at[j] = add ? at[j] + part[j] : part[j];
    }
  }
}

template <int kTileRows>
void multiply_rows(std::int64_t columns,
                   std::int64_t units,
                   const Unit* a,
                   std::int64_t row_step,
                   std::int64_t unit_step,
                   const Unit* panel,
                   bool add,
                   float* c,
                   std::int64_t c_row) {
  const auto* factors = reinterpret_cast<const float*>(a);
  const auto* right = reinterpret_cast<const float*>(panel);
  for (std::int64_t j = 0; j < columns; j += 2 * kLanes) {
    const auto part =
        columns - j > kLanes ? multiply_columns<kTileRows, 2> : multiply_columns<kTileRows, 1>;
    part(columns - j, units, factors, row_step, unit_step, right + j, add, c + j, c_row);
  }
}

void multiply(std::int64_t rows,
              std::int64_t columns,
              std::int64_t units,
              const Unit* a,
              std::int64_t row_step,
              std::int64_t unit_step,
              const Unit* panel,
              bool add,
              float* c,
              std::int64_t c_row,
              Ahead& ahead) {
  constexpr decltype(&multiply_rows<1>) kByRows[] = {multiply_rows<1>,
                                                     multiply_rows<2>,
                                                     multiply_rows<3>,
                                                     multiply_rows<4>,
                                                     multiply_rows < kRows < 5 ? 1 : 5 >,
                                                     multiply_rows < kRows < 6 ? 1 : 6 >,
                                                     multiply_rows < kRows < 7 ? 1 : 7 >,
                                                     multiply_rows < kRows < 8 ? 1 : 8 >,
                                                     multiply_rows < kRows < 9 ? 1 : 9 >,
                                                     multiply_rows < kRows < 10 ? 1 : 10 >,
                                                     multiply_rows < kRows < 11 ? 1 : 11 >,
                                                     multiply_rows < kRows < 12 ? 1 : 12 > };
  kByRows[rows - 1](columns, units, a, row_step, unit_step, panel, add, c, c_row);
  fetch(ahead);
}

/// Some rows and kLinesAtOnce lines of the right factor after the other, each of which is read from
/// memory once.
void multiply_few_across(std::int64_t rows,
                         std::int64_t columns,
                         std::int64_t depth,
                         const float* a,
                         std::int64_t a_row,
                         const float* b,
                         std::int64_t b_line,
                         bool add,
                         float* c,
                         std::int64_t c_row) {
  constexpr decltype(&multiply_lines<1, Use::kFirst>) kFirst[] = {multiply_lines<1, Use::kFirst>,
                                                                  multiply_lines<2, Use::kFirst>,
                                                                  multiply_lines<3, Use::kFirst>,
                                                                  multiply_lines<4, Use::kFirst>};
  constexpr decltype(&multiply_lines<1, Use::kOthers>) kOthers[] = {
      multiply_lines<1, Use::kOthers>,
      multiply_lines<2, Use::kOthers>,
      multiply_lines<3, Use::kOthers>,
      multiply_lines<4, Use::kOthers>};
  for (std::int64_t p = 0; p < depth; p += kLinesAtOnce) {
    const std::int64_t lines = depth - p < kLinesAtOnce ? depth - p : kLinesAtOnce;
    for (std::int64_t i = 0; i < rows; i += 4) {
      const std::int64_t some = rows - i < 4 ? rows - i : 4;
      const auto part = i == 0 ? kFirst[some - 1] : kOthers[some - 1];
      part(columns,
           lines,
           a + i * a_row + p,
           a_row,
           b + p * b_line,
           b_line,
           add || p > 0,
           c + i * c_row,
           c_row);
    }
  }
}

/// Lane by lane the sum of one of kLanes vectors.
template <int kStep>
void add_pairs(Floats* vectors) {
  using All = LanesUpTo<kLanes>;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i += 2 * kStep) {
    const Floats low = vectors[i], high = vectors[i + kStep];
    vectors[i] = shuffle_lanes(low, high, typename All::template Low<kStep>{}) +
                 shuffle_lanes(low, high, typename All::template High<kStep>{});
  }
}
Floats sums_of(Floats* vectors) {
  add_pairs<1>(vectors);
  add_pairs<2>(vectors);
  if constexpr (kLanes > 4) add_pairs<4>(vectors);
  if constexpr (kLanes > 8) add_pairs<8>(vectors);
  return vectors[0];
}

/// Inner products of some rows of both factors at a time. Each sum is that of kLanes sums.
void multiply_few_along(std::int64_t rows,
                        std::int64_t columns,
                        std::int64_t depth,
                        const float* a,
                        std::int64_t a_row,
                        const float* b,
                        std::int64_t b_line,
                        bool add,
                        float* c,
                        std::int64_t c_row) {
  constexpr int kColumns = 4, kRowsAtOnce = kLanes / kColumns;
  const std::int64_t whole = depth / kLanes * kLanes;
  for (std::int64_t j = 0; j < columns; j += kColumns) {
    for (std::int64_t i = 0; i < rows; i += kRowsAtOnce) {
      // Rows that are not there repeat the last one.
      const float *left[kRowsAtOnce], *right[kColumns];
      for (int r = 0; r < kRowsAtOnce; ++r) left[r] = a + (i + r < rows ? i + r : rows - 1) * a_row;
      for (int s = 0; s < kColumns; ++s)
        right[s] = b + (j + s < columns ? j + s : columns - 1) * b_line;
      Floats sums[kRowsAtOnce * kColumns] = {};
      for (std::int64_t p = 0; p < whole; p += kLanes) {
        Floats x[kRowsAtOnce];
#pragma GCC unroll 4
        for (int r = 0; r < kRowsAtOnce; ++r) x[r] = load<Floats>(left[r] + p);
#pragma GCC unroll 4
        for (int s = 0; s < kColumns; ++s) {
          const Floats y = load<Floats>(right[s] + p);
          __builtin_prefetch(right[s] + kColumns * b_line + p, 0, 3);
#pragma GCC unroll 4
          for (int r = 0; r < kRowsAtOnce; ++r) sums[r * kColumns + s] += x[r] * y;
        }
      }
      float all[kLanes];
      store(all, sums_of(sums));
      for (int r = 0; r < kRowsAtOnce && i + r < rows; ++r) {
        for (int s = 0; s < kColumns && j + s < columns; ++s) {
          float sum = all[r * kColumns + s];
          for (std::int64_t p = whole; p < depth; ++p) sum += left[r][p] * right[s][p];
          float& to = c[(i + r) * c_row + j + s];
          to = add ? to + sum : sum;
        }
      }
    }
  }
}

void multiply_few(Contiguous b_contiguous,
                  std::int64_t rows,
                  std::int64_t columns,
                  std::int64_t depth,
                  const float* a,
                  std::int64_t a_row,
                  const float* b,
                  std::int64_t b_line,
                  bool add,
                  float* c,
                  std::int64_t c_row) {
  const auto part =
      b_contiguous == Contiguous::kAlongUnits ? multiply_few_along : multiply_few_across;
  part(rows, columns, depth, a, a_row, b, b_line, add, c, c_row);
}

template <typename Source>
constexpr TileKernels table(const char* name, bool reads_rows) {
  return {.name = name,
          .elements_per_unit = 1,
          .unit_multiple = 1,
          .tile_rows = kRows,
          .packed_rows = kPackedRows,
          .packed_row_step = 1,
          .packed_unit_step = kPackedRows,
          .reads_rows = reads_rows,
          .add_few = add_few<Source>,
          .multiply_few = multiply_few,
          .whole_blocks = false,
          .group_rows = 1,
          .begin = nullptr,
          .end = nullptr,
          .multiply = multiply,
          .pack_panel = pack<Source, kPanelColumns>,
          .pack_rows = pack<Source, kPackedRows>,
          .store_bf16 = store_bf16};
}

}  // namespace

extern const TileKernels PECAN_TILE_F32;
extern const TileKernels PECAN_TILE_WIDENED;
constinit const TileKernels PECAN_TILE_F32 = table<FromF32>("f32 " PECAN_TILE_ISA, true);
constinit const TileKernels PECAN_TILE_WIDENED =
    table<FromBf16>("bf16 widened " PECAN_TILE_ISA, false);

}  // namespace pecan::ops::detail
