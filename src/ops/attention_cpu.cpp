#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

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

/// The calling thread's part of tiles [threads, elements].
template <typename M>
M* own_tiles(const TensorView& tiles) {
  const std::int64_t thread = tiles.shape[0] == 1 ? 0 : omp_get_thread_num();
  return tiles.as<M>().data() + thread * tiles.shape[1];
}

/// Keys that a query sees in a tile: [first, end), empty where end <= first.
struct Visible {
  std::int64_t first;
  std::int64_t end;
};

/// What the queries of one sequence see.
struct Mask {
  const std::int32_t* document_start;  ///< of this sequence; nullptr: 0
  [[nodiscard]] std::int64_t start(std::int64_t query) const {
    return document_start == nullptr ? 0 : document_start[query];
  }
  /// The tile of `width` keys from `key`.
  [[nodiscard]] Visible of(std::int64_t query, std::int64_t key, std::int64_t width) const {
    return {std::clamp<std::int64_t>(start(query) - key, 0, width),
            std::min(width, query - key + 1)};
  }
  /// The first key tile that any of `rows` queries from `query` sees.
  [[nodiscard]] std::int64_t first_tile(std::int64_t query, std::int64_t rows) const {
    std::int64_t first = start(query);
    for (std::int64_t i = 1; i < rows; ++i) first = std::min(first, start(query + i));
    return first / kKeyTile * kKeyTile;
  }
};

/// `from` as numbers to compute with: itself, or converted into `buffer`, which then moves on.
template <typename M, typename T>
Matrix<const M> load(Matrix<const T> from, std::int64_t rows, std::int64_t dim, M*& buffer) {
  if constexpr (std::is_same_v<M, T>) {
    return from;
  } else {
    M* const to = buffer;
    for (std::int64_t i = 0; i < rows; ++i) {
#pragma omp simd
      for (std::int64_t d = 0; d < dim; ++d) to[i * dim + d] = M(from.data[i * from.stride + d]);
    }
    buffer += rows * dim;
    return {to, dim};
  }
}

/// Where to compute what belongs into `to`: there, or in `buffer`, which then moves on.
template <typename M, typename T>
Matrix<M> stage(Matrix<T> to, std::int64_t rows, std::int64_t dim, M*& buffer) {
  if constexpr (std::is_same_v<M, T>) {
    return to;
  } else {
    M* const staged = buffer;
    buffer += rows * dim;
    return {staged, dim};
  }
}

/// Rounds what was staged.
template <typename M, typename T>
void store(Matrix<M> staged, std::int64_t rows, std::int64_t dim, Matrix<T> to) {
  if constexpr (!std::is_same_v<M, T>) {
    for (std::int64_t i = 0; i < rows; ++i) {
#pragma omp simd
      for (std::int64_t d = 0; d < dim; ++d)
        to.data[i * to.stride + d] = T(staged.data[i * staged.stride + d]);
    }
  }
}

