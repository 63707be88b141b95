#pragma once
/// Causal grouped-query attention, and its gradients, over tiles: no S x S matrix is ever in
/// memory. bf16 multiplies on tensor cores, f32 and f64 by multiply-adds.
///
/// A block of 128 threads takes 32 queries of a head (f32; bf16 64, f64 16) and passes over tiles
/// of 32 keys, from the first that a document of its queries begins with to the diagonal. The
/// gradients of keys and values are made the other way round, by blocks of keys that pass over the
/// queries of all heads of their group: so every sum has one owner and a fixed order, for which the
/// scores are made twice. Heads wider than 128 are made in two parts of 128 columns, each of which
/// makes all scores.
///
/// With W = D rounded up to 32, 64, 128 or 256, R rows of a block, s bytes an element (f64 8, f32
/// 4, bf16 2) and m of its sums (8, 4, 4), shared memory: (R + 64) (W s + 16) bytes forward, (2 R +
/// 64) (W s + 16) backward, and R (34 m + 32 s + 36). Bytes a head: forward 4 s S D from memory, and
/// s S^2 D / R from the cache. Flops a head: forward 2 S^2 D, backward 7 S^2 D (atomics would save
/// 2); of two parts 3 and 11, and twice the bytes from the cache. Intensity against the cache: 2 R / s flops a byte, 64 in bf16 and 16 in f32. Multiply-adds
/// bound f32; shared memory, through which scores go from tensor cores to softmax and back, bf16.
/// Source: Dao et al., "FlashAttention-2" (arXiv 2307.08691), algorithms 1 and 2.

#include <pecan/ops/attention.hpp>

#include "kernels/tiles.cuh"

namespace pecan::kernels {

/// Of a multiprocessor at least, for which there are registers; an H100 has shared memory for them
/// in bf16 and f32, but for the gradients of heads wider than 128.
constexpr int kTileBlocks = 2;
/// Later than all starts.
constexpr int kNoDocument = std::numeric_limits<int>::max();

struct Earlier {
  __device__ int operator()(int a, int b) const { return a < b ? a : b; }
};

/// What the kernels are given beside their tensors.
struct AttentionCall {
  ops::AttentionShape shape;
  const std::int32_t* document_start_T;  ///< may be null
  int width;                             ///< of tiles: the head dim, rounded up
  int parts;                             ///< of the result's columns
  bool packed;                           ///< as load_tile has it

  [[nodiscard]] __device__ int share() const { return int(shape.heads / shape.kv_groups); }
  /// Elements between neighbouring positions.
  [[nodiscard]] __device__ Index q_stride() const { return shape.heads * shape.head_dim; }
  [[nodiscard]] __device__ Index k_stride() const { return shape.kv_groups * shape.head_dim; }
  /// Where rows from `position` on begin, in q, out and their gradients.
  [[nodiscard]] __device__ Index query(Index batch, Index head, Index position) const {
    return (batch * shape.sequence + position) * q_stride() + head * shape.head_dim;
  }
  /// In k, v and theirs.
  [[nodiscard]] __device__ Index key(Index batch, Index group, Index position) const {
    return (batch * shape.sequence + position) * k_stride() + group * shape.head_dim;
  }
  /// In lse and delta.
  [[nodiscard]] __device__ Index row(Index batch, Index head, Index position) const {
    return (batch * shape.heads + head) * shape.sequence + position;
  }
  [[nodiscard]] __device__ int start_of(Index batch, Index position) const {
    if (document_start_T == nullptr) return 0;
    const int start = document_start_T[batch * shape.sequence + position];
    require(start >= 0 && start <= position);
    return start;
  }
};

/// Tiles and scores of a block, in dynamic shared memory.
template <typename Tiles>
struct AttentionMemory {
  using M = typename Tiles::M;
  using Staged = typename Tiles::Staged;
  static constexpr int kBlockRows = kTileWarps * Tiles::kRows;
  static constexpr int kScores = Tiles::kRows * stride_of<M>(kTileColumns);
  static constexpr int kWeights = Tiles::kRows * stride_of<Staged>(kTileColumns);

