#pragma once
/// Products with the block-sparse matrix H of a layer's experts, over the topology that was copied
/// to the device once a layer (block_sparse.hpp has the legend): SDD a block of H each, DSD a row
/// of blocks by 128 columns of the dense matrix, the gradients of weights (DSD of H^T, and DDS) a
/// column of blocks by 128. bf16 multiplies on tensor cores, f32 and f64 by multiply-adds.
///
/// A block of 256 threads makes a tile of 128 x 128 (f64: a quarter of it), in steps of 32 places
/// of the sum (f32, f64: 16), and fetches the next step from memory while it multiplies the one
/// before. Blocks of H in a row lie side by side, those in a column one below the other: either is
/// one sum, in ascending order, of one owner, without atomics. At the end of a group warps without
/// rows wait.
///
/// Shared memory: two steps of both operands, 34 to 40 KiB. With s bytes an element of the
/// activations and m of the master type: bytes of SDD and DSD s (R I + R F + E I F), of the
/// gradients s (R I + R F) + 2 m E I F; flops 2 R I F each. Intensity against the cache: 128 / s
/// flops a byte, 64 in bf16 and 32 in f32. Tensor cores bound bf16 where groups have more than a
/// few hundred rows, multiply-adds f32, and memory (the weights) both below.
///
/// Source: Gale et al., "MegaBlocks" (arXiv 2211.15841), section 5. Differs from the paper: see
/// block_sparse.hpp.

#include <algorithm>

#include <mma.h>

#include <pecan/ops/block_sparse.hpp>

#include "kernels/common.cuh"

namespace pecan::kernels {

using ops::BlockTopology;

constexpr int kSparseThreads = 256;
/// Of a multiprocessor at least, for which there are registers and shared memory.
constexpr int kSparseBlocks = 2;

/// The weights of some groups, which a launch has as a parameter.
template <typename Element>
struct GroupMatrices {
  static constexpr int kMost = 128;
  int first;           ///< group of the first one
  Element* of[kMost];  ///< may be null

  [[nodiscard]] __device__ Element* matrix(int group) const { return of[group - first]; }
};

/// What the kernels are given beside their tensors.
struct SparseCall {
  BlockTopology::Arrays topology;
  int width;    ///< F
  int dense;    ///< I
  int first;    ///< block, row or column of blocks that the launch begins with
  bool packed;  ///< all rows of all matrices begin at multiples of 16 bytes
};

/// How memory holds an operand, row by row: what is summed over goes along its rows or across them.
enum class Summed : std::uint8_t { kAlongRows, kAcrossRows };

template <typename T>
struct SparseTile {
  static constexpr int kEdge = std::is_same_v<T, double> ? 64 : 128;
  static constexpr int kDepth = std::is_same_v<T, Bf16> ? 32 : 16;
  /// Tiles of an edge of a block of H.
  static constexpr int kCuts = int(BlockTopology::kBlock) / kEdge;
  static_assert(kCuts * kEdge == BlockTopology::kBlock);
};

/// One operand of a tile: `lines` rows or columns of the result, up to kEdge.
template <typename T>
struct Operand {
  const T* data;  ///< of the first line, at the first place of the sum
  int stride;     ///< of memory's rows
  int lines;
};

/// Steps of an operand, one after the other: from memory to registers of the block, and from there
/// to shared memory.
template <typename T, Summed kSummed>
class Stage {
 public:
  static constexpr int kEdge = SparseTile<T>::kEdge, kDepth = SparseTile<T>::kDepth;
  static constexpr int kPack = 16 / int(sizeof(T));
  /// Tensor cores read either way; multiply-adds want lines side by side.
  static constexpr bool kByLine = std::is_same_v<T, Bf16> && kSummed == Summed::kAlongRows;
  /// 16 bytes more than its elements keep the rows of a step in different banks.
  static constexpr int kStride = (kByLine ? kDepth : kEdge) + kPack;
  static constexpr int kSize = (kByLine ? kEdge : kDepth) * kStride;

  [[nodiscard]] __device__ static constexpr int at(int line, int depth) {
    return kByLine ? line * kStride + depth : depth * kStride + line;
  }

  __device__ explicit Stage(const Operand<T>& from)
      : next_(from.data + Index(own_row()) * from.stride + own_column()),
        stride_(from.stride),
        lines_(from.lines) {}

  /// The next kDepth places of the sum, or the `left` that there are, to registers; zeros beyond
  /// them and the lines. Every row begins at a multiple of 16 bytes.
  __device__ void fetch(int left) {
    const int depth = min(kDepth, left);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      packs_[p] = {};
      if (own_row() + p * kRowsApart < rows(depth) && own_column() < columns(depth))
        packs_[p] = *reinterpret_cast<const Pack<T, kPack>*>(own(p));
    }
    advance();
  }

