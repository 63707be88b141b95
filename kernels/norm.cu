#include "kernels/norm.cuh"

namespace pecan::kernels {
namespace {

/// One thread a column. Block: 128 threads. Bytes: 4 (parts + 2) a column of f32, a flop for every
/// 4 of them: memory bounds it.
template <typename M>
__global__ void __launch_bounds__(kRowBlock)
    add_parts_kernel(const M* parts, Index num_parts, Index width, M* to) {
  const Index c = Index(blockIdx.x) * kRowBlock + threadIdx.x;
  if (c >= width) return;
  M sum = 0;
  for (Index p = 0; p < num_parts; ++p) sum += parts[p * width + c];
  to[c] += sum;
}

template <typename M>
void add(const Context& ctx, const M* parts, Index num_parts, Index width, M* to) {
  launch(add_parts_kernel<M>,
         blocks_of(width, kRowBlock),
         kRowBlock,
         0,
         stream_of(ctx),
         parts,
         num_parts,
         width,
         to);
}

}  // namespace

void add_parts(const Context& ctx, const float* parts, Index num_parts, Index width, float* to) {
  add(ctx, parts, num_parts, width, to);
}

void add_parts(const Context& ctx, const double* parts, Index num_parts, Index width, double* to) {
  add(ctx, parts, num_parts, width, to);
}

}  // namespace pecan::kernels
