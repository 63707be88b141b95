#define PECAN_TILE_ISA "avx2"
#define PECAN_TILE_F32 kAvx2TilesF32
#define PECAN_TILE_WIDENED kAvx2TilesWidened
#include "ops/tile_f32.inl"