  /// What was fetched, to shared memory.
  __device__ void store(T* to) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int row = own_row() + p * kRowsApart, column = own_column();
      if constexpr (kAlong && !kByLine) {
#pragma unroll
        for (int i = 0; i < kPack; ++i) to[at(row, column + i)] = packs_[p].values[i];
      } else {
        *reinterpret_cast<Pack<T, kPack>*>(to + row * kStride + column) = packs_[p];
      }
    }
  }

  /// Both at once, element by element: wherever rows begin.
  __device__ void copy(int left, T* to) {
    const int depth = min(kDepth, left);
#pragma unroll 1
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll 1
      for (int i = 0; i < kPack; ++i) {
        const int row = own_row() + p * kRowsApart, column = own_column() + i;
        const bool is_there = row < rows(depth) && column < columns(depth);
        to[kAlong ? at(row, column) : at(column, row)] = is_there ? own(p)[i] : T(0.0F);
      }
    }
    advance();
  }

 private:
  static constexpr bool kAlong = kSummed == Summed::kAlongRows;
  /// Of memory's rows: neighbours have neighbouring threads.
  static constexpr int kPacksOfRow = (kAlong ? kDepth : kEdge) / kPack;
  static constexpr int kRowsApart = kSparseThreads / kPacksOfRow;
  static constexpr int kPacks = (kAlong ? kEdge : kDepth) / kRowsApart;  ///< of a thread
  [[nodiscard]] __device__ static int own_row() {
    return int(threadIdx.x) / kPacksOfRow;
  }
  [[nodiscard]] __device__ static int own_column() {
    return int(threadIdx.x) % kPacksOfRow * kPack;
  }

  /// That there are of a step, in memory.
  [[nodiscard]] __device__ int rows(int depth) const {
    return kAlong ? lines_ : depth;
  }
  [[nodiscard]] __device__ int columns(int depth) const {
    return kAlong ? depth : lines_;
  }
  [[nodiscard]] const __device__ T* own(int p) const {
    return next_ + Index(p * kRowsApart) * stride_;
  }
  __device__ void advance() {
    next_ += kAlong ? Index(kDepth) : Index(kDepth) * stride_;
  }

  const T* next_;  ///< of this thread's first pack
  int stride_;
  int lines_;
  Pack<T, kPack> packs_[kPacks];
};

/// Where a tile of the result goes.
template <typename T>
struct TileTarget {
  T* data;
  int stride;
  int rows, columns;
  bool packed;
  bool adds;

  static constexpr int kPack = 16 / int(sizeof(T));
  using Sums = Pack<MathOf<T>, kPack>;

  __device__ void write(int row, int column, const Sums& sums) const {
    if (row >= rows || column >= columns) return;
    T* to = data + Index(row) * stride + column;
    if (packed) {
      auto* pack = reinterpret_cast<Pack<T, kPack>*>(to);
      Pack<T, kPack> result = {};
      if (adds) result = *pack;
#pragma unroll
      for (int i = 0; i < kPack; ++i) put_sum(result.values[i], sums.values[i]);
      *pack = result;
    } else {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if (column + i < columns) put_sum(to[i], sums.values[i]);
      }
    }
  }

 private:
  __device__ void put_sum(T& to, MathOf<T> sum) const {
    put(to, adds ? wide(to) + sum : sum);
  }
};

/// The sums of a tile by multiply-adds: a thread makes 2 x 2 squares of kPack x kPack, which lie
/// half an edge apart.
template <typename T, Summed kA, Summed kB>
struct FmaSums {
  using StageA = Stage<T, kA>;
  using StageB = Stage<T, kB>;
  static constexpr int kPack = StageA::kPack;
  static constexpr int kAcross = 16;  ///< threads
  static constexpr int kHalf = kAcross * kPack;
  static_assert(2 * kHalf == StageA::kEdge && kAcross * kAcross == kSparseThreads);
  static constexpr std::size_t kScratchBytes = 0;

  Pack<T, kPack> of[2 * kPack][2] = {};

  /// Whether the thread has any of these rows and columns.
  [[nodiscard]] __device__ static bool has_some(int rows, int columns) {
    return own_row() < rows && own_column() < columns;
  }

