#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <mma.h>
#include <pecan_emulation/ptx.hpp>

#include "launch.cuh"
#include "sample_kernels.hpp"

namespace pecan::emulation::test {
namespace {

constexpr unsigned kFullMask = 0xFFFFFFFFu;

__global__ void warp_functions(WarpResults* results, const int* values) {
  const int value = values[threadIdx.x];
  const auto bits = static_cast<unsigned>(value);
  WarpResults r{};
  r.by_index = __shfl_sync(kFullMask, value, 7);
  r.up = __shfl_up_sync(kFullMask, value, 3);
  r.down = __shfl_down_sync(kFullMask, value, 5);
  r.by_xor = __shfl_xor_sync(kFullMask, value, 6);
  r.up_in_eights = __shfl_up_sync(kFullMask, value, 2, 8);
  r.down_in_eights = __shfl_down_sync(kFullMask, value, 3, 8);
  r.index_in_sixteens = __shfl_sync(kFullMask, value, 18, 16);
  r.xor_in_eights = __shfl_xor_sync(kFullMask, value, 5, 8);
  r.ballot = __ballot_sync(kFullMask, value % 2);
  r.any = __any_sync(kFullMask, value == 4);
  r.all = __all_sync(kFullMask, value < 90);
  r.sum = __reduce_add_sync(kFullMask, value);
  r.least = __reduce_min_sync(kFullMask, value);
  r.greatest = __reduce_max_sync(kFullMask, bits);
  r.bits_and = __reduce_and_sync(kFullMask, bits);
  r.bits_or = __reduce_or_sync(kFullMask, bits);
  r.bits_xor = __reduce_xor_sync(kFullMask, bits);
  r.equal_lanes = __match_any_sync(kFullMask, value % 5);
  results[threadIdx.x] = r;
}

__global__ void block_votes(int* votes, const int* values) {
  const int is_odd = values[threadIdx.x] % 2;
  const int count = __syncthreads_count(is_odd);
  const int some = __syncthreads_or(is_odd);
  const int every = __syncthreads_and(is_odd);
  votes[3 * threadIdx.x] = count;
  votes[3 * threadIdx.x + 1] = some;
  votes[3 * threadIdx.x + 2] = every;
}

__global__ void places(Place* all) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  all[block * (blockDim.x * blockDim.y * blockDim.z) + thread] = {threadIdx, blockIdx};
}

/// Doubles the distance at each turn, from one half of the memory to the other.
__global__ void prefix_sums(int* sums, const int* values) {
  int* from = reinterpret_cast<int*>(dynamic_smem);
  int* to = from + blockDim.x;
  const unsigned i = threadIdx.x;
  from[i] = i == 0 ? 0 : values[i - 1];
  __syncthreads();
  for (unsigned distance = 1; distance < blockDim.x; distance *= 2) {
    to[i] = from[i] + (i >= distance ? from[i - distance] : 0);
    __syncthreads();
    int* const other = from;
    from = to;
    to = other;
  }
  sums[i] = from[i];
}

__global__ void tensor_cores(
    float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int n, int k) {
  namespace wmma = nvcuda::wmma;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> a_part;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> b_part;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  wmma::fill_fragment(sum, 0.0f);
  const int row = static_cast<int>(blockIdx.y) * 16;
  const int column =
      static_cast<int>(blockIdx.x * (blockDim.x / warpSize) + threadIdx.x / warpSize) * 16;
  for (int start = 0; start < k; start += 16) {
    wmma::load_matrix_sync(a_part, a + row * k + start, static_cast<unsigned>(k));
    wmma::load_matrix_sync(b_part, b + column * k + start, static_cast<unsigned>(k));
    wmma::mma_sync(sum, a_part, b_part, sum);
  }
  for (float& element : sum.x) element *= 2.0f;
  wmma::store_matrix_sync(c + row * n + column, sum, static_cast<unsigned>(n), wmma::mem_row_major);
}

__global__ void mma(MmaRegisters* lanes) {
  MmaRegisters own = lanes[threadIdx.x];
  mma_m16n8k16(own.d, own.a, own.b);
  lanes[threadIdx.x] = own;
}

__global__ void atomics(int* bins, unsigned* extremes, const int* values, int size) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= size) return;
  const int value = values[i];
  atomicAdd(&bins[value], 1);
  atomicMin(&extremes[0], static_cast<unsigned>(value));
  atomicMax(&extremes[1], static_cast<unsigned>(value));
  unsigned seen = 0;
  unsigned expected = 0;
  do {
    expected = seen;
    seen = atomicCAS(&extremes[2], expected, expected + 1);
  } while (seen != expected);
}

