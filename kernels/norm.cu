#include "kernels/norm.cuh"

namespace pecan::kernels {
namespace {

/// One thread a column. Block: 128 threads. Bytes: 4 (parts + 2) a column; 1 flop for 4 of them: memory bounds it.
__global__ void __launch_bounds__(kRowBlock)
    add_parts_kernel(const float* parts, Index num_parts, Index width, float* to) {
  const Index c = Index(blockIdx.x) * kRowBlock + threadIdx.x;
  if (c >= width) return;
  float sum = 0;
  for (Index p = 0; p < num_parts; ++p) sum += parts[p * width + c];
  to[c] += sum;
}

}  // namespace

void add_parts(
    const Context& ctx, const float* parts, Index num_parts, Index width, float* to) {
  launch(add_parts_kernel,
         blocks_of(width, kRowBlock),
         kRowBlock,
         0,
         stream_of(ctx),
         parts,
         num_parts,
         width,
         to);
}

}  // namespace pecan::kernels
