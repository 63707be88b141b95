#define PECAN_TILE_ISA "baseline"
#define PECAN_TILE_F32 kBaselineTilesF32
#define PECAN_TILE_WIDENED kBaselineTilesWidened
#include "ops/tile_f32.inl"