/// A moment for the background, where the calling thread works alone: its exceptions could not
/// leave a parallel region.
void between_tiles(Context& ctx) {
  if (omp_in_parallel() == 0) ctx.advance();
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
template <typename T, typename M = MathOf<T>>
void forward_tile(const AttentionShape& shape,
                  const Mask& mask,
                  std::int64_t query,
                  std::int64_t rows,
                  Matrix<const T> q_stored,
                  Matrix<const T> k_stored,
                  Matrix<const T> v_stored,
                  Matrix<T> out_stored,
                  M* lse,
                  M* scratch) {
  const auto& kernels = detail::vector_kernels<M>();
  const std::int64_t dim = shape.head_dim;
  const M scale = M(1 / std::sqrt(double(dim)));
  M* const scores = scratch;
  M* free = scratch + kQueryTile * kKeyTile;
  const Matrix<const M> q = load<M>(q_stored, rows, dim, free);
  const Matrix<M> out = stage<M>(out_stored, rows, dim, free);
  M largest[kQueryTile];
  double sums[kQueryTile] = {};
  std::fill_n(largest, rows, -std::numeric_limits<M>::infinity());
  const std::int64_t first_key = mask.first_tile(query, rows);
  for (std::int64_t key = first_key; key < query + rows; key += kKeyTile) {
    const std::int64_t width = std::min(kKeyTile, query + rows - key);
    M* tile = free;
    const Matrix<const M> k = load<M>(
        Matrix<const T>{k_stored.data + key * k_stored.stride, k_stored.stride}, width, dim, tile);
    const Matrix<const M> v = load<M>(
        Matrix<const T>{v_stored.data + key * v_stored.stride, v_stored.stride}, width, dim, tile);
    gemm(1, rows, width, dim, q, transposed(k), Accumulate::kOverwrite, Matrix<M>{scores, width});
    for (std::int64_t i = 0; i < rows; ++i) {
      M* row = scores + i * width;
      const Visible seen = mask.of(query + i, key, width);
      if (seen.end <= seen.first) {
        std::fill_n(row, width, M(0));
        continue;
      }
      const std::int64_t count = seen.end - seen.first;
      const M now = std::max(largest[i], scale * kernels.max(row + seen.first, count));
      const M shrink = std::exp(largest[i] - now);
      sums[i] = sums[i] * double(shrink) +
                kernels.exp_sum(row + seen.first, row + seen.first, count, scale, now);
      std::fill(row, row + seen.first, M(0));
      std::fill(row + seen.end, row + width, M(0));
      largest[i] = now;
      if (key == first_key) continue;
      for (std::int64_t d = 0; d < dim; ++d) out.data[i * out.stride + d] *= shrink;
    }
    gemm(1,
         rows,
         dim,
         width,
         Matrix<const M>{scores, width},
         v,
         key == first_key ? Accumulate::kOverwrite : Accumulate::kAdd,
         out);
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    lse[i] = M(double(largest[i]) + std::log(sums[i]));
    const M factor = M(1 / sums[i]);
    for (std::int64_t d = 0; d < dim; ++d) out.data[i * out.stride + d] *= factor;
  }
  store(out, rows, dim, out_stored);
}

/// One query tile of one head: dq of `rows` queries from `query`, and its parts of dk and dv,
/// added.
template <typename M>
void backward_tile(const AttentionShape& shape,
                   const Mask& mask,
                   std::int64_t query,
                   std::int64_t rows,
                   Matrix<const M> dout,
                   Matrix<const M> q,
                   Matrix<const M> k,
                   Matrix<const M> v,
                   Matrix<const M> out,
                   const M* lse,
                   Matrix<M> dq,
                   Matrix<M> dk,
                   Matrix<M> dv,
                   M* probs,
                   M* dscores) {
  const auto& kernels = detail::vector_kernels<M>();
  const std::int64_t dim = shape.head_dim;
  const M scale = M(1 / std::sqrt(double(dim)));
  M delta[kQueryTile];
  for (std::int64_t i = 0; i < rows; ++i) {
    double dot = 0;
#pragma omp simd reduction(+ : dot)
    for (std::int64_t d = 0; d < dim; ++d) {
      dot += double(dout.data[i * dout.stride + d]) * double(out.data[i * out.stride + d]);
    }
    delta[i] = M(dot);
  }
  const std::int64_t first_key = mask.first_tile(query, rows);
  for (std::int64_t key = first_key; key < query + rows; key += kKeyTile) {
    const std::int64_t width = std::min(kKeyTile, query + rows - key);
    const Matrix<const M> k_tile{k.data + key * k.stride, k.stride};
    const Matrix<const M> v_tile{v.data + key * v.stride, v.stride};
    const Matrix<M> dk_tile{dk.data + key * dk.stride, dk.stride};
    const Matrix<M> dv_tile{dv.data + key * dv.stride, dv.stride};
    const Matrix<const M> p{probs, width};
    const Matrix<const M> ds{dscores, width};
    gemm(1,
         rows,
         width,
         dim,
         q,
         transposed(k_tile),
         Accumulate::kOverwrite,
         Matrix<M>{probs, width});
    gemm(1,
         rows,
         width,
         dim,
         dout,
         transposed(v_tile),
         Accumulate::kOverwrite,
         Matrix<M>{dscores, width});
    for (std::int64_t i = 0; i < rows; ++i) {
      M* p_row = probs + i * width;
      M* ds_row = dscores + i * width;
      const Visible seen = mask.of(query + i, key, width);
      const std::int64_t end = std::max(seen.first, seen.end);
      kernels.exp_sum(p_row + seen.first, p_row + seen.first, end - seen.first, scale, lse[i]);
      for (std::int64_t j = seen.first; j < end; ++j)
        ds_row[j] = scale * p_row[j] * (ds_row[j] - delta[i]);
      for (M* row : {p_row, ds_row}) {
        std::fill(row, row + seen.first, M(0));
        std::fill(row + end, row + width, M(0));
      }
    }
    gemm(1, width, dim, rows, transposed(p), dout, Accumulate::kAdd, dv_tile);
    gemm(1, width, dim, rows, transposed(ds), q, Accumulate::kAdd, dk_tile);
    gemm(1,
         rows,
         dim,
         width,
         ds,
         k_tile,
         key == first_key ? Accumulate::kOverwrite : Accumulate::kAdd,
         dq);
  }
}

Mask mask_of(const ConstTensorView& document_start_T, std::int64_t first_token) {
  if (document_start_T.data == nullptr) return {nullptr};
  return {document_start_T.as<std::int32_t>().data() + first_token};
}

}  // namespace

