#include <array>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <vector>

#include <cooperative_groups.h>
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <mma.h>
#include <pecan_emulation/control.hpp>
#include <pecan_emulation/ptx.hpp>
#include <sys/mman.h>

#include "launch.cuh"
#include "planted_bugs.hpp"

namespace pecan::emulation::test {
namespace {

constexpr int kSize = 64;
constexpr unsigned kFullMask = 0xFFFFFFFFu;

__device__ float* dynamic_floats() {
  return reinterpret_cast<float*>(dynamic_smem);
}

// Bounds and lifetime.

__global__ void write_up_to(float* y, int last) {
  const int i = static_cast<int>(threadIdx.x);
  if (i <= last) y[i] = 1.0f;
}
__global__ void read_neighbour(float* y, const float* x) {
  y[threadIdx.x] = x[threadIdx.x + 1];
}
__global__ void write_before(float* y) {
  y[static_cast<int>(threadIdx.x) - 1] = 1.0f;
}
__global__ void overrun_dynamic(float* y) {
  float* shared = dynamic_floats();
  shared[threadIdx.x] = 1.0f;
  if (threadIdx.x == 0) shared[kSize] = 2.0f;
  __syncthreads();
  y[threadIdx.x] = shared[threadIdx.x];
}
__global__ void overrun_static(float* y) {
  __shared__ float shared[kSize];
  shared[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = shared[threadIdx.x];
}
__global__ void overrun_local(float* y, int index) {
  const float local[4] = {1, 2, 3, 4};
  y[0] = local[index];
}
__global__ void fill(float* y, float value, int size) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < size) y[i] = value;
}
__global__ void copy(float* y, const float* x, int size) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < size) y[i] = x[i];
}
__global__ void misaligned_vector(float4* y, const float* x) {
  *y = *reinterpret_cast<const float4*>(x + 1);
}
__global__ void aligned_vector(float4* y, const float* x) {
  *y = *reinterpret_cast<const float4*>(x + 4);
}
/// Copies 16 x 16 elements; `offset` elements from where a matrix may begin.
__global__ void copy_matrix(float* y, const float* x, int offset) {
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> matrix;
  nvcuda::wmma::load_matrix_sync(matrix, x + offset, 16, nvcuda::wmma::mem_row_major);
  nvcuda::wmma::store_matrix_sync(y, matrix, 16, nvcuda::wmma::mem_row_major);
}
__global__ void borrow_local(float* y) {
  __shared__ const float* borrowed;
  const float own = static_cast<float>(threadIdx.x);
  if (threadIdx.x == 0) borrowed = &own;
  __syncthreads();
  y[threadIdx.x] = *borrowed;
  __syncthreads();
}

// Memory without content.

__global__ void read_half_written(float* y) {
  __shared__ float shared[kSize];
  if (threadIdx.x < kSize / 2) shared[threadIdx.x] = 0;
  __syncthreads();
  y[threadIdx.x] = shared[threadIdx.x];
}
__global__ void use_without_wait(float* y, const float* x) {
  float* shared = dynamic_floats() + 4 * threadIdx.x;
  copy_later(shared, x + 4 * threadIdx.x, 16);
  close_copy_group();
  __syncthreads();
  for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = shared[i];
}
__global__ void use_after_wait(float* y, const float* x) {
  float* shared = dynamic_floats() + 4 * threadIdx.x;
  copy_later(shared, x + 4 * threadIdx.x, 16);
  close_copy_group();
  wait_for_copies(0);
  __syncthreads();
  for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = shared[i];
}

// Races.