  Staged* rows[2];     ///< [kBlockRows][width], one or two
  Staged* columns[2];  ///< [kTileColumns][width]
  M* scores;           ///< of the warp, [Tiles::kRows][kTileColumns]
  Staged* weights;     ///< the same
  M* lse;              ///< of the warp's rows
  M* delta;            ///< the same
  int* starts;         ///< the same

  [[nodiscard]] static constexpr std::size_t bytes(int num_rows, int width) {
    return (std::size_t(num_rows) * kBlockRows + 2 * kTileColumns) *
               std::size_t(stride_of<Staged>(width)) * sizeof(Staged) +
           kTileWarps * (kScores * sizeof(M) + kWeights * sizeof(Staged)) +
           kBlockRows * (2 * sizeof(M) + sizeof(int));
  }

  __device__ AttentionMemory(int num_rows, int width) {
    const int stride = stride_of<Staged>(width);
    const int warp = int(threadIdx.x) / kWarp;
    auto* next = reinterpret_cast<Staged*>(dynamic_smem);
    rows[0] = next;
    rows[1] = next + (num_rows - 1) * kBlockRows * stride;
    next = rows[1] + kBlockRows * stride;
    columns[0] = next;
    columns[1] = next + kTileColumns * stride;
    next += 2 * kTileColumns * stride;
    weights = next + warp * kWeights;
    auto* next_sum = reinterpret_cast<M*>(next + kTileWarps * kWeights);
    scores = next_sum + warp * kScores;
    next_sum += kTileWarps * kScores;
    lse = next_sum + warp * Tiles::kRows;
    delta = lse + kBlockRows;
    starts = reinterpret_cast<int*>(next_sum + 2 * kBlockRows) + warp * Tiles::kRows;
  }
};

/// What a block makes: kBlockRows positions from `first`, of one head or group of a sequence, and
/// columns from `column` on. The longest come first.
struct AttentionBlock {
  int batch, head, first, column;

