#include "ops/gemm.hpp"

#include <algorithm>

#include <dnnl.h>
#include <omp.h>

#include "ops/vector_kernels.hpp"

namespace pecan::ops::detail {
namespace {

template <typename T>
void clear(std::int64_t m, std::int64_t n, Matrix<T> c) {
  for (std::int64_t i = 0; i < m; ++i) std::fill_n(c.data + i * c.stride, n, T(0));
}

}  // namespace

void gemm(int threads,
          std::int64_t m,
          std::int64_t n,
          std::int64_t k,
          Matrix<const float> a,
          Matrix<const float> b,
          Accumulate accumulate,
          Matrix<float> c) {
  if (m == 0 || n == 0) return;
  if (k == 0) {
    if (accumulate == Accumulate::kOverwrite) clear(m, n, c);
    return;
  }
  // oneDNN has no other way to be told; the setting belongs to the calling thread.
  if (omp_get_max_threads() != threads) omp_set_num_threads(threads);
  const dnnl_status_t status = dnnl_sgemm(a.transpose == Transpose::kYes ? 'T' : 'N',
                                          b.transpose == Transpose::kYes ? 'T' : 'N',
                                          m,
                                          n,
                                          k,
                                          1.0F,
                                          a.data,
                                          a.stride,
                                          b.data,
                                          b.stride,
                                          accumulate == Accumulate::kAdd ? 1.0F : 0.0F,
                                          c.data,
                                          c.stride);
  PECAN_VALIDATE(status == dnnl_success,
                 InternalError,
                 "dnnl_sgemm of [{}, {}] x [{}, {}] failed with status {}; "
                 "is there memory left for its packing buffers?",
                 m,
                 k,
                 k,
                 n,
                 int(status));
}

void gemm(int threads,
          std::int64_t m,
          std::int64_t n,
          std::int64_t k,
          Matrix<const double> a,
          Matrix<const double> b,
          Accumulate accumulate,
          Matrix<double> c) {
  constexpr std::int64_t kTileRows = 64;
  constexpr std::int64_t kTileDepth = 32;
  if (accumulate == Accumulate::kOverwrite) clear(m, n, c);
  const std::int64_t a_row = a.transpose == Transpose::kYes ? 1 : a.stride;
  const std::int64_t a_column = a.transpose == Transpose::kYes ? a.stride : 1;
  const std::int64_t b_row = b.transpose == Transpose::kYes ? 1 : b.stride;
  const std::int64_t b_column = b.transpose == Transpose::kYes ? b.stride : 1;
  const IsaKernels& kernels = isa_kernels();
  const auto column_strip = [&](std::int64_t j0, std::int64_t i_begin, std::int64_t i_end) {
    const std::int64_t columns = std::min(kTileColumns, n - j0);
    alignas(64) double tile[kTileDepth * kTileColumns] = {};
    for (std::int64_t p0 = 0; p0 < k; p0 += kTileDepth) {
      const std::int64_t depth = std::min(kTileDepth, k - p0);
      for (std::int64_t p = 0; p < depth; ++p) {
        for (std::int64_t j = 0; j < columns; ++j) {
          tile[p * kTileColumns + j] = b.data[(p0 + p) * b_row + (j0 + j) * b_column];
        }
      }
      kernels.multiply_tile(i_end - i_begin,
                            columns,
                            depth,
                            a.data + i_begin * a_row + p0 * a_column,
                            a_row,
                            a_column,
                            tile,
                            c.data + i_begin * c.stride + j0,
                            c.stride);
    }
  };
  if (threads == 1 || m * n * k < (std::int64_t(1) << 18)) {
    for (std::int64_t j0 = 0; j0 < n; j0 += kTileColumns) column_strip(j0, 0, m);
    return;
  }
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
  for (std::int64_t j0 = 0; j0 < n; j0 += kTileColumns) {
    for (std::int64_t i0 = 0; i0 < m; i0 += kTileRows) {
      column_strip(j0, i0, std::min(m, i0 + kTileRows));
    }
  }
}

}  // namespace pecan::ops::detail