__global__ void no_barrier_before_read(float* y) {
  __shared__ float shared[kSize];
  shared[threadIdx.x] = 1.0f;
  y[threadIdx.x] = shared[kSize - 1 - threadIdx.x];
}
__global__ void barrier_before_read(float* y) {
  __shared__ float shared[kSize];
  shared[threadIdx.x] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = shared[kSize - 1 - threadIdx.x];
}
__global__ void no_barrier_before_write(float* y) {
  __shared__ float shared[kSize];
  shared[threadIdx.x] = 1.0f;
  __syncthreads();
  const float value = shared[kSize - 1 - threadIdx.x];
  shared[threadIdx.x] = value;
  y[threadIdx.x] = value;
}
__global__ void last_changes_what_all_read(float* y) {
  __shared__ float shared;
  if (threadIdx.x == 0) shared = 1.0f;
  __syncthreads();
  const float value = shared;
  if (threadIdx.x == kSize - 1) shared = value + 1.0f;
  y[threadIdx.x] = value;
}
__global__ void barrier_before_write(float* y) {
  __shared__ float shared[kSize];
  shared[threadIdx.x] = 1.0f;
  __syncthreads();
  const float value = shared[kSize - 1 - threadIdx.x];
  __syncthreads();
  shared[threadIdx.x] = value;
  y[threadIdx.x] = value;
}
__global__ void no_syncwarp(float* y) {
  __shared__ float shared[warpSize];
  shared[threadIdx.x] = 1.0f;
  y[threadIdx.x] = shared[threadIdx.x ^ 1];
}
__global__ void shuffle_orders_nothing(float* y) {
  __shared__ float shared[warpSize];
  shared[threadIdx.x] = 1.0f;
  const float other = __shfl_xor_sync(kFullMask, 1.0f, 1);
  y[threadIdx.x] = shared[threadIdx.x ^ 1] + other;
}
__global__ void with_syncwarp(float* y) {
  __shared__ float shared[warpSize];
  shared[threadIdx.x] = 1.0f;
  __syncwarp();
  y[threadIdx.x] = shared[threadIdx.x ^ 1];
}
__global__ void syncwarp_for_two_warps(float* y) {
  __shared__ float shared[kSize];
  shared[threadIdx.x] = 1.0f;
  __syncwarp();
  y[threadIdx.x] = shared[kSize - 1 - threadIdx.x];
}
__global__ void count_plainly(int* count) {
  if (threadIdx.x == 0) *count = *count + 1;
}
__global__ void count_atomically(int* count) {
  if (threadIdx.x == 0) atomicAdd(count, 1);
}
__global__ void count_both_ways(int* count) {
  if (threadIdx.x % 2 == 0) {
    atomicAdd(count, 1);
  } else {
    *count = 1;
  }
}
__global__ void share_a_word(int* y) {
  y[threadIdx.x / 2] = static_cast<int>(threadIdx.x);
}
__global__ void neighbours_of_two_bytes(__nv_bfloat16* y) {
  y[threadIdx.x] = __float2bfloat16(1.0f);
}
__global__ void neighbours_of_one_byte(unsigned char* y) {
  y[threadIdx.x] = 1;
}
__global__ void overlapping_blocks(float* y) {
  y[blockIdx.x * (blockDim.x - 1) + threadIdx.x] = static_cast<float>(blockIdx.x);
}
__global__ void other_block_reads(float* y) {
  y[blockIdx.x] = 1.0f;
  if (blockIdx.x > 0) y[kSize / 2 + blockIdx.x] = y[blockIdx.x - 1];
}

// Barriers and warps.

