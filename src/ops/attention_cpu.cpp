#include <algorithm>
#include <cmath>
#include <type_traits>

#include <omp.h>

#include "ops/attention_kernels.hpp"
#include "ops/attention_tiles.hpp"
#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops {

namespace detail {

extern const IsaAttention kBaselineAttention;
extern const IsaAttention kAvx2Attention;
extern const IsaAttention kAvx512Attention;

const IsaAttention& isa_attention(Isa isa) {
  return table_of(isa, kBaselineAttention, kAvx2Attention, kAvx512Attention);
}

const IsaAttention& isa_attention() {
  return isa_attention(widest_isa());
}

}  // namespace detail

namespace cpu {
namespace {

using detail::AttentionKernels;
using detail::kKeyTile;
using detail::kQueryTile;

template <typename T>
const AttentionKernels<StoredOf<T>, MathOf<T>>& kernels_for(const detail::IsaAttention& kernels) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return kernels.bf16;
  } else if constexpr (std::is_same_v<T, double>) {
    return kernels.f64;
  } else {
    return kernels.f32;
  }
}

/// A moment for the background, where the calling thread works alone: its exceptions could not
/// leave a parallel region.
void between_tiles(Context& ctx) {
  if (omp_in_parallel() == 0) ctx.advance();
}

/// Into how many parts work is cut: one for each thread, if starting them pays.
std::int64_t parts_for(const Context& ctx, const AttentionShape& shape) {
  const std::int64_t work =
      shape.batch * shape.heads * shape.sequence * shape.sequence * shape.head_dim;
  return work < kMinParallelWork ? 1 : ctx.threads;
}

/// Of the query tiles of `heads` heads, one after the other, the first that belongs to `part` of
/// `parts`: cut by the key tiles that causal queries see, 1, 2, 3, ... for the tiles of a head.
std::int64_t first_tile(std::int64_t heads,
                        std::int64_t tiles,
                        std::int64_t part,
                        std::int64_t parts) {
  const std::int64_t head_cost = tiles * (tiles + 1) / 2;
  if (head_cost == 0) return 0;
  const std::int64_t cost = heads * head_cost * part / parts;
  std::int64_t tile = 0;
  while (tile * (tile + 1) / 2 < cost % head_cost) ++tile;
  return cost / head_cost * tiles + tile;
}

/// Hands out a thread's scratch memory piece by piece.
template <typename M>
class Pieces {
 public:
  explicit Pieces(M* begin) : next_(begin) {}
  M* take(std::int64_t elements) {
    M* const piece = next_;
    next_ += elements;
    return piece;
  }

 private:
  M* next_;
};

/// Where things stand in the tensors of one call.
struct Layout {
  explicit Layout(const AttentionShape& of)
      : shape(of),
        tiles(detail::query_tiles(shape)),
        share(shape.heads / shape.kv_groups),
        padded(detail::padded_dim(shape)),
        packed(detail::packed_keys(shape)),
        scale(1 / std::sqrt(double(shape.head_dim))),
        q_stride(shape.heads * shape.head_dim),
        k_stride(shape.kv_groups * shape.head_dim) {}
  [[nodiscard]] std::int64_t key_offset(std::int64_t batch, std::int64_t group) const {
    return batch * shape.sequence * k_stride + group * shape.head_dim;
  }
  [[nodiscard]] std::int64_t query_offset(std::int64_t batch,
                                          std::int64_t head,
                                          std::int64_t query) const {
    return (batch * shape.sequence + query) * q_stride + head * shape.head_dim;
  }
  [[nodiscard]] std::int64_t row_offset(std::int64_t batch,
                                        std::int64_t head,
                                        std::int64_t query) const {
    return (batch * shape.heads + head) * shape.sequence + query;
  }
  [[nodiscard]] detail::QueryTile tile(const ConstTensorView& document_start_T,
                                       std::int64_t batch,
                                       std::int64_t query) const {
    return {query,
            std::min(kQueryTile, shape.sequence - query),
            shape.head_dim,
            padded,
            document_start_T.data == nullptr
                ? nullptr
                : document_start_T.as<std::int32_t>().data() + batch * shape.sequence + query,
            {}};
  }
  /// The rows of a query tile in q, out and the like.
  template <typename T>
  [[nodiscard]] detail::Ahead queries(const T* x,
                                      std::int64_t batch,
                                      std::int64_t head,
                                      std::int64_t query) const {
    return ahead(x + query_offset(batch, head, query), q_stride, query);
  }
  /// The rows of keys or values that stand where a query tile does.
  template <typename T>
  [[nodiscard]] detail::Ahead keys(const T* x,
                                   std::int64_t batch,
                                   std::int64_t group,
                                   std::int64_t query) const {
    return ahead(x + key_offset(batch, group) + query * k_stride, k_stride, query);
  }

