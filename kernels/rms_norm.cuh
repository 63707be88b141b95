#pragma once
/// y = x rstd w and its gradients; with s bytes an element of x.
///
/// Forward. Block: 128 threads, of a row each 32 or 128; shared: 16 bytes. Bytes: 2 s an element
/// (the second reading of a row comes from the cache) and 4 a row and column. Flops: 4 an element.
/// Backward. A block goes through a part of neighbouring rows and keeps the part's sums of dw in
/// shared memory, 4 bytes a column and row at a time. Bytes: 3 s an element (4 s if dx is added
/// to), and 4 a column and part. Flops: 11 an element. Intensity in bf16: 1 and 1.8 flops a byte:
/// memory bounds both.

#include "kernels/norm.cuh"

namespace pecan::kernels {

template <typename T, int kRowThreads, typename M = MathOf<T>>
__global__ void __launch_bounds__(kRowBlock) rms_norm_forward_kernel(
    const T* x_TH, const M* w_H, M eps, Index rows, Index width, T* y_TH, M* rstd_T) {
  using Row = RowOfThread<kRowThreads>;
  const Index t = Index(blockIdx.x) * Row::kRows + Row::slot();
  if (t >= rows) return;  // whole rows leave, and with them all who reduce together
  const T* x = x_TH + t * width;
  M squares = 0;
  for (Index h = Row::lane(); h < width; h += kRowThreads) squares += wide(x[h]) * wide(x[h]);
  squares = group_reduce<kRowThreads>(squares);
  const M rstd = 1 / root_of(squares / M(width) + eps);
  for (Index h = Row::lane(); h < width; h += kRowThreads)
    put(y_TH[t * width + h], wide(x[h]) * rstd * w_H[h]);
  if (Row::lane() == 0) rstd_T[t] = rstd;
}

/// dx = rstd (w dy - x rstd^2 mean(w dy x)); dw = sum over rows of dy x rstd. dx may be dy.
template <typename T, int kRowThreads, typename M = MathOf<T>>
__global__ void __launch_bounds__(kRowBlock) rms_norm_backward_kernel(const T* dy_TH,
                                                                      const T* x_TH,
                                                                      const M* w_H,
                                                                      const M* rstd_T,
                                                                      Index rows,
                                                                      Index rows_each,
                                                                      Index width,
                                                                      bool add_to_dx,
                                                                      T* dx_TH,
                                                                      M* parts_PH) {
  using Row = RowOfThread<kRowThreads>;
  // A column of a slot belongs to one thread.
  M* dw = reinterpret_cast<M*>(dynamic_smem) + Row::slot() * width;
  for (Index h = Row::lane(); h < width; h += kRowThreads) dw[h] = 0;
  const Index first = Index(blockIdx.x) * rows_each;
  const Index end = min(rows, first + rows_each);
  for (Index t = first + Row::slot(); t < end; t += Row::kRows) {
    const T* dy = dy_TH + t * width;
    const T* x = x_TH + t * width;
    T* dx = dx_TH + t * width;
    const M rstd = rstd_T[t];
    M product = 0;
    for (Index h = Row::lane(); h < width; h += kRowThreads) {
      const M g = wide(dy[h]), value = wide(x[h]);
      product += g * w_H[h] * value;
      dw[h] += g * value * rstd;
    }
    const M mean = group_reduce<kRowThreads>(product) * rstd * rstd / M(width);
    for (Index h = Row::lane(); h < width; h += kRowThreads) {
      const M gradient = rstd * (wide(dy[h]) * w_H[h] - wide(x[h]) * mean);
      put(dx[h], add_to_dx ? wide(dx[h]) + gradient : gradient);
    }
  }
  __syncthreads();
  const M* of_slots = reinterpret_cast<const M*>(dynamic_smem);
  for (Index h = threadIdx.x; h < width; h += kRowBlock) {
    M sum = 0;
    for (int slot = 0; slot < Row::kRows; ++slot) sum += of_slots[slot * width + h];
    parts_PH[blockIdx.x * width + h] = sum;
  }
}

}  // namespace pecan::kernels