__global__ void barrier_in_branch(float* y) {
  if (threadIdx.x < warpSize) __syncthreads();
  y[threadIdx.x] = 1.0f;
}
__global__ void unlike_barriers(float* y) {
  if (threadIdx.x < warpSize) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1.0f;
}
__global__ void end_before_barrier(float* y, int size) {
  if (static_cast<int>(threadIdx.x) >= size) return;
  y[threadIdx.x] = 1.0f;
  __syncthreads();
}
__global__ void barrier_for_all(float* y, int size) {
  if (static_cast<int>(threadIdx.x) < size) y[threadIdx.x] = 1.0f;
  __syncthreads();
}
__global__ void barrier_against_shuffle(float* y) {
  float value = 1.0f;
  if (threadIdx.x == 0) {
    __syncthreads();
  } else {
    value = __shfl_sync(kFullMask, value, 0);
    __syncthreads();
  }
  y[threadIdx.x] = value;
}
__global__ void shuffle_in_branch(float* y) {
  float value = 1.0f;
  if (threadIdx.x < 16) value += __shfl_xor_sync(kFullMask, value, 1);
  y[threadIdx.x] = value;
}
__global__ void unlike_shuffles(float* y) {
  float value = 1.0f;
  if (threadIdx.x < 16) {
    value += __shfl_xor_sync(kFullMask, value, 1);
  } else {
    value += __shfl_down_sync(kFullMask, value, 1);
  }
  y[threadIdx.x] = value;
}
__global__ void shuffle_from_absent(float* y) {
  float value = 1.0f;
  if (threadIdx.x < 16) value = __shfl_sync(0xFFFFu, value, 20);
  y[threadIdx.x] = value;
}
__global__ void shuffle_among_half(float* y) {
  float value = 1.0f;
  if (threadIdx.x < 16) value = __shfl_sync(0xFFFFu, value, 12);
  y[threadIdx.x] = value;
}
__global__ void shuffle_in_rest_of_block(float* y) {
  y[threadIdx.x] = __shfl_xor_sync(kFullMask, 1.0f, 16);
}
__global__ void lane_outside_mask(float* y) {
  y[threadIdx.x] = __shfl_xor_sync(0x7FFFFFFFu, 1.0f, 1);
}
__global__ void unlike_masks(float* y) {
  const unsigned mask = threadIdx.x == 3 ? kFullMask : 0x7FFFFFFFu;
  y[threadIdx.x] = threadIdx.x == 31 ? 0.0f : __shfl_xor_sync(mask, 1.0f, 1);
}
__global__ void tile_of_sixteen(float* y) {
  namespace groups = cooperative_groups;
  const auto tile = groups::tiled_partition<16>(groups::this_thread_block());
  float sum = 1.0f;
  for (unsigned distance = 8; distance > 0; distance /= 2) sum += tile.shfl_xor(sum, distance);
  y[threadIdx.x] = sum;
}
__global__ void give_up(const int* flag) {
  if (*flag == 1) __trap();
}
__global__ void overflow(int* y) {
  y[0] = y[0] + 2147483647;
}
__global__ void shift_too_far(int* y, int distance) {
  y[0] = 1 << distance;
}

// The host's side.

/// Device memory of floats, all 1 or without content.
enum class Filled { kNo, kYes };
float* device_floats(int size, Filled filled = Filled::kYes) {
  void* address = nullptr;
  cudaMalloc(&address, static_cast<std::size_t>(size) * sizeof(float));
  if (filled == Filled::kYes) {
    const std::vector<float> ones(static_cast<std::size_t>(size), 1.0f);
    cudaMemcpy(address, ones.data(), ones.size() * sizeof(float), cudaMemcpyHostToDevice);
  }
  return static_cast<float*>(address);
}
int* device_ints() {
  return reinterpret_cast<int*>(device_floats(kSize));
}
/// While it lives, copies read pageable memory by themselves.
struct OwnReads {
  OwnReads() { set_reads_pageable(true); }
  ~OwnReads() { set_reads_pageable(false); }
  OwnReads(const OwnReads&) = delete;
  OwnReads& operator=(const OwnReads&) = delete;
};

float* pinned_floats() {
  void* address = nullptr;
  cudaMallocHost(&address, kSize * sizeof(float));
  return static_cast<float*>(address);
}

struct Streams {
  cudaStream_t first = nullptr;
  cudaStream_t second = nullptr;
  cudaEvent_t event = nullptr;
  Streams() {
    cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  }
};

constexpr std::size_t kFloatBytes = kSize * sizeof(float);
volatile float observed = 0;

/// One block of 64 threads.
template <typename... Parameters, typename... Arguments>
void run_block(void (*kernel)(Parameters...), Arguments... arguments) {
  cuda::launch(kernel, 1, kSize, 0, nullptr, arguments...);
}
template <typename... Parameters, typename... Arguments>
void run_warp(void (*kernel)(Parameters...), Arguments... arguments) {
  cuda::launch(kernel, 1, warpSize, 0, nullptr, arguments...);
}

