/// Tiles of bf16 pairs by AVX512-BF16.

#include "ops/tile_pack.inl"

#if defined(__AVX512BF16__)
#include <immintrin.h>

namespace pecan::ops::detail {
namespace {

constexpr int kRows = 8, kPackedRows = 16;

template <int kTileRows, int kVectors>
void multiply_columns(std::int64_t columns,
                      std::int64_t units,
                      const Unit* a,
                      std::int64_t row_step,
                      std::int64_t unit_step,
                      const Unit* panel,
                      bool add,
                      float* c,
                      std::int64_t c_row) {
  __m512 sums[kTileRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sums[i][v] = _mm512_setzero_ps();
  }
  for (std::int64_t u = 0; u < units; ++u) {
    __m512bh b[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      b[v] = load<__m512bh>(panel + u * kPanelColumns + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const __m512bh pair =
          __m512bh(_mm512_set1_epi32(load<int>(a + i * row_step + u * unit_step)));
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[i][v] = _mm512_dpbf16_ps(sums[i][v], pair, b[v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t left = columns - std::int64_t(v) * kLanes;
      const auto valid =
          left >= kLanes ? __mmask16(0xFFFFU) : __mmask16((1U << unsigned(left)) - 1U);
      float* at = c + i * c_row + v * kLanes;
      const __m512 old = add ? _mm512_maskz_loadu_ps(valid, at) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(at, valid, _mm512_add_ps(old, sums[i][v]));
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
  const auto part =
      columns > kLanes ? multiply_columns<kTileRows, 2> : multiply_columns<kTileRows, 1>;
  part(columns, units, a, row_step, unit_step, panel, add, c, c_row);
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
                                                     multiply_rows<5>,
                                                     multiply_rows<6>,
                                                     multiply_rows<7>,
                                                     multiply_rows<8>};
  kByRows[rows - 1](columns, units, a, row_step, unit_step, panel, add, c, c_row);
  fetch(ahead);
}

}  // namespace

extern const TileKernels kAvx512TilesBf16;
constinit const TileKernels kAvx512TilesBf16{.name = "bf16 avx512_bf16",
                                             .elements_per_unit = 2,
                                             .unit_multiple = 1,
                                             .tile_rows = kRows,
                                             .packed_rows = kPackedRows,
                                             .packed_row_step = 1,
                                             .packed_unit_step = kPackedRows,
                                             .reads_rows = true,
                                             .add_few = add_few<FromBf16>,
                                             .multiply_few = nullptr,
                                             .whole_blocks = false,
                                             .group_rows = 1,
                                             .begin = nullptr,
                                             .end = nullptr,
                                             .multiply = multiply,
                                             .pack_panel = pack<FromPairs, kPanelColumns>,
                                             .pack_rows = pack<FromPairs, kPackedRows>,
                                             .store_bf16 = store_bf16};

}  // namespace pecan::ops::detail
#endif
