/// The loops of attention_kernels.hpp, compiled once per instruction set by attention_<isa>.cpp.
/// Nothing here may instantiate an inline function of a library: the linker could keep the copy of
/// a wide instruction set for callers that run without it.

#include <cmath>
#include <cstdint>

#include "ops/attention_kernels.hpp"
#include "ops/attention_tiles.hpp"
#include "ops/vector_bf16.inl"
#include "ops/vector_exp.inl"

namespace pecan::ops::detail {
namespace {

// A block of kBlockRows rows by two vectors of sums stays in registers, and is enough of them to
// hide the latency of an FMA.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kBlockRows = 8;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kBlockRows = 4;
#else
constexpr int kVectorBytes = 16;
constexpr int kBlockRows = 4;
#endif
static_assert(kQueryTile % kBlockRows == 0 && kKeyTile % kQueryTile == 0);

template <typename M>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(kVectorBytes)));
  /// The same in memory, where it may stand anywhere.
  typedef float Stored __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(kVectorBytes)));
  typedef double Stored __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
template <typename M>
using Vector = typename VectorOf<M>::Type;
template <typename M>
constexpr int kLanes = kVectorBytes / int(sizeof(M));

template <typename M>
inline Vector<M> load(const M* x) {
  return *reinterpret_cast<const typename VectorOf<M>::Stored*>(x);
}
template <typename M>
inline void store(M* x, Vector<M> value) {
  *reinterpret_cast<typename VectorOf<M>::Stored*>(x) = value;
}

inline std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
inline std::int64_t larger(std::int64_t a, std::int64_t b) {
  return a > b ? a : b;
}

template <typename T, typename M>
void pack(const T* x,
          std::int64_t stride,
          std::int64_t rows,
          std::int64_t tile_rows,
          std::int64_t dim,
          std::int64_t padded,
          M scale,
          M* to) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* from = x + i * stride;
    M* row = to + i * padded;
    std::int64_t d = 0;
    for (; d + kStep <= dim; d += kStep) {
#pragma omp simd
      for (std::int64_t l = 0; l < kStep; ++l) row[d + l] = scale * wide(from[d + l]);
    }
    for (; d < dim; ++d) row[d] = scale * wide(from[d]);
    for (; d < padded; ++d) row[d] = 0;
  }
  for (std::int64_t d = rows * padded; d < tile_rows * padded; ++d) to[d] = 0;
}

template <typename T, typename M>
void unpack(const M* x,
            std::int64_t rows,
            std::int64_t dim,
            std::int64_t padded,
            M scale,
            T* to,
            std::int64_t stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const M* from = x + i * padded;
    T* row = to + i * stride;
    std::int64_t d = 0;
    for (; d + kStep <= dim; d += kStep) {
#pragma omp simd
      for (std::int64_t l = 0; l < kStep; ++l) put(row[d + l], scale * from[d + l]);
    }
    for (; d < dim; ++d) put(row[d], scale * from[d]);
  }
}

template <typename T, typename M>
void row_dots(
    const T* x, const T* y, std::int64_t stride, std::int64_t rows, std::int64_t dim, M* sums) {
  for (std::int64_t i = 0; i < rows; ++i) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t d = 0; d < dim; ++d)
      sum += double(wide(x[i * stride + d])) * double(wide(y[i * stride + d]));
    sums[i] = M(sum);
  }
}

template <int... kLane>
struct Lanes {};
template <int kCount, int... kLane>
struct LanesTo : LanesTo<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct LanesTo<0, kLane...> {
  using Type = Lanes<kLane...>;
};

/// Exchanges the halves of 2 kHalf x 2 kHalf blocks that stand off their diagonal.
template <int kHalf, typename V, int... kLane>
inline void exchange(V& a, V& b, Lanes<kLane...>) {
  constexpr int kCount = int(sizeof...(kLane));
  const V low =
      __builtin_shufflevector(a, b, ((kLane & kHalf) != 0 ? kCount + kLane - kHalf : kLane)...);
  const V high =
      __builtin_shufflevector(a, b, ((kLane & kHalf) != 0 ? kCount + kLane : kLane + kHalf)...);
  a = low;
  b = high;
}

template <int kHalf, typename V, int kCount>
inline void transpose_block(V (&rows)[kCount]) {
  if constexpr (kHalf > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
      if ((i & kHalf) == 0)
        exchange<kHalf>(rows[i], rows[i + kHalf], typename LanesTo<kCount>::Type{});
    }
    transpose_block<kHalf / 2>(rows);
  }
}