void copies_on_two_streams(bool records_late, bool waits) {
  const Streams streams;
  float* x = device_floats(kSize);
  float* y = device_floats(kSize);
  if (!records_late) cudaEventRecord(streams.event, streams.first);
  cuda::launch(fill, 1, kSize, 0, streams.first, x, 2.0f, kSize);
  if (records_late) cudaEventRecord(streams.event, streams.first);
  if (waits) cudaStreamWaitEvent(streams.second, streams.event, 0);
  cuda::launch(copy, 1, kSize, 0, streams.second, y, x, kSize);
}

void multiply_grouped(bool pointers_on_device, bool aligned) {
  cublasHandle_t handle = nullptr;
  cublasCreate(&handle);
  float* memory = device_floats(4 * kSize);
  const int offset = aligned ? 4 : 1;
  const std::array<const void*, 3> pointers{memory, memory + kSize, memory + 2 * kSize + offset};
  void* device_pointers = nullptr;
  cudaMalloc(&device_pointers, sizeof pointers);
  cudaMemcpy(device_pointers, pointers.data(), sizeof pointers, cudaMemcpyHostToDevice);
  const void* const* given =
      pointers_on_device ? static_cast<const void* const*>(device_pointers) : pointers.data();
  const cublasOperation_t plain[] = {CUBLAS_OP_N};
  const int four[] = {4};
  const int one_product[] = {1};
  const float one[] = {1.0f};
  const float zero[] = {0.0f};
  cublasGemmGroupedBatchedEx(handle,
                             plain,
                             plain,
                             four,
                             four,
                             four,
                             one,
                             given,
                             CUDA_R_32F,
                             four,
                             given + 1,
                             CUDA_R_32F,
                             four,
                             zero,
                             const_cast<void* const*>(given + 2),
                             CUDA_R_32F,
                             four,
                             1,
                             one_product,
                             CUBLAS_COMPUTE_32F);
  cublasDestroy(handle);
}

}  // namespace