  template <typename T>
  [[nodiscard]] detail::Ahead ahead(const T* rows, std::int64_t stride, std::int64_t query) const {
    return {reinterpret_cast<const char*>(rows),
            stride * std::int64_t(sizeof(T)),
            shape.head_dim * std::int64_t(sizeof(T)),
            std::min(kQueryTile, shape.sequence - query)};
  }

  const AttentionShape& shape;
  std::int64_t tiles;   ///< query tiles of a head
  std::int64_t share;   ///< heads of a group
  std::int64_t padded;  ///< elements of a packed row
  std::int64_t packed;  ///< elements of a packed sequence of keys
  double scale;         ///< of the scores
  std::int64_t q_stride, k_stride;
};

// A tile of queries, free while keys are packed, holds one of keys.
static_assert(kKeyTile <= kQueryTile);

/// Packs keys or values of a sequence tile by tile: rows, or their transposes by way of `rows`,
/// which then is one tile, or both.
template <typename T, typename M>
void pack_sequence(const AttentionKernels<T, M>& kernels,
                   const Layout& layout,
                   const T* x,
                   M* rows,
                   bool whole_rows,
                   M* transposed) {
  for (std::int64_t key = 0; key < layout.shape.sequence; key += kKeyTile) {
    M* const tile = whole_rows ? rows + key * layout.padded : rows;
    kernels.pack(x + key * layout.k_stride,
                 layout.k_stride,
                 std::min(kKeyTile, layout.shape.sequence - key),
                 kKeyTile,
                 layout.shape.head_dim,
                 layout.padded,
                 M(1),
                 tile);
    if (transposed != nullptr)
      kernels.transpose(tile, layout.padded, transposed + key * layout.padded);
  }
}

/// Packs the rows of a query tile in q or dout, which begin at x.
template <typename T, typename M>
void pack_queries(const AttentionKernels<T, M>& kernels,
                  const Layout& layout,
                  const detail::QueryTile& tile,
                  const T* x,
                  M scale,
                  M* to) {
  kernels.pack(x, layout.q_stride, tile.rows, kQueryTile, tile.dim, tile.padded, scale, to);
}
/// Unpacks them to out or dq.
template <typename T, typename M>
void unpack_queries(const AttentionKernels<T, M>& kernels,
                    const Layout& layout,
                    const detail::QueryTile& tile,
                    const M* x,
                    M scale,
                    T* to) {
  kernels.unpack(x, tile.rows, tile.dim, tile.padded, scale, to, layout.q_stride);
}

}  // namespace