  __device__ void add(const T* a, const T* b) {
#pragma unroll 1
    for (int d = 0; d < StageA::kDepth; ++d) {
      Pack<T, kPack> of_a[2], of_b[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        of_a[half] = load(a + StageA::at(half * kHalf + own_row(), d));
        of_b[half] = load(b + StageB::at(half * kHalf + own_column(), d));
      }
#pragma unroll
      for (int r = 0; r < 2 * kPack; ++r) {
#pragma unroll
        for (int c = 0; c < 2 * kPack; ++c) {
          of[r][c / kPack].values[c % kPack] +=
              of_a[r / kPack].values[r % kPack] * of_b[c / kPack].values[c % kPack];
        }
      }
    }
  }

  template <typename Out>
  __device__ void write(const TileTarget<Out>& target, T* /*scratch*/) const {
    static_assert(std::is_same_v<Out, T>);
#pragma unroll
    for (int r = 0; r < 2 * kPack; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        target.write(
            r / kPack * kHalf + own_row() + r % kPack, half * kHalf + own_column(), of[r][half]);
      }
    }
  }

 private:
  [[nodiscard]] __device__ static int own_row() {
    return int(threadIdx.x) / kAcross * kPack;
  }
  [[nodiscard]] __device__ static int own_column() {
    return int(threadIdx.x) % kAcross * kPack;
  }
  __device__ static Pack<T, kPack> load(const T* from) {
    return *reinterpret_cast<const Pack<T, kPack>*>(from);
  }
};

/// The same by tensor cores: a warp makes 32 x 64, in f32.
template <Summed kA, Summed kB>
struct TensorSums {
  using StageA = Stage<Bf16, kA>;
  using StageB = Stage<Bf16, kB>;
  static constexpr int kSquare = 16;
  static constexpr int kRows = 32, kColumns = 64;  ///< of a warp
  static constexpr int kWarps = kSparseThreads / kWarp;
  static constexpr int kAcross = StageA::kEdge / kColumns;  ///< warps
  static_assert(kWarps / kAcross * kRows == StageA::kEdge);
  static constexpr int kScratchStride = kColumns + 4;
  static constexpr int kScratch = kSquare * kScratchStride;  ///< floats of a warp
  static constexpr std::size_t kScratchBytes = kWarps * kScratch * sizeof(float);

  template <Summed kSummed, bool kIsA>
  using Layout = std::conditional_t<(kSummed == Summed::kAlongRows) == kIsA,
                                    nvcuda::wmma::row_major,
                                    nvcuda::wmma::col_major>;
  using SquareA = nvcuda::wmma::
      fragment<nvcuda::wmma::matrix_a, kSquare, kSquare, kSquare, Bf16, Layout<kA, true>>;
  using SquareB = nvcuda::wmma::
      fragment<nvcuda::wmma::matrix_b, kSquare, kSquare, kSquare, Bf16, Layout<kB, false>>;
  using Square =
      nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kSquare, kSquare, kSquare, float>;

  Square of[kRows / kSquare][kColumns / kSquare];

  __device__ TensorSums() {
#pragma unroll
    for (auto& row : of) {
#pragma unroll
      for (Square& square : row) nvcuda::wmma::fill_fragment(square, 0.0F);
    }
  }

  /// Alike for the whole warp.
  [[nodiscard]] __device__ static bool has_some(int rows, int columns) {
    return own_row() < rows && own_column() < columns;
  }

  __device__ void add(const Bf16* a, const Bf16* b) {
#pragma unroll
    for (int d = 0; d < StageA::kDepth; d += kSquare) {
      SquareA of_a[kRows / kSquare];
#pragma unroll
      for (int r = 0; r < kRows / kSquare; ++r) {
        nvcuda::wmma::load_matrix_sync(
            of_a[r], a + StageA::at(own_row() + r * kSquare, d), StageA::kStride);
      }
#pragma unroll
      for (int c = 0; c < kColumns / kSquare; ++c) {
        SquareB of_b;
        nvcuda::wmma::load_matrix_sync(
            of_b, b + StageB::at(own_column() + c * kSquare, d), StageB::kStride);
#pragma unroll
        for (int r = 0; r < kRows / kSquare; ++r)
          nvcuda::wmma::mma_sync(of[r][c], of_a[r], of_b, of[r][c]);
      }
    }
  }

