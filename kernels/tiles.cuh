#pragma once
/// Products of tiles in shared memory: each warp of a block makes a few rows of the result, by
/// multiply-adds (f32, f64) or by tensor cores (bf16). Tiles are row-major, `stride` elements from
/// one row to the next, and hold zeros where the matrix ends.

#include <mma.h>

#include "kernels/common.cuh"

namespace pecan::kernels {

constexpr int kTileWarps = 4;
constexpr int kTileThreads = kTileWarps * kWarp;
/// Columns of a product of two tiles, and rows of a tile of columns: one a lane.
constexpr int kTileColumns = kWarp;

/// 16 bytes more than its elements keep the rows of a tile in different banks.
template <typename Staged>
[[nodiscard]] __host__ __device__ constexpr int stride_of(int width) {
  return width + 16 / int(sizeof(Staged));
}

/// By multiply-adds; a lane makes one column of a product, or every 32nd of the sums.
/// kSlices: of 32 columns, which the sums have.
template <typename T, int kSlices>
struct FmaTiles {
  using M = MathOf<T>;
  using Staged = M;
  static constexpr int kRows = sizeof(M) == 4 ? 8 : 4;  ///< of a warp
  static constexpr int kPack = 16 / int(sizeof(M));

  struct Sums {
    M of[kRows][kSlices] = {};
  };

  /// to[r][c] = rows[r] . columns[c], for the warp's rows. The warp synchronises before it reads.
  __device__ static void multiply(
      const Staged* rows, const Staged* columns, int width, int stride, M* to) {
    M sums[kRows] = {};
    const int lane = threadIdx.x % kWarp;
    for (int d = 0; d < width; d += kPack) {
      const auto column = load(columns + lane * stride + d);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const auto row = load(rows + r * stride + d);
#pragma unroll
        for (int i = 0; i < kPack; ++i) sums[r] += row.values[i] * column.values[i];
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) to[r * stride_of<M>(kTileColumns) + lane] = sums[r];
  }

  /// sums[r] *= factors[r]. `scratch`: of the warp, as large as a product.
  __device__ static void scale(Sums& sums, const M (&factors)[kRows], M* /*scratch*/) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int s = 0; s < kSlices; ++s) sums.of[r][s] *= factors[r];
    }
  }

  /// sums[r] += the sum over c of weights[r][c] values[c].
  __device__ static void add(Sums& sums, const Staged* weights, const Staged* values, int stride) {
    for (int c = 0; c < kTileColumns; c += kPack) {
      Pack<M, kPack> of_row[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        of_row[r] = load(weights + r * stride_of<M>(kTileColumns) + c);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
#pragma unroll
        for (int s = 0; s < kSlices; ++s) {
          const M value = values[(c + i) * stride + s * kWarp + threadIdx.x % kWarp];
#pragma unroll
          for (int r = 0; r < kRows; ++r) sums.of[r][s] += of_row[r].values[i] * value;
        }
      }
    }
  }

  /// Calls put(row, column, sum) for each, on one lane. `scratch` as in scale.
  template <typename Put>
  __device__ static void for_each(const Sums& sums, M* /*scratch*/, Put&& put) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int s = 0; s < kSlices; ++s) put(r, s * kWarp + int(threadIdx.x) % kWarp, sums.of[r][s]);
    }
  }

 private:
  __device__ static Pack<M, kPack> load(const M* from) {
    return *reinterpret_cast<const Pack<M, kPack>*>(from);
  }
};

/// The same by tensor cores: bf16 in, sums in f32. Which lane has which element is left open.
template <int kSlices>
struct TensorTiles {
  using M = float;
  using Staged = Bf16;
  static constexpr int kEdge = 16;
  static constexpr int kRows = kEdge;

  using Rows = nvcuda::wmma::
      fragment<nvcuda::wmma::matrix_a, kEdge, kEdge, kEdge, Bf16, nvcuda::wmma::row_major>;
  template <typename Layout>
  using Columns = nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, kEdge, kEdge, kEdge, Bf16, Layout>;
  using Product = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kEdge, kEdge, kEdge, float>;
  static constexpr int kProducts = kSlices * kWarp / kEdge;

  struct Sums {
    Product of[kProducts];
    __device__ Sums() {
#pragma unroll
      for (Product& product : of) nvcuda::wmma::fill_fragment(product, 0.0F);
    }
  };