void attention_forward(Context& ctx,
                       const detail::IsaAttention& isa,
                       const AttentionShape& shape,
                       ConstTensorView document_start_T,
                       ConstTensorView q_TND,
                       ConstTensorView k_TGD,
                       ConstTensorView v_TGD,
                       TensorView out_TND,
                       TensorView lse_BNS) {
  PECAN_EXPECTS(!ctx.workspace.measuring());
  const device::ArenaScope scope(ctx.workspace);
  const TensorView scratch = detail::allocate_forward_tiles(ctx, shape, q_TND.dtype);
  const std::int64_t parts = parts_for(ctx, shape);
  const Layout layout(shape);
  with_storage_type(q_TND.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const AttentionKernels<StoredOf<T>, M>& kernels = kernels_for<T>(isa);
    const std::int64_t heads = shape.batch * shape.heads;
    parallel_for(ctx, parts, kMinParallelWork, [&](std::int64_t part) {
      Pieces<M> pieces(scratch.as<M>().data() + part * detail::forward_elements(shape));
      M* const q = pieces.take(kQueryTile * layout.padded);
      M* const out = pieces.take(kQueryTile * layout.padded);
      M* const scores = pieces.take(kQueryTile * kKeyTile);
      M* const k_transposed = pieces.take(layout.packed);
      M* const v = pieces.take(layout.packed);
      std::int64_t packed_group = -1;
      const std::int64_t end = first_tile(heads, layout.tiles, part + 1, parts);
      for (std::int64_t item = first_tile(heads, layout.tiles, part, parts); item < end; ++item) {
        const std::int64_t batch = item / layout.tiles / shape.heads;
        const std::int64_t head = item / layout.tiles % shape.heads;
        const std::int64_t group = head / layout.share;
        if (packed_group != batch * shape.kv_groups + group) {
          packed_group = batch * shape.kv_groups + group;
          const std::int64_t offset = layout.key_offset(batch, group);
          pack_sequence(
              kernels, layout, stored<T>(v_TGD) + offset, v, true, static_cast<M*>(nullptr));
          pack_sequence(kernels, layout, stored<T>(k_TGD) + offset, out, false, k_transposed);
        }
        detail::QueryTile tile =
            layout.tile(document_start_T, batch, item % layout.tiles * kQueryTile);
        const std::int64_t offset = layout.query_offset(batch, head, tile.query);
        tile.ahead[0] = layout.queries(stored<T>(out_TND), batch, head, tile.query);
        if (item + 1 < end) {
          const std::int64_t next = item + 1;
          tile.ahead[1] = layout.queries(stored<T>(q_TND),
                                         next / layout.tiles / shape.heads,
                                         next / layout.tiles % shape.heads,
                                         next % layout.tiles * kQueryTile);
        }
        // The last head of a group asks for the next group's keys and values, tile by tile.
        const std::int64_t next_group = packed_group + 1;
        if (head % layout.share == layout.share - 1 && next_group < shape.batch * shape.kv_groups) {
          const std::int64_t next_batch = next_group / shape.kv_groups;
          const std::int64_t in_batch = next_group % shape.kv_groups;
          tile.ahead[2] = layout.keys(stored<T>(k_TGD), next_batch, in_batch, tile.query);
          tile.ahead[3] = layout.keys(stored<T>(v_TGD), next_batch, in_batch, tile.query);
        }
        pack_queries(kernels, layout, tile, stored<T>(q_TND) + offset, M(layout.scale), q);
        kernels.forward(tile,
                        q,
                        k_transposed,
                        v,
                        scores,
                        out,
                        lse_BNS.as<M>().data() + layout.row_offset(batch, head, tile.query));
        unpack_queries(kernels, layout, tile, out, M(1), stored<T>(out_TND) + offset);
        between_tiles(ctx);
      }
    });
  });
}