  /// Which lane has which element is left open: they go through memory of the warp.
  template <typename Out>
  __device__ void write(const TileTarget<Out>& target, Bf16* scratch) const {
    constexpr int kPack = TileTarget<Out>::kPack, kPacks = kColumns / kPack;
    float* own = reinterpret_cast<float*>(scratch) + int(threadIdx.x) / kWarp * kScratch;
#pragma unroll
    for (int r = 0; r < kRows / kSquare; ++r) {
      __syncwarp();  // the rows before may still be read
#pragma unroll
      for (int c = 0; c < kColumns / kSquare; ++c) {
        nvcuda::wmma::store_matrix_sync(
            own + c * kSquare, of[r][c], kScratchStride, nvcuda::wmma::mem_row_major);
      }
      __syncwarp();
      for (int i = int(threadIdx.x) % kWarp; i < kSquare * kPacks; i += kWarp) {
        const int row = i / kPacks, column = i % kPacks * kPack;
        target.write(
            own_row() + r * kSquare + row,
            own_column() + column,
            *reinterpret_cast<const Pack<float, kPack>*>(own + row * kScratchStride + column));
      }
    }
  }

 private:
  [[nodiscard]] __device__ static int own_row() {
    return int(threadIdx.x) / kWarp / kAcross * kRows;
  }
  [[nodiscard]] __device__ static int own_column() {
    return int(threadIdx.x) / kWarp % kAcross * kColumns;
  }
};

/// A tile of the product of two operands, in dynamic shared memory.
template <typename T, Summed kA, Summed kB>
struct SparseProduct {
  using Sums = std::conditional_t<std::is_same_v<T, Bf16>, TensorSums<kA, kB>, FmaSums<T, kA, kB>>;
  using StageA = Stage<T, kA>;
  using StageB = Stage<T, kB>;
  static constexpr int kStep = StageA::kSize + StageB::kSize;
  static constexpr std::size_t kSharedBytes = std::max(2 * kStep * sizeof(T), Sums::kScratchBytes);

  /// Sums over `count` places.
  template <typename Out>
  __device__ static void make(const Operand<T>& a,
                              const Operand<T>& b,
                              int count,
                              const TileTarget<Out>& target) {
    T* const steps = reinterpret_cast<T*>(dynamic_smem);
    // The sums take most registers: what is needed after them waits here.
    __shared__ TileTarget<Out> kept_target;
    if (threadIdx.x == 0) kept_target = target;
    const bool packed = target.packed, computes = Sums::has_some(a.lines, b.lines);
    Sums sums;
    StageA of_a(a);
    StageB of_b(b);
    const auto fetch = [&](int left) {
      if (!packed) return;
      of_a.fetch(left);
      of_b.fetch(left);
    };
    // Steps take turns in two places.
    const auto place_of = [&](int left) { return steps + (left - 1) / StageA::kDepth % 2 * kStep; };
    const auto store = [&](int left) {
      T* const to = place_of(left);
      if (packed) {
        of_a.store(to);
        of_b.store(to + StageA::kSize);
      } else {
        of_a.copy(left, to);
        of_b.copy(left, to + StageA::kSize);
      }
    };
    if (count > 0) {
      fetch(count);
      store(count);
    }
    __syncthreads();
    for (int left = count; left > 0; left -= StageA::kDepth) {
      const int then = left - StageA::kDepth;
      if (then > 0) fetch(then);
      const T* step = place_of(left);
      if (computes) sums.add(step, step + StageA::kSize);
      if (then > 0) store(then);  // the readers of that place have passed the barrier
      __syncthreads();
    }
    sums.write(kept_target, steps);
  }
};

/// How many of `count` lines a tile has that begins with line `first`.
template <typename T>
__device__ int lines_of(Index count, Index first) {
  return int(min(Index(SparseTile<T>::kEdge), count - first));
}

/// h = x W', a block of H each, or a quarter. kWeight: how memory holds W', [F, I] or [I, F].
template <typename T, Summed kWeight>
__global__ void __launch_bounds__(kSparseThreads, kSparseBlocks)
    block_sparse_sdd_kernel(SparseCall call, GroupMatrices<const T> w_E, const T* x_RI, T* h_RF) {
  using Tile = SparseTile<T>;
  const BlockTopology::Arrays& of = call.topology;
  const int cut = int(blockIdx.x) % (Tile::kCuts * Tile::kCuts);
  const int block = call.first + int(blockIdx.x) / (Tile::kCuts * Tile::kCuts);
  const BlockTopology::Range rows = of.row_blocks[of.row_indices[block]];
  const BlockTopology::Range columns = of.column_blocks[of.column_indices[block]];
  const int row = cut / Tile::kCuts * Tile::kEdge, column = cut % Tile::kCuts * Tile::kEdge;
  if (row >= rows.count || column >= columns.count) return;
  const Index first_row = rows.first + row, first_column = columns.first + column;
  const T* w = w_E.matrix(rows.group);
  const Operand<T> a{x_RI + first_row * call.dense, call.dense, lines_of<T>(rows.count, row)};
  const int lines = lines_of<T>(columns.count, column);
  const Operand<T> b = kWeight == Summed::kAlongRows
                           ? Operand<T>{w + first_column * call.dense, call.dense, lines}
                           : Operand<T>{w + first_column, call.width, lines};
  const TileTarget<T> target{h_RF + first_row * call.width + first_column,
                             call.width,
                             a.lines,
                             b.lines,
                             call.packed,
                             /*adds=*/false};
  SparseProduct<T, Summed::kAlongRows, kWeight>::make(a, b, call.dense, target);
}