  template <int kRows, int kWidth>
  __device__ static AttentionBlock of(const AttentionCall& call, int heads, bool last_first) {
    const int tiles = (int(call.shape.sequence) + kRows - 1) / kRows;
    const int all_heads = int(call.shape.batch) * heads;
    const int index = int(blockIdx.x) / call.parts;
    const int tile = index / all_heads;
    return {index % all_heads / heads,
            index % heads,
            (last_first ? tiles - 1 - tile : tile) * kRows,
            int(blockIdx.x) % call.parts * kWidth};
  }
};

/// Notes where the documents of the warp's queries, from `own` on, start, and returns the earliest
/// start of the block's, which begin at `first`.
template <typename Memory>
__device__ int note_starts(
    const AttentionCall& call, const Memory& memory, int batch, int first, int own) {
  const int lane = threadIdx.x % kWarp, end = int(call.shape.sequence);
  if (lane < Memory::kBlockRows / kTileWarps)
    memory.starts[lane] = own + lane < end ? call.start_of(batch, own + lane) : 0;
  if (call.document_start_T == nullptr) return 0;
  int earliest = first;
  for (int position = first + lane; position < min(end, first + Memory::kBlockRows);
       position += kWarp)
    earliest = min(earliest, call.start_of(batch, position));
  return warp_reduce(earliest, Earlier{});
}

template <typename T, int kSlices, typename M = MathOf<T>>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    attention_forward_kernel(AttentionCall call,
                             M scale,
                             const T* q_TND,
                             const T* k_TGD,
                             const T* v_TGD,
                             T* out_TND,
                             M* lse_BNS) {
  using Tiles = TilesOf<T, kSlices>;
  using Memory = AttentionMemory<Tiles>;
  constexpr int kRows = Tiles::kRows, kWidth = kSlices * kWarp;
  const Memory memory(1, call.width);
  const int stride = stride_of<typename Tiles::Staged>(call.width);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int end = int(call.shape.sequence);
  const int dim = int(call.shape.head_dim);
  const auto at = AttentionBlock::of<Memory::kBlockRows, kWidth>(
      call, int(call.shape.heads), /*last_first=*/true);
  const int group = at.head / call.share();
  const int own = at.first + warp * kRows;

  load_tile<kWidth>(q_TND + call.query(at.batch, at.head, at.first),
                    call.q_stride(),
                    end - at.first,
                    Memory::kBlockRows,
                    dim,
                    call.width,
                    call.packed,
                    memory.rows[0]);
  const int earliest = note_starts(call, memory, at.batch, at.first, own);
  M largest[kRows], factors[kRows], total[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    largest[r] = -M(INFINITY);
    total[r] = 0;  // of this lane's keys
  }
  typename Tiles::Sums sums;
  const int keys_end = min(end, at.first + Memory::kBlockRows);
  for (int key = earliest / kTileColumns * kTileColumns; key < keys_end; key += kTileColumns) {
    __syncthreads();  // the tiles before may still be read
    const Index from = call.key(at.batch, group, key);
    load_tile<kWidth>(k_TGD + from,
                      call.k_stride(),
                      end - key,
                      kTileColumns,
                      dim,
                      call.width,
                      call.packed,
                      memory.columns[0]);
    load_tile<kWidth>(v_TGD + from,
                      call.k_stride(),
                      end - key,
                      kTileColumns,
                      dim,
                      call.width,
                      call.packed,
                      memory.columns[1]);
    __syncthreads();
    if (key >= own + kRows) continue;  // all of it comes after the warp's queries
    Tiles::multiply(memory.rows[0] + warp * kRows * stride,
                    memory.columns[0],
                    call.width,
                    stride,
                    memory.scores);
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool visible = key + lane <= own + r && key + lane >= memory.starts[r];
      const M score =
          visible ? scale * memory.scores[r * stride_of<M>(kTileColumns) + lane] : -M(INFINITY);
      const M larger = larger_of(largest[r], warp_reduce(score, Larger{}));
      const M shift = larger == -M(INFINITY) ? 0 : larger;  // nothing was visible yet
      const M weight = exp_of(score - shift);
      factors[r] = exp_of(largest[r] - shift);
      total[r] = total[r] * factors[r] + weight;
      largest[r] = larger;
      memory.weights[r * stride_of<typename Tiles::Staged>(kTileColumns) + lane] =
          typename Tiles::Staged(weight);
    }
    __syncwarp();
    Tiles::scale(sums, factors, memory.scores);
    Tiles::add(sums, memory.weights, memory.columns[1] + at.column, stride);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    total[r] = warp_reduce(total[r]);
    factors[r] = 1 / total[r];
    if (lane == 0 && at.column == 0 && own + r < end)
      lse_BNS[call.row(at.batch, at.head, own + r)] = largest[r] + log_of(total[r]);
  }
  __syncwarp();  // the scratch of scale may still be read
  Tiles::scale(sums, factors, memory.scores);
  T* out = out_TND + call.query(at.batch, at.head, own);
  Tiles::for_each(sums, memory.scores, [&](int row, int column, M sum) {
    if (own + row < end && at.column + column < dim)
      put(out[row * call.q_stride() + at.column + column], sum);
  });
}

/// delta = dout . out of each query, a warp each, 4 a block.
template <typename T, typename M = MathOf<T>>
__global__ void __launch_bounds__(kTileThreads)
    attention_delta_kernel(AttentionCall call, const T* dout_TND, const T* out_TND, M* delta_BNS) {
  const Index row = Index(blockIdx.x) * kTileWarps + threadIdx.x / kWarp;
  const Index heads = call.shape.heads, dim = call.shape.head_dim;
  if (row >= call.shape.batch * call.shape.sequence * heads) return;
  M sum = 0;
  for (Index d = threadIdx.x % kWarp; d < dim; d += kWarp)
    sum += wide(dout_TND[row * dim + d]) * wide(out_TND[row * dim + d]);
  sum = warp_reduce(sum);
  const Index token = row / heads;
  if (threadIdx.x % kWarp == 0) {
    delta_BNS[call.row(token / call.shape.sequence, row % heads, token % call.shape.sequence)] =
        sum;
  }
}

