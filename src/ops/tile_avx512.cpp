#define PECAN_TILE_ISA "avx512"
#define PECAN_TILE_F32 kAvx512TilesF32
#define PECAN_TILE_WIDENED kAvx512TilesWidened
#include "ops/tile_f32.inl"