template <typename M>
void transpose(const M* x, std::int64_t padded, M* to) {
  constexpr int kCount = kLanes<M>;
  for (std::int64_t d = 0; d < padded; d += kCount) {
    for (std::int64_t j = 0; j < kKeyTile; j += kCount) {
      Vector<M> rows[kCount];
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) rows[i] = load(x + (j + i) * padded + d);
      transpose_block<kCount / 2>(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) store(to + (d + i) * kKeyTile + j, rows[i]);
    }
  }
}

/// A factor a[i * row + p * column].
template <typename M>
struct Left {
  const M* data;
  std::int64_t row;
  std::int64_t column;
};
/// A factor b[p * row + j].
template <typename M>
struct Right {
  const M* data;
  std::int64_t row;
};

/// c[i][j] (+)= sum over p, ascending, of a[i][p] b[p][j], of kBlockRows rows and kVectors vectors.
template <int kVectors, typename M>
inline void multiply_block(
    std::int64_t depth, Left<M> a, Right<M> b, M* c, std::int64_t c_row, bool add) {
  constexpr int kWidth = kLanes<M>;
  Vector<M> sums[kBlockRows][kVectors] = {};
  if (add) {
#pragma GCC unroll 8
    for (int i = 0; i < kBlockRows; ++i) {
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) sums[i][n] = load(c + i * c_row + n * kWidth);
    }
  }
  const M* left = a.data;
  const M* right = b.data;
  for (std::int64_t p = 0; p < depth; ++p, left += a.column, right += b.row) {
    Vector<M> values[kVectors];
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) values[n] = load(right + n * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < kBlockRows; ++i) {
      const M factor = left[i * a.row];
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) sums[i][n] += factor * values[n];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kBlockRows; ++i) {
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) store(c + i * c_row + n * kWidth, sums[i][n]);
  }
}

/// The same of as many columns as `left_over` asks for, up to two vectors.
template <typename M>
inline void multiply_columns(std::int64_t left_over,
                             std::int64_t depth,
                             Left<M> a,
                             Right<M> b,
                             M* c,
                             std::int64_t c_row,
                             bool add) {
  if (left_over > kLanes<M>) {
    multiply_block<2>(depth, a, b, c, c_row, add);
  } else {
    multiply_block<1>(depth, a, b, c, c_row, add);
  }
}

/// A key tile beside a query tile. Query i sees no key at or beyond i + diagonal + 1.
struct KeyTile {
  std::int64_t rows;      ///< queries
  std::int64_t width;     ///< keys
  std::int64_t diagonal;  ///< position of the first query less that of the first key, >= 0
  /// Keys that any query of the block of rows from i may see.
  [[nodiscard]] std::int64_t seen(std::int64_t i) const {
    return smaller(width, diagonal + i + kBlockRows);
  }
};

/// scores = x keys^T, as far as they are seen.
template <typename M>
void multiply_keys(
    const KeyTile& tile, std::int64_t dim, Left<M> x, const M* keys_transposed, M* scores) {
  for (std::int64_t j = 0; j < tile.width; j += 2 * kLanes<M>) {
    for (std::int64_t i = 0; i < tile.rows; i += kBlockRows) {
      const std::int64_t left_over = tile.seen(i) - j;
      if (left_over <= 0) continue;
      multiply_columns<M>(left_over,
                          dim,
                          {x.data + i * x.row, x.row, x.column},
                          {keys_transposed + j, kKeyTile},
                          scores + i * kKeyTile + j,
                          kKeyTile,
                          false);
    }
  }
}

/// to[i] (+)= sum over the keys that are seen of weights[i][j] values[j].
template <typename M>
void weigh_values(
    const KeyTile& tile, std::int64_t padded, const M* weights, const M* values, M* to, bool add) {
  for (std::int64_t d = 0; d < padded; d += 2 * kLanes<M>) {
    for (std::int64_t i = 0; i < tile.rows; i += kBlockRows) {
      multiply_columns<M>(padded - d,
                          tile.seen(i),
                          {weights + i * kKeyTile, kKeyTile, 1},
                          {values + d, padded},
                          to + i * padded + d,
                          padded,
                          add);
    }
  }
}

