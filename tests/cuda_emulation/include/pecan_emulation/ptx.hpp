#pragma once
/// Twins of the instructions that kernels/ptx.cuh writes in PTX.

#include <cstdint>
#include <cstring>

#include <cuda_runtime.h>

namespace pecan::emulation {

/// cp.async: the bytes are copied when the thread waits for them and not before, so that a read
/// without the wait finds memory without content. `num_bytes` is 4, 8 or 16, of which both
/// addresses are multiples.
PECAN_EMULATION_API void copy_later(void* shared, const void* global, std::size_t num_bytes);
/// cp.async.commit_group: what was to be copied since the last call is a group.
PECAN_EMULATION_API void close_copy_group();
/// cp.async.wait_group: all groups of this thread but the last `num_open` are copied.
PECAN_EMULATION_API void wait_for_copies(int num_open);

/// Part of a lane in mma.sync.m16n8k16 of bfloat16; see the PTX manual, "Matrix fragments for
/// mma.m16n8k16 with floating point type". Lane l works with row l / 4 (and the one 8 below) of A
/// and D, and with column l / 4 of B; in the other direction it holds pairs that start at 2 (l %
/// 4), and 8 further.
struct MmaOperand {
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

constexpr int mma_a_row(int lane, int reg) {
  return lane / 4 + reg % 2 * 8;
}
constexpr int mma_a_column(int lane, int reg, int half) {
  return lane % 4 * 2 + half + reg / 2 * 8;
}
constexpr int mma_b_row(int lane, int reg, int half) {
  return lane % 4 * 2 + half + reg * 8;
}
constexpr int mma_b_column(int lane) {
  return lane / 4;
}
constexpr int mma_d_row(int lane, int reg) {
  return lane / 4 + reg / 2 * 8;
}
constexpr int mma_d_column(int lane, int reg) {
  return lane % 4 * 2 + reg % 2;
}

inline float bf16_half(std::uint32_t pair, int half) {
  return std::bit_cast<float>(half == 0 ? pair << 16 : pair & 0xFFFF0000u);
}

inline void multiply_m16n8k16(void* const* operands, std::uint32_t) {
  float a[16][16];
  float b[16][8];
  for (int lane = 0; lane < warpSize; ++lane) {
    const auto* own = static_cast<const MmaOperand*>(operands[lane]);
    for (int half = 0; half < 2; ++half) {
      for (int reg = 0; reg < 4; ++reg) {
        a[mma_a_row(lane, reg)][mma_a_column(lane, reg, half)] = bf16_half(own->a[reg], half);
      }
      for (int reg = 0; reg < 2; ++reg) {
        b[mma_b_row(lane, reg, half)][mma_b_column(lane)] = bf16_half(own->b[reg], half);
      }
    }
  }
  for (int lane = 0; lane < warpSize; ++lane) {
    auto* own = static_cast<MmaOperand*>(operands[lane]);
    for (int reg = 0; reg < 4; ++reg) {
      float sum = own->d[reg];
      for (int k = 0; k < 16; ++k)
        sum += a[mma_d_row(lane, reg)][k] * b[k][mma_d_column(lane, reg)];
      own->d[reg] = sum;
    }
  }
}

/// d += a b, one tile a warp.
inline void mma_m16n8k16(float (&d)[4],
                         const std::uint32_t (&a)[4],
                         const std::uint32_t (&b)[2],
                         std::source_location where = std::source_location::current()) {
  MmaOperand operand{d, a, b};
  meet_warp(0xFFFFFFFFu, &operand, &multiply_m16n8k16, MemoryOrder::kNone, where);
}

}  // namespace pecan::emulation
