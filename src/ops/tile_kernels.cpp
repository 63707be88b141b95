#include "ops/tile_kernels.hpp"

#include <vector>

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "ops/vector_kernels.hpp"

namespace pecan::ops::detail {

extern const TileKernels kBaselineTilesF32, kAvx2TilesF32, kAvx512TilesF32;
extern const TileKernels kBaselineTilesWidened, kAvx2TilesWidened, kAvx512TilesWidened;
extern const TileKernels kAvx512TilesBf16, kAmxTilesBf16;

namespace {

#if defined(__linux__) && defined(__x86_64__)
/// Linux gives memory for the tile registers to a process that asks for it.
bool may_use_amx() {
  constexpr unsigned kAmxBf16 = 1U << 22U, kAmxTile = 1U << 24U;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kAmxBf16) == 0 || (d & kAmxTile) == 0)
    return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool may_use_amx() {
  return false;
}
#endif

/// oneDNN chooses its instruction set by itself.
constexpr TileKernels kOneDnnF32{.name = "f32 oneDNN",
                                 .elements_per_unit = 1,
                                 .unit_multiple = 1,
                                 .tile_rows = 1,
                                 .packed_rows = 1,
                                 .packed_row_step = 1,
                                 .packed_unit_step = 1,
                                 .reads_rows = true,
                                 .add_few = nullptr,
                                 .multiply_few = nullptr,
                                 .whole_blocks = true,
                                 .group_rows = 1,
                                 .begin = nullptr,
                                 .end = nullptr,
                                 .multiply = nullptr,
                                 .pack_panel = nullptr,
                                 .pack_rows = nullptr,
                                 .store_bf16 = nullptr};

using Tables = std::vector<const TileKernels*>;

Tables supported(const TileKernels& baseline, const TileKernels& avx2, const TileKernels& avx512) {
  Tables tables{&baseline};
  if (isa_limit() >= IsaLimit::kAvx2 && supports(Isa::kAvx2)) tables.push_back(&avx2);
  if (isa_limit() >= IsaLimit::kAvx512 && supports(Isa::kAvx512)) tables.push_back(&avx512);
  return tables;
}

Tables supported_bf16() {
  Tables tables = supported(kBaselineTilesWidened, kAvx2TilesWidened, kAvx512TilesWidened);
#if defined(__x86_64__)
  if (isa_limit() >= IsaLimit::kAvx512Bf16 && supports(Isa::kAvx512) &&
      __builtin_cpu_supports("avx512bf16")) {
    tables.push_back(&kAvx512TilesBf16);
    if (isa_limit() >= IsaLimit::kAmx && may_use_amx()) tables.push_back(&kAmxTilesBf16);
  }
#endif
  return tables;
}

}  // namespace

std::span<const TileKernels* const> f32_tile_kernels() {
  static const Tables tables = [] {
    Tables own = supported(kBaselineTilesF32, kAvx2TilesF32, kAvx512TilesF32);
    // It could not be held to a limit.
    if (isa_limit() < IsaLimit::kAmx) return own;
    static TileKernels one_dnn = kOneDnnF32;
    one_dnn.add_few = own.back()->add_few;
    one_dnn.multiply_few = own.back()->multiply_few;
    own.push_back(&one_dnn);
    return own;
  }();
  return tables;
}

std::span<const TileKernels* const> bf16_tile_kernels() {
  static const Tables tables = supported_bf16();
  return tables;
}

}  // namespace pecan::ops::detail
