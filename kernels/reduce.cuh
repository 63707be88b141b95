#pragma once
/// A tensor to one number: parts of neighbouring elements by a block each, and the parts by one
/// block.
///
/// Block: 256 threads; shared: 64 bytes. Bytes: those of the tensor once, and 16 a part. Flops: 1
/// or 2 an element in f64, of which a device for training has enough (0.25 or 0.5 flops a byte):
/// memory bounds them.

#include <algorithm>

#include <pecan/ops/kernel_plan.hpp>

#include "kernels/common.cuh"

namespace pecan::kernels {

constexpr int kReduceThreads = 256;
/// Fixed, so that sums do not depend on the device; the plan of the workspace has it too.
constexpr Index kMostReduceParts = ops::kMaxReduceParts;
constexpr Index kLeastOfPart = 4096;

struct Value {
  __device__ double operator()(double x) const { return x; }
};
struct Square {
  __device__ double operator()(double x) const { return x * x; }
};
struct Magnitude {
  __device__ double operator()(double x) const { return fabs(x); }
};
/// 1 for NaN and infinity.
struct NonFinite {
  __device__ double operator()(double x) const { return x - x == 0 ? 0 : 1; }
};

/// out[block] = combination of f of the block's `each` elements; 0 of none.
template <typename T, typename F, typename Combine>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_kernel(const T* x, Index count, Index each, double* out) {
  const Index begin = Index(blockIdx.x) * each;
  const Index end = min(count, begin + each);
  double value = 0;
  for (Index i = begin + threadIdx.x; i < end; i += kReduceThreads)
    value = Combine{}(value, F{}(double(wide(x[i]))));
  value = group_reduce<kReduceThreads>(value, Combine{});
  if (threadIdx.x == 0) out[blockIdx.x] = value;
}

/// Enqueues the reduction of x into *result, in device memory.
template <typename F, typename Combine, typename T>
void reduce_to(Context& ctx, const T* x, Index count, double* result) {
  const Index each = std::max(kLeastOfPart, (count + kMostReduceParts - 1) / kMostReduceParts);
  const Index parts = std::max<Index>(1, (count + each - 1) / each);
  Scratch scratch(ctx);
  double* of_part = scratch.take<double>(parts);
  launch(reduce_kernel<T, F, Combine>,
         unsigned(parts),
         kReduceThreads,
         0,
         stream_of(ctx),
         x,
         count,
         each,
         of_part);
  launch(reduce_kernel<double, Value, Combine>,
         1U,
         kReduceThreads,
         0,
         stream_of(ctx),
         static_cast<const double*>(of_part),
         parts,
         parts,
         result);
}

/// Waits for `count` doubles of the device, which all that was enqueued before may have made.
inline void fetch(const Context& ctx, const double* from, Index count, double* to) {
  check(cudaMemcpyAsync(
            to, from, std::size_t(count) * sizeof(double), cudaMemcpyDeviceToHost, stream_of(ctx)),
        "cudaMemcpyAsync to the host");
  check(cudaStreamSynchronize(stream_of(ctx)), "cudaStreamSynchronize");
}

}  // namespace pecan::kernels