  __device__ static void multiply(
      const Staged* rows, const Staged* columns, int width, int stride, M* to) {
#pragma unroll 1  // the sums of the block already take most registers
    for (int c = 0; c < kTileColumns; c += kEdge) {
      Product sums;
      nvcuda::wmma::fill_fragment(sums, 0.0F);
      for (int d = 0; d < width; d += kEdge) {
        Rows of_rows;
        Columns<nvcuda::wmma::col_major> of_columns;
        nvcuda::wmma::load_matrix_sync(of_rows, rows + d, stride);
        nvcuda::wmma::load_matrix_sync(of_columns, columns + c * stride + d, stride);
        nvcuda::wmma::mma_sync(sums, of_rows, of_columns, sums);
      }
      nvcuda::wmma::store_matrix_sync(
          to + c, sums, stride_of<M>(kTileColumns), nvcuda::wmma::mem_row_major);
    }
  }

  /// A matrix with the factors in its rows has them where the sums have their elements.
  __device__ static void scale(Sums& sums, const M (&factors)[kRows], M* scratch) {
    const int lane = threadIdx.x % kWarp;
    if (lane < kEdge) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) scratch[r * kEdge + lane] = factors[r];
    }
    __syncwarp();
    Product of_rows;
    nvcuda::wmma::load_matrix_sync(of_rows, scratch, kEdge, nvcuda::wmma::mem_row_major);
#pragma unroll
    for (Product& product : sums.of) {
#pragma unroll
      for (int i = 0; i < Product::num_elements; ++i) product.x[i] *= of_rows.x[i];
    }
  }

  __device__ static void add(Sums& sums, const Staged* weights, const Staged* values, int stride) {
#pragma unroll 1
    for (int c = 0; c < kTileColumns; c += kEdge) {
      Rows of_rows;
      nvcuda::wmma::load_matrix_sync(of_rows, weights + c, stride_of<Staged>(kTileColumns));
#pragma unroll
      for (int p = 0; p < kProducts; ++p) {
        Columns<nvcuda::wmma::row_major> of_values;
        nvcuda::wmma::load_matrix_sync(of_values, values + c * stride + p * kEdge, stride);
        nvcuda::wmma::mma_sync(sums.of[p], of_rows, of_values, sums.of[p]);
      }
    }
  }

  template <typename Put>
  __device__ static void for_each(const Sums& sums, M* scratch, Put&& put) {
#pragma unroll
    for (int p = 0; p < kProducts; ++p) {
      __syncwarp();
      nvcuda::wmma::store_matrix_sync(scratch, sums.of[p], kEdge, nvcuda::wmma::mem_row_major);
      __syncwarp();
      for (int i = threadIdx.x % kWarp; i < kEdge * kEdge; i += kWarp)
        put(i / kEdge, p * kEdge + i % kEdge, scratch[i]);
    }
  }
};

template <typename T, int kSlices>
using TilesOf =
    std::conditional_t<std::is_same_v<T, Bf16>, TensorTiles<kSlices>, FmaTiles<T, kSlices>>;

/// Copies rows of a matrix of `dim` columns to a tile of num_rows x width, a multiple of kWidth, by
/// the whole block. `present`: rows that there are. `packed`: they begin at multiples of 16 bytes.
template <int kWidth, typename T>
__device__ void load_tile(const T* from,
                          Index row_stride,
                          Index present,
                          int num_rows,
                          int dim,
                          int width,
                          bool packed,
                          T* to) {
  constexpr int kPack = 16 / int(sizeof(T));
  using Packed = Pack<T, kPack>;
  const int stride = stride_of<T>(width);
  for (int begin = 0; begin < width; begin += kWidth) {
    if (packed) {
      for (int i = threadIdx.x * kPack; i < num_rows * kWidth; i += kTileThreads * kPack) {
        const int row = i / kWidth, column = begin + i % kWidth;
        Packed loaded = {};
        if (row < present && column < dim)
          loaded = *reinterpret_cast<const Packed*>(from + row * row_stride + column);
        *reinterpret_cast<Packed*>(to + row * stride + column) = loaded;
      }
    } else {
      for (int i = threadIdx.x; i < num_rows * kWidth; i += kTileThreads) {
        const int row = i / kWidth, column = begin + i % kWidth;
        const bool is_there = row < present && column < dim;
        to[row * stride + column] = is_there ? from[row * row_stride + column] : T(0.0F);
      }
    }
  }
}

}  // namespace pecan::kernels