/// y (+)= h W', a row of blocks of H by kEdge columns each.
template <typename T, Summed kWeight>
__global__ void __launch_bounds__(kSparseThreads, kSparseBlocks) block_sparse_dsd_kernel(
    SparseCall call, GroupMatrices<const T> w_E, bool adds, const T* h_RF, T* y_RI) {
  using Tile = SparseTile<T>;
  const BlockTopology::Arrays& of = call.topology;
  const int across = (call.dense + Tile::kEdge - 1) / Tile::kEdge;
  const int down = int(blockIdx.x) / across;
  const int row_block = call.first + down / Tile::kCuts;
  const BlockTopology::Range rows = of.row_blocks[row_block];
  const int row = down % Tile::kCuts * Tile::kEdge;
  if (row >= rows.count) return;
  const Index first_row = rows.first + row;
  const Index column = Index(int(blockIdx.x) % across) * Tile::kEdge;
  const T* w = w_E.matrix(rows.group);
  const Operand<T> a{h_RF + first_row * call.width, call.width, lines_of<T>(rows.count, row)};
  const int lines = lines_of<T>(call.dense, column);
  const Operand<T> b = kWeight == Summed::kAlongRows
                           ? Operand<T>{w + column * call.width, call.width, lines}
                           : Operand<T>{w + column, call.dense, lines};
  const TileTarget<T> target{
      y_RI + first_row * call.dense + column, call.dense, a.lines, b.lines, call.packed, adds};
  const int begin = of.row_offsets[row_block], end = of.row_offsets[row_block + 1];
  int places = 0;
  if (begin < end) {
    const BlockTopology::Range last = of.column_blocks[of.column_indices[end - 1]];
    places = int(last.first + last.count);  // from the group's first column on
  }
  SparseProduct<T, Summed::kAlongRows, kWeight>::make(a, b, places, target);
}

/// dw += H^T x (kFirstIsF) or x^T H, a column of blocks of H, walked by the transposed index, by
/// kEdge columns of x each.
template <typename T, ops::WeightForm kForm, typename M = MathOf<T>>
__global__ void __launch_bounds__(kSparseThreads, kSparseBlocks) block_sparse_weight_kernel(
    SparseCall call, GroupMatrices<M> dw_E, const T* h_RF, const T* x_RI) {
  using Tile = SparseTile<T>;
  const BlockTopology::Arrays& of = call.topology;
  const int across = (call.dense + Tile::kEdge - 1) / Tile::kEdge;
  const int down = int(blockIdx.x) / across;
  const int column_block = call.first + down / Tile::kCuts;
  const int begin = of.column_offsets[column_block], end = of.column_offsets[column_block + 1];
  const BlockTopology::Range columns = of.column_blocks[column_block];
  const int cut = down % Tile::kCuts * Tile::kEdge;
  M* dw = dw_E.matrix(columns.group);
  if (begin == end || dw == nullptr || cut >= columns.count) return;
  const Index first = columns.first + cut;
  const Index column = Index(int(blockIdx.x) % across) * Tile::kEdge;
  const auto rows_at = [&](int at) { return of.row_blocks[of.row_indices[of.transposed[at]]]; };
  const BlockTopology::Range last = rows_at(end - 1);
  const Index row = rows_at(begin).first;
  const Operand<T> of_h{
      h_RF + row * call.width + first, call.width, lines_of<T>(columns.count, cut)};
  const Operand<T> of_x{
      x_RI + row * call.dense + column, call.dense, lines_of<T>(call.dense, column)};
  constexpr bool kIsFirst = kForm == ops::WeightForm::kFirstIsF;
  const Operand<T> a = kIsFirst ? of_h : of_x, b = kIsFirst ? of_x : of_h;
  const TileTarget<M> target{
      kIsFirst ? dw + first * call.dense + column : dw + column * call.width + first,
      kIsFirst ? call.dense : call.width,
      a.lines,
      b.lines,
      call.packed,
      /*adds=*/true};
  SparseProduct<T, Summed::kAcrossRows, Summed::kAcrossRows>::make(
      a, b, int(last.first + last.count - row), target);
}

}  // namespace pecan::kernels