template <typename T, int kSlices, typename M = MathOf<T>>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks) attention_dq_kernel(AttentionCall call,
                                                                                 M scale,
                                                                                 const T* dout_TND,
                                                                                 const T* q_TND,
                                                                                 const T* k_TGD,
                                                                                 const T* v_TGD,
                                                                                 const M* lse_BNS,
                                                                                 const M* delta_BNS,
                                                                                 T* dq_TND) {
  using Tiles = TilesOf<T, kSlices>;
  using Memory = AttentionMemory<Tiles>;
  constexpr int kRows = Tiles::kRows, kWidth = kSlices * kWarp;
  const Memory memory(2, call.width);
  const int stride = stride_of<typename Tiles::Staged>(call.width);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int end = int(call.shape.sequence);
  const int dim = int(call.shape.head_dim);
  const auto at = AttentionBlock::of<Memory::kBlockRows, kWidth>(
      call, int(call.shape.heads), /*last_first=*/true);
  const int group = at.head / call.share();
  const int own = at.first + warp * kRows;

  const T* const of_rows[2] = {q_TND, dout_TND};
  const T* const of_columns[2] = {k_TGD, v_TGD};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    load_tile<kWidth>(of_rows[i] + call.query(at.batch, at.head, at.first),
                      call.q_stride(),
                      end - at.first,
                      Memory::kBlockRows,
                      dim,
                      call.width,
                      call.packed,
                      memory.rows[i]);
  }
  const int earliest = note_starts(call, memory, at.batch, at.first, own);
  if (lane < kRows) {
    const Index row = call.row(at.batch, at.head, own + lane);
    memory.lse[lane] = own + lane < end ? lse_BNS[row] : 0;
    memory.delta[lane] = own + lane < end ? delta_BNS[row] : 0;
  }
  typename Tiles::Sums sums;
  const int keys_end = min(end, at.first + Memory::kBlockRows);
  for (int key = earliest / kTileColumns * kTileColumns; key < keys_end; key += kTileColumns) {
    __syncthreads();  // the tiles before may still be read
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load_tile<kWidth>(of_columns[i] + call.key(at.batch, group, key),
                        call.k_stride(),
                        end - key,
                        kTileColumns,
                        dim,
                        call.width,
                        call.packed,
                        memory.columns[i]);
    }
    __syncthreads();
    if (key >= own + kRows) continue;  // all of it comes after the warp's queries
    M weights[kRows];
    Tiles::multiply(memory.rows[0] + warp * kRows * stride,
                    memory.columns[0],
                    call.width,
                    stride,
                    memory.scores);
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool visible = key + lane <= own + r && key + lane >= memory.starts[r];
      weights[r] =
          visible
              ? exp_of(scale * memory.scores[r * stride_of<M>(kTileColumns) + lane] - memory.lse[r])
              : 0;
    }
    __syncwarp();
    Tiles::multiply(memory.rows[1] + warp * kRows * stride,
                    memory.columns[1],
                    call.width,
                    stride,
                    memory.scores);
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const M dweight = memory.scores[r * stride_of<M>(kTileColumns) + lane];
      memory.weights[r * stride_of<typename Tiles::Staged>(kTileColumns) + lane] =
          typename Tiles::Staged(weights[r] * (dweight - memory.delta[r]));
    }
    __syncwarp();
    Tiles::add(sums, memory.weights, memory.columns[0] + at.column, stride);
  }
  __syncwarp();  // the scores may still be read
  T* dq = dq_TND + call.query(at.batch, at.head, own);
  Tiles::for_each(sums, memory.scores, [&](int row, int column, M sum) {
    if (own + row < end && at.column + column < dim)
      put(dq[row * call.q_stride() + at.column + column], scale * sum);
  });
}