/// to[j] += sum over the queries that see it of weights[i][j] rows[i].
template <typename M>
void weigh_queries(
    const KeyTile& tile, std::int64_t padded, const M* weights, const M* rows, M* to) {
  for (std::int64_t d = 0; d < padded; d += 2 * kLanes<M>) {
    for (std::int64_t j = 0; j < tile.width; j += kBlockRows) {
      const std::int64_t first = larger(0, j - tile.diagonal);
      if (first >= tile.rows) break;
      multiply_columns<M>(padded - d,
                          tile.rows - first,
                          {weights + first * kKeyTile + j, 1, kKeyTile},
                          {rows + first * padded + d, padded},
                          to + j * padded + d,
                          padded,
                          true);
    }
  }
}

/// Columns [first, end) of a row that are seen, and `span` >= end, the columns to be worked on.
struct Seen {
  std::int64_t first, end, span;
};
inline Seen seen_by(const QueryTile& queries,
                    const KeyTile& tile,
                    std::int64_t key,
                    std::int64_t i) {
  const std::int64_t end = smaller(tile.width, tile.diagonal + i + 1);
  const std::int64_t start = queries.document_start == nullptr ? 0 : queries.document_start[i];
  const std::int64_t first = smaller(end, larger(0, start - key));
  return {first, end, (end + kStep - 1) / kStep * kStep};
}
template <typename M>
inline void fill_unseen(const Seen& seen, M* row, M value) {
  if (seen.first == 0 && seen.end == seen.span) return;
  const int first = int(seen.first);
  const int end = int(seen.end);
  for (std::int64_t j = 0; j < seen.span; j += kStep) {
#pragma omp simd
    for (int l = 0; l < int(kStep); ++l) {
      const int at = int(j) + l;
      const M kept = row[j + l];
      row[j + l] = at < first ? value : at < end ? kept : value;
    }
  }
}

/// The first key tile that any of the queries sees.
inline std::int64_t first_key(const QueryTile& tile) {
  if (tile.document_start == nullptr) return 0;
  std::int64_t first = tile.document_start[0];
  for (std::int64_t i = 1; i < tile.rows; ++i)
    first = smaller(first, std::int64_t(tile.document_start[i]));
  return first / kKeyTile * kKeyTile;
}

/// Asks for a row of what is packed or written next: so few rows, far apart in memory, would
/// otherwise be waited for.
inline void fetch_ahead(const QueryTile& tile, std::int64_t i) {
  constexpr std::int64_t kLine = 64;
  for (const Ahead& ahead : tile.ahead) {
    if (i >= ahead.rows) continue;
    const char* row = ahead.data + i * ahead.stride;
    for (std::int64_t byte = 0; byte < ahead.bytes; byte += kLine) __builtin_prefetch(row + byte);
  }
}

/// Of n > 0 elements, a multiple of kStep.
template <typename M>
inline M max_of_row(const M* row, std::int64_t n) {
  Vector<M> most = load(row);
  for (std::int64_t j = kLanes<M>; j < n; j += kLanes<M>) {
    const Vector<M> values = load(row + j);
    most = values > most ? values : most;
  }
  M largest = -M(__builtin_inff());
#pragma omp simd reduction(max : largest)
  for (int l = 0; l < kLanes<M>; ++l) largest = most[l] > largest ? most[l] : largest;
  return largest;
}

template <typename M>
inline void multiply_row(M* row, std::int64_t n, M factor) {
  for (std::int64_t j = 0; j < n; j += kStep) {
#pragma omp simd
    for (std::int64_t l = 0; l < kStep; ++l) row[j + l] *= factor;
  }
}

/// row = exp(row - shift), added up in kStep sums: adding those to one here would take longer than
/// the exponentials.
template <typename M>
inline void exp_row(M* row, std::int64_t n, M shift, M* sums) {
  for (std::int64_t j = 0; j < n; j += kStep) {
#pragma omp simd
    for (std::int64_t l = 0; l < kStep; ++l) {
      const M value = exp_of(row[j + l] - shift);
      row[j + l] = value;
      sums[l] += value;
    }
  }
}

/// p = exp(p - lse), ds = p (ds - delta).
template <typename M>
inline void gradient_row(M* p, M* ds, std::int64_t n, M lse, M delta) {
  for (std::int64_t j = 0; j < n; j += kStep) {
#pragma omp simd
    for (std::int64_t l = 0; l < kStep; ++l) {
      const M value = exp_of(p[j + l] - lse);
      p[j + l] = value;
      ds[j + l] = value * (ds[j + l] - delta);
    }
  }
}