__global__ void fused(__nv_bfloat16* y,
                      const __nv_bfloat16* a,
                      const __nv_bfloat16* b,
                      const __nv_bfloat16* c,
                      int size) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < size) y[i] = __hfma(a[i], b[i], c[i]);
}

template <typename T>
__global__ void copy(T* y, const T* x, long size) {
  const auto i = static_cast<long>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < size) y[i] = x[i];
}

__global__ void strided(float* y, const float* x, int stride) {
  y[threadIdx.x] = x[static_cast<int>(threadIdx.x) * stride];
}

template <int kRow>
__global__ void transpose(float* y, const float* x) {
  __shared__ float tile[32][kRow];
  tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
  __syncthreads();
  y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}

__global__ void fault(float* y, int size) {
  y[size] = 1.0f;
}

}  // namespace

bool is_checked() {
#ifdef __SANITIZE_THREAD__
  return true;
#else
  return false;
#endif
}

void run_warp_functions(WarpResults* results, const int* values) {
  cuda::launch(warp_functions, 1, 32, 0, nullptr, results, values);
}
void run_block_votes(int* votes, const int* values, unsigned size) {
  cuda::launch(block_votes, 1, size, 0, nullptr, votes, values);
}
void run_places(Place* all, dim3 grid, dim3 block) {
  cuda::launch(places, grid, block, 0, nullptr, all);
}
void run_prefix_sums(int* sums, const int* values, unsigned size, std::size_t spare_bytes) {
  cuda::launch(prefix_sums, 1, size, 2 * size * sizeof(int) + spare_bytes, nullptr, sums, values);
}
void run_tensor_cores(
    float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int m, int n, int k) {
  const dim3 grid(static_cast<unsigned>(n / 32), static_cast<unsigned>(m / 16));
  cuda::launch(tensor_cores, grid, 64, 0, nullptr, c, a, b, n, k);
}
void run_mma(MmaRegisters* lanes) {
  cuda::launch(mma, 1, 32, 0, nullptr, lanes);
}
void run_atomics(int* bins, unsigned* extremes, const int* values, int size) {
  const auto num_blocks = static_cast<unsigned>((size + 63) / 64);
  cuda::launch(atomics, num_blocks, 64, 0, nullptr, bins, extremes, values, size);
}
void run_fused(__nv_bfloat16* y,
               const __nv_bfloat16* a,
               const __nv_bfloat16* b,
               const __nv_bfloat16* c,
               int size) {
  cuda::launch(fused, static_cast<unsigned>((size + 63) / 64), 64, 0, nullptr, y, a, b, c, size);
}
void run_copy(float* y, const float* x, int size, cudaStream_t stream) {
  // int becomes long, as in any call.
  cuda::launch(copy<float>, static_cast<unsigned>((size + 63) / 64), 64, 0, stream, y, x, size);
}
void run_strided(float* y, const float* x, int stride) {
  cuda::launch(strided, 1, 32, 0, nullptr, y, x, stride);
}
void run_transpose(float* y, const float* x, bool is_padded) {
  cuda::launch(is_padded ? transpose<33> : transpose<32>, 1, dim3(32, 32), 0, nullptr, y, x);
}
void run_fault(float* y, int size) {
  cuda::launch(fault, 1, 1, 0, nullptr, y, size);
}
cudaError_t try_launch(dim3 grid, dim3 block, std::size_t shared_bytes) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  return cudaLaunchKernelEx(&config, strided, nullptr, nullptr, 1);
}

}  // namespace pecan::emulation::test