const std::vector<PlantedBug>& planted_bugs() {
  static const std::vector<PlantedBug> all = {
      {"written one past an allocation",
       "memory",
       [] { run_block(write_up_to, device_floats(60), 60); }},
      {"an allocation written to its end",
       "",
       [] { run_block(write_up_to, device_floats(60), 59); }},
      {"written before an allocation",
       "memory",
       [] { run_block(write_before, device_floats(kSize)); }},
      {"read one past an allocation",
       "memory",
       [] { run_block(read_neighbour, device_floats(kSize), device_floats(kSize)); }},
      {"used after cudaFree",
       "memory",
       [] {
         float* x = device_floats(kSize);
         cudaFree(x);
         run_block(fill, x, 1.0f, kSize);
       }},
      {"freed twice",
       "memory",
       [] {
         float* x = device_floats(kSize);
         cudaFree(x);
         cudaFree(x);
       }},
      {"freed from the middle", "memory", [] { cudaFree(device_floats(kSize) + 1); }},
      {"written past dynamic shared memory",
       "memory",
       [] { cuda::launch(overrun_dynamic, 1, kSize, kFloatBytes, nullptr, device_floats(kSize)); }},
      {"written past static shared memory",
       "undefined",
       [] { run_block(overrun_static, device_floats(kSize)); }},
      {"index outside of a local array",
       "undefined",
       [] { cuda::launch(overrun_local, 1, 1, 0, nullptr, device_floats(kSize), 4); }},
      {"vector at an odd address",
       "alignment",
       [] {
         run_warp(misaligned_vector,
                  reinterpret_cast<float4*>(device_floats(kSize)),
                  device_floats(kSize));
       }},
      {"vector at its own address",
       "",
       [] {
         cuda::launch(aligned_vector,
                      1,
                      1,
                      0,
                      nullptr,
                      reinterpret_cast<float4*>(device_floats(kSize)),
                      device_floats(kSize));
       }},
      {"matrix of tensor cores between two multiples of 32 bytes",
       "alignment",
       [] { run_warp(copy_matrix, device_floats(256), device_floats(264), 4); }},
      {"matrix of tensor cores at a multiple of 32 bytes",
       "",
       [] { run_warp(copy_matrix, device_floats(256), device_floats(264), 8); }},
      {"local memory of another thread",
       "memory",
       [] { run_block(borrow_local, device_floats(kSize)); }},

      {"global memory without content",
       "uninitialised",
       [] { run_block(copy, device_floats(kSize), device_floats(kSize, Filled::kNo), kSize); }},
      {"shared memory without content",
       "uninitialised",
       [] { run_block(read_half_written, device_floats(kSize)); }},
      {"copy of memory without content",
       "uninitialised",
       [] {
         std::vector<float> host(kSize);
         cudaMemcpy(
             host.data(), device_floats(kSize, Filled::kNo), kFloatBytes, cudaMemcpyDeviceToHost);
       }},
      {"asynchronous copy without its wait",
       "uninitialised",
       [] {
         cuda::launch(use_without_wait,
                      1,
                      16,
                      kFloatBytes,
                      nullptr,
                      device_floats(kSize),
                      device_floats(kSize));
       }},
      {"asynchronous copy with its wait",
       "",
       [] {
         cuda::launch(use_after_wait,
                      1,
                      16,
                      kFloatBytes,
                      nullptr,
                      device_floats(kSize),
                      device_floats(kSize));
       }},

      {"no barrier between write and read",
       "race",
       [] { run_block(no_barrier_before_read, device_floats(kSize)); }},
      {"a barrier between write and read",
       "",
       [] { run_block(barrier_before_read, device_floats(kSize)); }},
      {"no barrier between read and write",
       "race",
       [] { run_block(no_barrier_before_write, device_floats(kSize)); }},
      {"the last one changes what all read",
       "race",
       [] { run_block(last_changes_what_all_read, device_floats(kSize)); }},
      {"a barrier between read and write",
       "",
       [] { run_block(barrier_before_write, device_floats(kSize)); }},
      {"no __syncwarp", "race", [] { run_warp(no_syncwarp, device_floats(kSize)); }},
      {"a shuffle for a __syncwarp",
       "race",
       [] { run_warp(shuffle_orders_nothing, device_floats(kSize)); }},
      {"__syncwarp", "", [] { run_warp(with_syncwarp, device_floats(kSize)); }},
      {"__syncwarp for two warps",
       "race",
       [] { run_block(syncwarp_for_two_warps, device_floats(kSize)); }},
      {"blocks count without atomics",
       "race",
       [] { cuda::launch(count_plainly, 8, warpSize, 0, nullptr, device_ints()); }},
      {"blocks count with atomics",
       "",
       [] { cuda::launch(count_atomically, 8, warpSize, 0, nullptr, device_ints()); }},
      {"atomic and plain access meet", "race", [] { run_warp(count_both_ways, device_ints()); }},
      {"two threads write a word", "race", [] { run_warp(share_a_word, device_ints()); }},
      {"neighbours of two bytes",
       "",
       [] {
         run_warp(neighbours_of_two_bytes, reinterpret_cast<__nv_bfloat16*>(device_floats(kSize)));
       }},
      {"neighbours of one byte",
       "",
       [] {
         run_warp(neighbours_of_one_byte, reinterpret_cast<unsigned char*>(device_floats(kSize)));
       }},
      {"blocks overlap",
       "race",
       [] { cuda::launch(overlapping_blocks, 4, 8, 0, nullptr, device_floats(kSize)); }},
      {"a block reads what another writes",
       "race",
       [] { cuda::launch(other_block_reads, 8, 1, 0, nullptr, device_floats(kSize)); }},

      {"barrier in a branch",
       "barrier",
       [] { run_block(barrier_in_branch, device_floats(kSize)); }},
      {"two barriers instead of one",
       "barrier",
       [] { run_block(unlike_barriers, device_floats(kSize)); }},
      {"threads end before the barrier",
       "barrier",
       [] { run_block(end_before_barrier, device_floats(kSize), 40); }},
      {"threads without work come to the barrier",
       "",
       [] { run_block(barrier_for_all, device_floats(kSize), 40); }},
      {"barrier against shuffle",
       "deadlock",
       [] { run_block(barrier_against_shuffle, device_floats(kSize)); }},
      {"shuffle in a branch", "warp", [] { run_warp(shuffle_in_branch, device_floats(kSize)); }},
      {"different shuffles meet", "warp", [] { run_warp(unlike_shuffles, device_floats(kSize)); }},
      {"shuffle from an absent lane",
       "warp",
       [] { run_warp(shuffle_from_absent, device_floats(kSize)); }},
      {"shuffle among half of the lanes",
       "",
       [] { run_warp(shuffle_among_half, device_floats(kSize)); }},
      {"full mask in a warp of eight",
       "warp",
       [] { cuda::launch(shuffle_in_rest_of_block, 1, 40, 0, nullptr, device_floats(kSize)); }},
      {"lane outside of its mask",
       "warp",
       [] { run_warp(lane_outside_mask, device_floats(kSize)); }},
      {"lanes with unlike masks", "warp", [] { run_warp(unlike_masks, device_floats(kSize)); }},
      {"tiles of sixteen lanes", "", [] { run_block(tile_of_sixteen, device_floats(kSize)); }},
      {"__trap",
       "trap",
       [] {
         int* flag = device_ints();
         const int one = 1;
         cudaMemcpy(flag, &one, sizeof one, cudaMemcpyHostToDevice);
         run_warp(give_up, flag);
       }},
      {"signed overflow",
       "undefined",
       [] { cuda::launch(overflow, 1, 1, 0, nullptr, device_ints()); }},
      {"shift by too much",
       "undefined",
       [] { cuda::launch(shift_too_far, 1, 1, 0, nullptr, device_ints(), 32); }},

      {"streams: read without waiting", "stream race", [] { copies_on_two_streams(true, false); }},
      {"streams: event recorded too early",
       "stream race",
       [] { copies_on_two_streams(false, true); }},
      {"streams: event recorded in time", "", [] { copies_on_two_streams(true, true); }},
      {"streams: written while read",
       "stream race",
       [] {
         const Streams streams;
         float* x = device_floats(kSize);
         cuda::launch(copy, 1, kSize, 0, streams.first, device_floats(kSize), x, kSize);
         cuda::launch(fill, 1, kSize, 0, streams.second, x, 2.0f, kSize);
       }},
      {"streams: freed while read",
       "stream race",
       [] {
         const Streams streams;
         float* x = device_floats(kSize);
         cuda::launch(copy, 1, kSize, 0, streams.first, device_floats(kSize), x, kSize);
         cudaFreeAsync(x, streams.second);
       }},
      {"streams: the host waits in between",
       "",
       [] {
         const Streams streams;
         float* x = device_floats(kSize);
         cuda::launch(copy, 1, kSize, 0, streams.first, device_floats(kSize), x, kSize);
         cudaStreamSynchronize(streams.first);
         cuda::launch(fill, 1, kSize, 0, streams.second, x, 2.0f, kSize);
       }},
      {"pinned memory read too early",
       "stream race",
       [] {
         const Streams streams;
         float* host = pinned_floats();
         cudaMemcpyAsync(
             host, device_floats(kSize), kFloatBytes, cudaMemcpyDeviceToHost, streams.first);
         observed = host[3];
       }},
      {"pinned memory read in time",
       "",
       [] {
         const Streams streams;
         float* host = pinned_floats();
         cudaMemcpyAsync(
             host, device_floats(kSize), kFloatBytes, cudaMemcpyDeviceToHost, streams.first);
         cudaEventRecord(streams.event, streams.first);
         cudaEventSynchronize(streams.event);
         observed = host[3];
       }},
      {"pinned memory filled again too early",
       "stream race",
       [] {
         const Streams streams;
         float* host = pinned_floats();
         for (int i = 0; i < kSize; ++i) host[i] = 0;
         cudaMemcpyAsync(
             device_floats(kSize), host, kFloatBytes, cudaMemcpyHostToDevice, streams.first);
         host[0] = 5.0f;
       }},
      {"pageable memory that the device reads by itself filled again too early",
       "race",
       [] {
         const OwnReads own_reads;
         const Streams streams;
         std::vector<float> host(kSize);
         cudaMemcpyAsync(
             device_floats(kSize), host.data(), kFloatBytes, cudaMemcpyHostToDevice, streams.first);
         host[kSize - 1] = 5.0f;
         cudaStreamSynchronize(streams.first);
       }},
      {"pageable memory that the device reads by itself unmapped too early",
       "race",
       [] {
         const OwnReads own_reads;
         const Streams streams;
         void* host =
             mmap(nullptr, kFloatBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
         cudaMemcpyAsync(
             device_floats(kSize), host, kFloatBytes, cudaMemcpyHostToDevice, streams.first);
         munmap(host, kFloatBytes);
         cudaStreamSynchronize(streams.first);
       }},
      {"pageable memory that the device reads by itself filled again in time",
       "",
       [] {
         const OwnReads own_reads;
         const Streams streams;
         std::vector<float> host(kSize);
         cudaMemcpyAsync(
             device_floats(kSize), host.data(), kFloatBytes, cudaMemcpyHostToDevice, streams.first);
         cudaStreamSynchronize(streams.first);
         host[kSize - 1] = 5.0f;
       }},
      {"pageable memory that is staged filled again at once",
       "",
       [] {
         const Streams streams;
         std::vector<float> host(kSize);
         cudaMemcpyAsync(
             device_floats(kSize), host.data(), kFloatBytes, cudaMemcpyHostToDevice, streams.first);
         host[kSize - 1] = 5.0f;
         cudaStreamSynchronize(streams.first);
       }},
      {"registered memory read too early",
       "stream race",
       [] {
         const Streams streams;
         static std::array<float, kSize> host;
         cudaHostRegister(host.data(), kFloatBytes, cudaHostRegisterDefault);
         cudaMemcpyAsync(
             host.data(), device_floats(kSize), kFloatBytes, cudaMemcpyDeviceToHost, streams.first);
         observed = host[3];
         cudaHostUnregister(host.data());
       }},
      {"registered memory read in time",
       "",
       [] {
         const Streams streams;
         static std::array<float, kSize> host;
         cudaHostRegister(host.data(), kFloatBytes, cudaHostRegisterDefault);
         cudaMemcpyAsync(
             host.data(), device_floats(kSize), kFloatBytes, cudaMemcpyDeviceToHost, streams.first);
         cudaStreamSynchronize(streams.first);
         observed = host[3];
         cudaHostUnregister(host.data());
       }},
      {"a host function reads what its stream has written",
       "",
       [] {
         const Streams streams;
         float* host = pinned_floats();
         cudaMemcpyAsync(
             host, device_floats(kSize), kFloatBytes, cudaMemcpyDeviceToHost, streams.first);
         cudaLaunchHostFunc(
             streams.first, [](void* data) { observed = static_cast<float*>(data)[3]; }, host);
       }},

      {"the host reads device memory", "memory", [] { observed = device_floats(kSize)[0]; }},
      {"a kernel reads host memory",
       "memory",
       [] {
         const auto host = std::make_unique<std::array<float, kSize>>();
         host->fill(1.0f);
         run_block(copy, device_floats(kSize), static_cast<const float*>(host->data()), kSize);
       }},
      {"copy in the wrong direction",
       "memory",
       [] {
         const std::vector<float> host(kSize);
         cudaMemcpy(device_floats(kSize), host.data(), kFloatBytes, cudaMemcpyDeviceToHost);
       }},
      {"copy past the end",
       "memory",
       [] {
         const std::vector<float> host(2 * kSize);
         cudaMemcpy(device_floats(kSize), host.data(), kFloatBytes + 4, cudaMemcpyHostToDevice);
       }},
      {"grouped products: pointers on the host", "library", [] { multiply_grouped(false, true); }},
      {"grouped products: odd matrix", "library", [] { multiply_grouped(true, false); }},
      {"grouped products", "", [] { multiply_grouped(true, true); }},
  };
  return all;
}

}  // namespace pecan::emulation::test
