#pragma once
/// y[t] += b, and the column sums that are b's gradient.
///
/// Forward: a block a row. Bytes: 2 s an element of s bytes, 1 flop. Backward: a thread a column of
/// a part of neighbouring rows. Bytes: s an element, and 4 a column and part; 1 flop. Intensity
/// below 0.5 flops a byte: memory bounds both.

#include "kernels/norm.cuh"

namespace pecan::kernels {

template <typename T, typename B>
__global__ void __launch_bounds__(kRowBlock) add_bias_kernel(const B* b_O, Index width, T* y_TO) {
  T* y = y_TO + Index(blockIdx.x) * width;
  for (Index o = threadIdx.x; o < width; o += kRowBlock) put(y[o], wide(y[o]) + wide(b_O[o]));
}

template <typename T, typename M = MathOf<T>>
__global__ void __launch_bounds__(kRowBlock)
    bias_backward_kernel(const T* dy_TO, Index rows, Index rows_each, Index width, M* parts_PO) {
  const Index o = Index(blockIdx.x) * kRowBlock + threadIdx.x;
  if (o >= width) return;
  const Index first = Index(blockIdx.y) * rows_each;
  const Index end = min(rows, first + rows_each);
  M sum = 0;
  for (Index t = first; t < end; ++t) sum += wide(dy_TO[t * width + o]);
  parts_PO[blockIdx.y * width + o] = sum;
}

}  // namespace pecan::kernels