void attention_backward(Context& ctx,
                        const detail::IsaAttention& isa,
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
  const TensorView scratch = detail::allocate_backward_tiles(ctx, shape, q_TND.dtype);
  const std::int64_t parts = parts_for(ctx, shape);
  const std::int64_t groups = shape.batch * shape.kv_groups;
  const std::int64_t slices = detail::slices_of(shape);
  const Layout layout(shape);
  with_storage_type(q_TND.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const AttentionKernels<StoredOf<T>, M>& kernels = kernels_for<T>(isa);
    M* const all_sums = scratch.as<M>().data() + ctx.threads * detail::backward_elements(shape);
    const auto write_sums = [&](std::int64_t item, const M* dk) {
      const std::int64_t offset = layout.key_offset(item / shape.kv_groups, item % shape.kv_groups);
      for (StoredOf<T>* const to : {stored<T>(dk_TGD), stored<T>(dv_TGD)}) {
        kernels.unpack(
            dk, shape.sequence, shape.head_dim, layout.padded, M(1), to + offset, layout.k_stride);
        dk += layout.packed;
      }
    };
    parallel_for(ctx, parts, kMinParallelWork, [&](std::int64_t part) {
      Pieces<M> pieces(scratch.as<M>().data() + part * detail::backward_elements(shape));
      M* const q = pieces.take(kQueryTile * layout.padded);
      M* const dout = pieces.take(kQueryTile * layout.padded);
      M* const dq = pieces.take(kQueryTile * layout.padded);
      M* const delta = pieces.take(kQueryTile);
      M* const probs = pieces.take(kQueryTile * kKeyTile);
      M* const dscores = pieces.take(kQueryTile * kKeyTile);
      M* const k = pieces.take(layout.packed);
      M* const k_transposed = pieces.take(layout.packed);
      M* const v_transposed = pieces.take(layout.packed);
      std::int64_t packed_group = -1;
      const std::int64_t end = groups * slices * (part + 1) / parts;
      for (std::int64_t item = groups * slices * part / parts; item < end; ++item) {
        const std::int64_t batch = item / slices / shape.kv_groups;
        const std::int64_t group = item / slices % shape.kv_groups;
        if (packed_group != item / slices) {
          packed_group = item / slices;
          const std::int64_t offset = layout.key_offset(batch, group);
          pack_sequence(kernels, layout, stored<T>(v_TGD) + offset, dq, false, v_transposed);
          pack_sequence(kernels, layout, stored<T>(k_TGD) + offset, k, true, k_transposed);
        }
        M* const dk = all_sums + (slices == 1 ? part : item) * 2 * layout.packed;
        M* const dv = dk + layout.packed;
        std::fill_n(dk, 2 * layout.packed, M(0));
        const std::int64_t last = first_tile(layout.share, layout.tiles, item % slices + 1, slices);
        for (std::int64_t at = first_tile(layout.share, layout.tiles, item % slices, slices);
             at < last;
             ++at) {
          const std::int64_t head = group * layout.share + at / layout.tiles;
          detail::QueryTile tile =
              layout.tile(document_start_T, batch, at % layout.tiles * kQueryTile);
          const std::int64_t offset = layout.query_offset(batch, head, tile.query);
          tile.ahead[0] = layout.queries(stored<T>(dq_TND), batch, head, tile.query);
          // The next tile of this group, or else the first of the next.
          const std::int64_t next = at + 1 < last ? at + 1 : 0;
          const std::int64_t next_item = at + 1 < last ? item : item + 1;
          if (next_item < end) {
            const std::int64_t next_batch = next_item / slices / shape.kv_groups;
            const std::int64_t next_head =
                next_item / slices % shape.kv_groups * layout.share + next / layout.tiles;
            const std::int64_t next_query = next % layout.tiles * kQueryTile;
            int place = 1;
            for (const ConstTensorView& x : {q_TND, dout_TND, out_TND}) {
              tile.ahead[place++] = layout.queries(stored<T>(x), next_batch, next_head, next_query);
            }
            // The last slice of a group also asks for keys and values of the next, tile by tile.
            const std::int64_t next_group = item / slices + 1;
            if (item % slices == slices - 1 && at / layout.tiles == layout.share - 1 &&
                next_group < groups) {
              for (const ConstTensorView& x : {k_TGD, v_TGD}) {
                tile.ahead[place++] = layout.keys(stored<T>(x),
                                                  next_group / shape.kv_groups,
                                                  next_group % shape.kv_groups,
                                                  tile.query);
              }
            }
          }
          pack_queries(kernels, layout, tile, stored<T>(q_TND) + offset, M(layout.scale), q);
          pack_queries(kernels, layout, tile, stored<T>(dout_TND) + offset, M(1), dout);
          kernels.row_dots(stored<T>(dout_TND) + offset,
                           stored<T>(out_TND) + offset,
                           layout.q_stride,
                           tile.rows,
                           shape.head_dim,
                           delta);
          kernels.backward(tile,
                           q,
                           dout,
                           lse_BNS.as<M>().data() + layout.row_offset(batch, head, tile.query),
                           delta,
                           k,
                           k_transposed,
                           v_transposed,
                           probs,
                           dscores,
                           dq,
                           dk,
                           dv);
          unpack_queries(kernels, layout, tile, dq, M(layout.scale), stored<T>(dq_TND) + offset);
          between_tiles(ctx);
        }
        if (slices == 1) write_sums(item, dk);
      }
    });
    if (slices == 1) return;
    parallel_for(ctx, groups, parts == 1 ? 0 : kMinParallelWork, [&](std::int64_t item) {
      M* const sums = all_sums + item * slices * 2 * layout.packed;
      for (std::int64_t slice = 1; slice < slices; ++slice) {
        const M* const more = sums + slice * 2 * layout.packed;
#pragma omp simd
        for (std::int64_t i = 0; i < 2 * layout.packed; ++i) sums[i] += more[i];
      }
      write_sums(item, sums);
    });
  });
}

void attention_forward(Context& ctx,
                       const AttentionShape& shape,
                       ConstTensorView document_start_T,
                       ConstTensorView q_TND,
                       ConstTensorView k_TGD,
                       ConstTensorView v_TGD,
                       TensorView out_TND,
                       TensorView lse_BNS) {
  attention_forward(
      ctx, detail::isa_attention(), shape, document_start_T, q_TND, k_TGD, v_TGD, out_TND, lse_BNS);
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
  attention_backward(ctx,
                     detail::isa_attention(),
                     shape,
                     document_start_T,
                     dout_TND,
                     q_TND,
                     k_TGD,
                     v_TGD,
                     out_TND,
                     lse_BNS,
                     dq_TND,
                     dk_TGD,
                     dv_TGD);
}

}  // namespace cpu
}  // namespace pecan::ops
