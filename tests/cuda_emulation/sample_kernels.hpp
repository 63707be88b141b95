#pragma once
/// Small kernels for the emulation's own tests, compiled in each variant. Pointers are the
/// device's; everything runs on the default stream.

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace pecan::emulation::test {

/// Whether this variant has the checks.
bool is_checked();

/// One result of each function of a warp and lane, for one warp of 32.
struct WarpResults {
  int by_index;
  int up;
  int down;
  int by_xor;
  int up_in_eights;
  int down_in_eights;
  int index_in_sixteens;
  int xor_in_eights;
  unsigned ballot;
  int any;
  int all;
  int sum;
  int least;
  unsigned greatest;
  unsigned bits_and;
  unsigned bits_or;
  unsigned bits_xor;
  unsigned equal_lanes;
};
void run_warp_functions(WarpResults* results, const int* values);

/// Counts of threads with an odd value, one block of `size` threads; [count, or, and] of each.
void run_block_votes(int* votes, const int* values, unsigned size);

/// Writes at [linear block x linear thread] what the built-in variables say there.
struct Place {
  uint3 thread;
  uint3 block;
};
void run_places(Place* places, dim3 grid, dim3 block);

/// Sums before each element, of one block; as much dynamic shared memory as twice the block needs
/// and `spare_bytes` more.
void run_prefix_sums(int* sums, const int* values, unsigned size, std::size_t spare_bytes);

/// c[m x n] = 2 a[m x k] b[n x k]^T on tensor cores; sizes are multiples of 16.
void run_tensor_cores(
    float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int m, int n, int k);

/// One mma.m16n8k16: what each of 32 lanes holds, in its registers.
struct MmaRegisters {
  std::uint32_t a[4];
  std::uint32_t b[2];
  float d[4];
};
void run_mma(MmaRegisters* lanes);

/// A histogram by atomics, then its least and greatest value and the number of threads.
void run_atomics(int* bins, unsigned* extremes, const int* values, int size);

/// y = a b + c with one rounding.
void run_fused(__nv_bfloat16* y,
               const __nv_bfloat16* a,
               const __nv_bfloat16* b,
               const __nv_bfloat16* c,
               int size);

/// y = x; a parameter of any type that converts.
void run_copy(float* y, const float* x, int size, cudaStream_t stream);
/// Reads with a distance of `stride` floats between lanes.
void run_strided(float* y, const float* x, int stride);
/// Transposes 32 x 32 floats through shared memory with rows of 32 or of 33.
void run_transpose(float* y, const float* x, bool is_padded);
/// Writes outside of its memory, so that the device is lost where there are checks.
void run_fault(float* y, int size);
/// What the runtime says of a launch of this shape.
cudaError_t try_launch(dim3 grid, dim3 block, std::size_t shared_bytes);

}  // namespace pecan::emulation::test
