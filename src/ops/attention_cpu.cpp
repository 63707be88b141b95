#include <algorithm>
#include <cmath>
#include <limits>

#include <omp.h>

#include "ops/attention_tiles.hpp"
#include "ops/backends.hpp"
#include "ops/cpu.hpp"
#include "ops/gemm.hpp"
#include "ops/vector_kernels.hpp"

namespace pecan::ops::cpu {
namespace {

using detail::gemm;
using detail::kKeyTile;
using detail::kQueryTile;
using detail::Matrix;
using detail::Transpose;

/// The calling thread's part of tiles [threads, n, elements].
template <typename T>
T* own_tiles(const TensorView& tiles) {
  const std::int64_t thread = tiles.shape[0] == 1 ? 0 : omp_get_thread_num();
  return tiles.as<T>().data() + thread * tiles.shape[1] * tiles.shape[2];
}

/// Keys of a tile from `key` that query row `query` sees, of at most `width`.
std::int64_t visible(std::int64_t query, std::int64_t key, std::int64_t width) {
  return std::min(width, query - key + 1);
}

std::int64_t work_of(const AttentionShape& shape) {
  return shape.batch * shape.heads * shape.sequence * shape.sequence * shape.head_dim;
}

template <typename T>
Matrix<T> transposed(Matrix<T> x) {
  x.transpose = Transpose::kYes;
  return x;
}

/// One query tile of one head: out and lse of `rows` queries from `query`.
template <typename T>
void forward_tile(const AttentionShape& shape,
                  std::int64_t query,
                  std::int64_t rows,
                  Matrix<const T> q,
                  Matrix<const T> k,
                  Matrix<const T> v,
                  Matrix<T> out,
                  T* lse,
                  T* scores) {
  const auto& kernels = detail::vector_kernels<T>();
  const std::int64_t dim = shape.head_dim;
  const T scale = T(1 / std::sqrt(double(dim)));
  T largest[kQueryTile];
  double sums[kQueryTile] = {};
  std::fill_n(largest, rows, -std::numeric_limits<T>::infinity());
  for (std::int64_t key = 0; key < query + rows; key += kKeyTile) {
    const std::int64_t width = std::min(kKeyTile, query + rows - key);
    gemm(1,
         rows,
         width,
         dim,
         q,
         transposed(Matrix<const T>{k.data + key * k.stride, k.stride}),
         Accumulate::kOverwrite,
         Matrix<T>{scores, width});
    for (std::int64_t i = 0; i < rows; ++i) {
      T* row = scores + i * width;
      const std::int64_t seen = visible(query + i, key, width);
      const T now = std::max(largest[i], scale * kernels.max(row, seen));
      const T shrink = std::exp(largest[i] - now);
      sums[i] = sums[i] * double(shrink) + kernels.exp_sum(row, row, seen, scale, now);
      std::fill(row + seen, row + width, T(0));
      largest[i] = now;
      if (key == 0) continue;
      for (std::int64_t d = 0; d < dim; ++d) out.data[i * out.stride + d] *= shrink;
    }
    gemm(1,
         rows,
         dim,
         width,
         Matrix<const T>{scores, width},
         Matrix<const T>{v.data + key * v.stride, v.stride},
         key == 0 ? Accumulate::kOverwrite : Accumulate::kAdd,
         out);
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    lse[i] = T(double(largest[i]) + std::log(sums[i]));
    const T factor = T(1 / sums[i]);
    for (std::int64_t d = 0; d < dim; ++d) out.data[i * out.stride + d] *= factor;
  }
}

/// One query tile of one head: dq of `rows` queries from `query`, and its parts of dk and dv,
/// added.
template <typename T>
void backward_tile(const AttentionShape& shape,
                   std::int64_t query,
                   std::int64_t rows,
                   Matrix<const T> dout,
                   Matrix<const T> q,
                   Matrix<const T> k,
                   Matrix<const T> v,
                   Matrix<const T> out,
                   const T* lse,
                   Matrix<T> dq,
                   Matrix<T> dk,
                   Matrix<T> dv,
                   T* probs,
                   T* dscores) {
  const auto& kernels = detail::vector_kernels<T>();
  const std::int64_t dim = shape.head_dim;
  const T scale = T(1 / std::sqrt(double(dim)));
  T delta[kQueryTile];
  for (std::int64_t i = 0; i < rows; ++i) {
    double dot = 0;
#pragma omp simd reduction(+ : dot)
    for (std::int64_t d = 0; d < dim; ++d) {
      dot += double(dout.data[i * dout.stride + d]) * double(out.data[i * out.stride + d]);
    }
    delta[i] = T(dot);
  }
  for (std::int64_t key = 0; key < query + rows; key += kKeyTile) {
    const std::int64_t width = std::min(kKeyTile, query + rows - key);
    const Matrix<const T> k_tile{k.data + key * k.stride, k.stride};
    const Matrix<const T> v_tile{v.data + key * v.stride, v.stride};
    const Matrix<T> dk_tile{dk.data + key * dk.stride, dk.stride};
    const Matrix<T> dv_tile{dv.data + key * dv.stride, dv.stride};
    const Matrix<const T> p{probs, width};
    const Matrix<const T> ds{dscores, width};
    gemm(1,
         rows,
         width,
         dim,
         q,
         transposed(k_tile),
         Accumulate::kOverwrite,
         Matrix<T>{probs, width});
    gemm(1,
         rows,
         width,
         dim,
         dout,
         transposed(v_tile),
         Accumulate::kOverwrite,
         Matrix<T>{dscores, width});
    for (std::int64_t i = 0; i < rows; ++i) {
      T* p_row = probs + i * width;
      T* ds_row = dscores + i * width;
      const std::int64_t seen = visible(query + i, key, width);
      kernels.exp_sum(p_row, p_row, seen, scale, lse[i]);
      std::fill(p_row + seen, p_row + width, T(0));
      for (std::int64_t j = 0; j < seen; ++j) ds_row[j] = scale * p_row[j] * (ds_row[j] - delta[i]);
      std::fill(ds_row + seen, ds_row + width, T(0));
    }
    gemm(1, width, dim, rows, transposed(p), dout, Accumulate::kAdd, dv_tile);
    gemm(1, width, dim, rows, transposed(ds), q, Accumulate::kAdd, dk_tile);
    gemm(1, rows, dim, width, ds, k_tile, key == 0 ? Accumulate::kOverwrite : Accumulate::kAdd, dq);
  }
}

}  // namespace

void attention_forward(Context& ctx,
                       const AttentionShape& shape,
                       ConstTensorView q_TND,
                       ConstTensorView k_TGD,
                       ConstTensorView v_TGD,
                       TensorView out_TND,
                       TensorView lse_BNS) {
  PECAN_EXPECTS(!ctx.workspace.measuring());
  const device::ArenaScope scope(ctx.workspace);
  const TensorView tiles = detail::allocate_forward_tiles(ctx, q_TND.dtype);
  with_float_type(q_TND.dtype, [&]<typename T>(T) {
    const std::int64_t q_stride = shape.heads * shape.head_dim;
    const std::int64_t k_stride = shape.kv_groups * shape.head_dim;
    const std::int64_t blocks = (shape.sequence + kQueryTile - 1) / kQueryTile;
    const std::int64_t count = shape.batch * shape.heads * blocks;
    parallel_for(ctx, count, work_of(shape), [&](std::int64_t item) {
      const std::int64_t query = item % blocks * kQueryTile;
      const std::int64_t head = item / blocks % shape.heads;
      const std::int64_t batch = item / blocks / shape.heads;
      const std::int64_t group = head / (shape.heads / shape.kv_groups);
      const std::int64_t token = batch * shape.sequence;
      const std::int64_t q_offset = (token + query) * q_stride + head * shape.head_dim;
      const std::int64_t k_offset = token * k_stride + group * shape.head_dim;
      forward_tile<T>(
          shape,
          query,
          std::min(kQueryTile, shape.sequence - query),
          {q_TND.as<T>().data() + q_offset, q_stride},
          {k_TGD.as<T>().data() + k_offset, k_stride},
          {v_TGD.as<T>().data() + k_offset, k_stride},
          {out_TND.as<T>().data() + q_offset, q_stride},
          lse_BNS.as<T>().data() + (batch * shape.heads + head) * shape.sequence + query,
          own_tiles<T>(tiles));
    });
  });
}

void attention_backward(Context& ctx,
                        const AttentionShape& shape,
                        ConstTensorView dout_TND,
                        ConstTensorView q_TND,
                        ConstTensorView k_TGD,
                        ConstTensorView v_TGD,
                        ConstTensorView out_TND,
                        ConstTensorView lse_BNS,
                        TensorView dq_TND,
                        TensorView dk_TGD,
                        TensorView dv_TGD) {
  PECAN_EXPECTS(!ctx.workspace.measuring());
  const device::ArenaScope scope(ctx.workspace);
  const TensorView tiles = detail::allocate_backward_tiles(ctx, q_TND.dtype);
  with_float_type(q_TND.dtype, [&]<typename T>(T) {
    const std::int64_t dim = shape.head_dim;
    const std::int64_t q_stride = shape.heads * dim;
    const std::int64_t k_stride = shape.kv_groups * dim;
    const std::int64_t share = shape.heads / shape.kv_groups;
    // The heads of a group add to one dk and dv, so a thread takes a whole group.
    parallel_for(ctx, shape.batch * shape.kv_groups, work_of(shape), [&](std::int64_t item) {
      const std::int64_t group = item % shape.kv_groups;
      const std::int64_t batch = item / shape.kv_groups;
      const std::int64_t token = batch * shape.sequence;
      const std::int64_t k_offset = token * k_stride + group * dim;
      T* dk = dk_TGD.as<T>().data() + k_offset;
      T* dv = dv_TGD.as<T>().data() + k_offset;
      for (std::int64_t s = 0; s < shape.sequence; ++s) {
        std::fill_n(dk + s * k_stride, dim, T(0));
        std::fill_n(dv + s * k_stride, dim, T(0));
      }
      T* scratch = own_tiles<T>(tiles);
      for (std::int64_t head = group * share; head < (group + 1) * share; ++head) {
        for (std::int64_t query = 0; query < shape.sequence; query += kQueryTile) {
          const std::int64_t q_offset = (token + query) * q_stride + head * dim;
          backward_tile<T>(
              shape,
              query,
              std::min(kQueryTile, shape.sequence - query),
              {dout_TND.as<T>().data() + q_offset, q_stride},
              {q_TND.as<T>().data() + q_offset, q_stride},
              {k_TGD.as<T>().data() + k_offset, k_stride},
              {v_TGD.as<T>().data() + k_offset, k_stride},
              {out_TND.as<T>().data() + q_offset, q_stride},
              lse_BNS.as<T>().data() + (batch * shape.heads + head) * shape.sequence + query,
              {dq_TND.as<T>().data() + q_offset, q_stride},
              {dk, k_stride},
              {dv, k_stride},
              scratch,
              scratch + kQueryTile * kKeyTile);
        }
      }
    });
  });
}

}  // namespace pecan::ops::cpu