template <typename M>
void forward(const QueryTile& queries,
             const M* q,
             const M* k_transposed,
             const M* v,
             M* scores,
             M* out,
             M* lse) {
  constexpr M kNone = -M(__builtin_inff());
  const std::int64_t padded = queries.padded;
  M largest[kQueryTile];
  M shift[kQueryTile];
  M shrink[kQueryTile];
  M sums[kQueryTile * kStep];
  for (std::int64_t i = 0; i < kQueryTile; ++i) largest[i] = shift[i] = kNone;
  for (std::int64_t l = 0; l < kQueryTile * kStep; ++l) sums[l] = 0;
  const std::int64_t first = first_key(queries);
  for (std::int64_t key = first; key < queries.query + queries.rows; key += kKeyTile) {
    const KeyTile tile{
        queries.rows, smaller(kKeyTile, queries.query + queries.rows - key), queries.query - key};
    multiply_keys<M>(tile, queries.dim, {q, padded, 1}, k_transposed + key * padded, scores);
    for (std::int64_t i = 0; i < queries.rows; ++i) {
      M* row = scores + i * kKeyTile;
      const Seen seen = seen_by(queries, tile, key, i);
      fill_unseen(seen, row, kNone);
      shift[i] = max_of_row(row, seen.span);
      if (key == first) fetch_ahead(queries, i);
    }
#pragma omp simd
    for (std::int64_t i = 0; i < kQueryTile; ++i) {
      const M now = shift[i] > largest[i] ? shift[i] : largest[i];
      // Where a document begins later nothing is seen yet, and -inf less itself is no number.
      shift[i] = now == kNone ? M(0) : now;
      shrink[i] = exp_of(largest[i] - shift[i]);
      largest[i] = now;
    }
    for (std::int64_t i = 0; i < queries.rows; ++i) {
      if (key != first) {
        multiply_row(sums + i * kStep, kStep, shrink[i]);
        multiply_row(out + i * padded, padded, shrink[i]);
      }
      const std::int64_t span = seen_by(queries, tile, key, i).span;
      exp_row(scores + i * kKeyTile, span, shift[i], sums + i * kStep);
    }
    weigh_values(tile, padded, scores, v + key * padded, out, key != first);
  }
  for (std::int64_t i = 0; i < queries.rows; ++i) {
    double sum = 0;
    for (std::int64_t l = 0; l < kStep; ++l) sum += double(sums[i * kStep + l]);
    lse[i] = M(double(largest[i]) + ::log(sum));
    multiply_row(out + i * padded, padded, M(1 / sum));
  }
}

template <typename M>
void backward(const QueryTile& queries,
              const M* q,
              const M* dout,
              const M* lse,
              const M* delta,
              const M* k,
              const M* k_transposed,
              const M* v_transposed,
              M* probs,
              M* dscores,
              M* dq,
              M* dk,
              M* dv) {
  const std::int64_t padded = queries.padded;
  const std::int64_t first = first_key(queries);
  for (std::int64_t key = first; key < queries.query + queries.rows; key += kKeyTile) {
    const KeyTile tile{
        queries.rows, smaller(kKeyTile, queries.query + queries.rows - key), queries.query - key};
    multiply_keys<M>(tile, queries.dim, {q, padded, 1}, k_transposed + key * padded, probs);
    multiply_keys<M>(tile, queries.dim, {dout, padded, 1}, v_transposed + key * padded, dscores);
    for (std::int64_t i = 0; i < queries.rows; ++i) {
      M* p = probs + i * kKeyTile;
      M* ds = dscores + i * kKeyTile;
      const Seen seen = seen_by(queries, tile, key, i);
      // exp(-inf) = 0, which leaves no gradient.
      fill_unseen(seen, p, -M(__builtin_inff()));
      fill_unseen(seen, ds, M(0));
      gradient_row(p, ds, seen.span, lse[i], delta[i]);
      if (key == first) fetch_ahead(queries, i);
    }
    weigh_queries(tile, padded, probs, dout, dv + key * padded);
    weigh_queries(tile, padded, dscores, q, dk + key * padded);
    weigh_values(tile, padded, dscores, k + key * padded, dq, key != first);
  }
}

template <typename T, typename M>
constexpr AttentionKernels<T, M> kTable{
    pack<T, M>, transpose<M>, unpack<T, M>, row_dots<T, M>, forward<M>, backward<M>};

}  // namespace

extern const IsaAttention PECAN_ISA_KERNELS;
const IsaAttention PECAN_ISA_KERNELS{
    kTable<float, float>, kTable<double, double>, kTable<Bf16Bits, float>};

}  // namespace pecan::ops::detail