template <typename T, int kSlices, typename M = MathOf<T>>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    attention_dkv_kernel(AttentionCall call,
                         M scale,
                         const T* dout_TND,
                         const T* q_TND,
                         const T* k_TGD,
                         const T* v_TGD,
                         const M* lse_BNS,
                         const M* delta_BNS,
                         T* dk_TGD,
                         T* dv_TGD) {
  using Tiles = TilesOf<T, kSlices>;
  using Memory = AttentionMemory<Tiles>;
  constexpr int kRows = Tiles::kRows, kWidth = kSlices * kWarp;
  const Memory memory(2, call.width);
  const int stride = stride_of<typename Tiles::Staged>(call.width);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int end = int(call.shape.sequence);
  const int dim = int(call.shape.head_dim);
  const auto at = AttentionBlock::of<Memory::kBlockRows, kWidth>(
      call, int(call.shape.kv_groups), /*last_first=*/false);
  const int own = at.first + warp * kRows;

  const T* const of_rows[2] = {k_TGD, v_TGD};
  const T* const of_columns[2] = {q_TND, dout_TND};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    load_tile<kWidth>(of_rows[i] + call.key(at.batch, at.head, at.first),
                      call.k_stride(),
                      end - at.first,
                      Memory::kBlockRows,
                      dim,
                      call.width,
                      call.packed,
                      memory.rows[i]);
  }
  typename Tiles::Sums dk_sums, dv_sums;
  for (int i = 0; i < call.share(); ++i) {
    const int head = at.head * call.share() + i;
    for (int query = at.first / kTileColumns * kTileColumns; query < end; query += kTileColumns) {
      const bool is_there = query + lane < end;
      const int start = is_there ? call.start_of(at.batch, query + lane) : kNoDocument;
      // Every warp sees the same queries, so that all of them pass over the tile or none.
      if (warp_reduce(start, Earlier{}) >= at.first + Memory::kBlockRows) continue;
      __syncthreads();  // the tiles before may still be read
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        load_tile<kWidth>(of_columns[j] + call.query(at.batch, head, query),
                          call.q_stride(),
                          end - query,
                          kTileColumns,
                          dim,
                          call.width,
                          call.packed,
                          memory.columns[j]);
      }
      __syncthreads();
      if (own > query + kTileColumns - 1) continue;  // the warp's keys come after all of it
      const Index row = call.row(at.batch, head, query + lane);
      const M lse = is_there ? lse_BNS[row] : 0;
      const M delta = is_there ? delta_BNS[row] : 0;
      Tiles::multiply(memory.rows[0] + warp * kRows * stride,
                      memory.columns[0],
                      call.width,
                      stride,
                      memory.scores);
      __syncwarp();
#pragma unroll 4
      for (int r = 0; r < kRows; ++r) {
        const bool visible = is_there && own + r <= query + lane && own + r >= start;
        const M weight =
            visible ? exp_of(scale * memory.scores[r * stride_of<M>(kTileColumns) + lane] - lse)
                    : 0;
        memory.weights[r * stride_of<typename Tiles::Staged>(kTileColumns) + lane] =
            typename Tiles::Staged(weight);
      }
      __syncwarp();
      Tiles::add(dv_sums, memory.weights, memory.columns[1] + at.column, stride);
      Tiles::multiply(memory.rows[1] + warp * kRows * stride,
                      memory.columns[1],
                      call.width,
                      stride,
                      memory.scores);
      __syncwarp();
#pragma unroll 4
      for (int r = 0; r < kRows; ++r) {
        const M dweight = memory.scores[r * stride_of<M>(kTileColumns) + lane];
        auto& weight = memory.weights[r * stride_of<typename Tiles::Staged>(kTileColumns) + lane];
        weight = typename Tiles::Staged(wide(weight) * (dweight - delta));
      }
      __syncwarp();
      Tiles::add(dk_sums, memory.weights, memory.columns[0] + at.column, stride);
    }
  }
  __syncwarp();  // the scores may still be read
  const Index to = call.key(at.batch, at.head, own);
  const auto write = [&](const typename Tiles::Sums& sums, M factor, T* result) {
    Tiles::for_each(sums, memory.scores, [&](int row, int column, M sum) {
      if (own + row < end && at.column + column < dim)
        put(result[row * call.k_stride() + at.column + column], factor * sum);
    });
  };
  write(dk_sums, scale, dk_TGD + to);
  write(dv_sums, 1, dv_TGD + to);
}

}  // namespace pecan::kernels