void attention_forward(Context& ctx,
                       const AttentionShape& shape,
                       ConstTensorView document_start_T,
                       ConstTensorView q_TND,
                       ConstTensorView k_TGD,
                       ConstTensorView v_TGD,
                       TensorView out_TND,
                       TensorView lse_BNS) {
  PECAN_EXPECTS(!ctx.workspace.measuring());
  const device::ArenaScope scope(ctx.workspace);
  const TensorView tiles = detail::allocate_forward_tiles(ctx, shape, q_TND.dtype);
  with_storage_type(q_TND.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
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
          mask_of(document_start_T, token),
          query,
          std::min(kQueryTile, shape.sequence - query),
          {q_TND.as<T>().data() + q_offset, q_stride},
          {k_TGD.as<T>().data() + k_offset, k_stride},
          {v_TGD.as<T>().data() + k_offset, k_stride},
          {out_TND.as<T>().data() + q_offset, q_stride},
          lse_BNS.as<M>().data() + (batch * shape.heads + head) * shape.sequence + query,
          own_tiles<M>(tiles));
      between_tiles(ctx);
    });
  });
}

void attention_backward(Context& ctx,
                        const AttentionShape& shape,
                        ConstTensorView document_start_T,
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
  const TensorView tiles = detail::allocate_backward_tiles(ctx, shape, q_TND.dtype);
  with_storage_type(q_TND.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const std::int64_t dim = shape.head_dim;
    const std::int64_t length = shape.sequence;
    const std::int64_t q_stride = shape.heads * dim;
    const std::int64_t k_stride = shape.kv_groups * dim;
    const std::int64_t share = shape.heads / shape.kv_groups;
    // The heads of a group add to one dk and dv, so a thread takes a whole group.
    parallel_for(ctx, shape.batch * shape.kv_groups, work_of(shape), [&](std::int64_t item) {
      const std::int64_t group = item % shape.kv_groups;
      const std::int64_t batch = item / shape.kv_groups;
      const std::int64_t token = batch * length;
      const std::int64_t k_offset = token * k_stride + group * dim;
      const Mask mask = mask_of(document_start_T, token);
      M* const scores = own_tiles<M>(tiles);
      M* free = scores + 2 * kQueryTile * kKeyTile;
      const Matrix<const M> k =
          load<M>(Matrix<const T>{k_TGD.as<T>().data() + k_offset, k_stride}, length, dim, free);
      const Matrix<const M> v =
          load<M>(Matrix<const T>{v_TGD.as<T>().data() + k_offset, k_stride}, length, dim, free);
      const Matrix<T> dk_stored{dk_TGD.as<T>().data() + k_offset, k_stride};
      const Matrix<T> dv_stored{dv_TGD.as<T>().data() + k_offset, k_stride};
      const Matrix<M> dk = stage<M>(dk_stored, length, dim, free);
      const Matrix<M> dv = stage<M>(dv_stored, length, dim, free);
      for (std::int64_t s = 0; s < length; ++s) {
        std::fill_n(dk.data + s * dk.stride, dim, M(0));
        std::fill_n(dv.data + s * dv.stride, dim, M(0));
      }
      for (std::int64_t head = group * share; head < (group + 1) * share; ++head) {
        for (std::int64_t query = 0; query < length; query += kQueryTile) {
          const std::int64_t rows = std::min(kQueryTile, length - query);
          const std::int64_t q_offset = (token + query) * q_stride + head * dim;
          M* tile = free;
          const auto loaded = [&](const ConstTensorView& x) {
            return load<M>(Matrix<const T>{x.as<T>().data() + q_offset, q_stride}, rows, dim, tile);
          };
          const Matrix<const M> dout = loaded(dout_TND), q = loaded(q_TND), out = loaded(out_TND);
          const Matrix<T> dq_stored{dq_TND.as<T>().data() + q_offset, q_stride};
          const Matrix<M> dq = stage<M>(dq_stored, rows, dim, tile);
          backward_tile<M>(shape,
                           mask,
                           query,
                           rows,
                           dout,
                           q,
                           k,
                           v,
                           out,
                           lse_BNS.as<M>().data() + (batch * shape.heads + head) * length + query,
                           dq,
                           dk,
                           dv,
                           scores,
                           scores + kQueryTile * kKeyTile);
          store(dq, rows, dim, dq_stored);
          between_tiles(ctx);
        }
      }
      store(dk, length, dim, dk_stored);
      store(dv, length, dim, dv_stored);
    });
  });
}

}  // namespace pecan::ops::cpu
