#pragma once
/// Products of f32 or bf16 matrices, one or many at a time, cut into blocks that threads take one
/// after the other. Each element is summed by one thread, in ascending order of k, in steps that
/// depend on k alone: results depend on the kernels, but neither on threads nor on what else is
/// computed with them.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>

#include "ops/gemm.hpp"
#include "ops/tile_kernels.hpp"

namespace pecan::ops::detail {

/// C[m, n] (+)= A[m, k] B[k, n], with m, n, k the sizes after transposition; k = 0 counts as a
/// product of zeros. C is not transposed.
struct Product {
  std::int64_t m, n, k;
  Matrix<const void> a, b;
  Accumulate accumulate;
  Matrix<void> c;
};

class Multiplier {
 public:
  /// `factors` (f32 or bf16) is what the kernels read, `result` the type of C: f32, or bf16, which
  /// is rounded once; with kAdd what it held was rounded before.
  Multiplier(const TileKernels& kernels, DType factors, DType result)
      : kernels_(kernels), element_bytes_(std::int64_t(size_of(factors))), result_(result) {}

  /// That one thread works with.
  static constexpr std::int64_t kScratchBytes =
      4 * ((256 + kMaxTileRows) * kPanelUnits + kPanelColumns * kPanelUnits + 256 * 256 +
           kMaxTileRows * kPanelColumns);

  /// Computes all products of product_of(0) to product_of(count - 1); each thread calls a copy of
  /// its own in ascending order. `scratch` has kScratchBytes for each thread, aligned to 64.
  template <typename ProductOf>
  void multiply(int threads, std::int64_t count, ProductOf product_of, std::byte* scratch) const {
    const std::int64_t most_work = most_work_for(threads, count, product_of);
    std::atomic<std::int64_t> next{0};
    const auto work = [&](ProductOf own_product_of, std::byte* own_scratch) {
      Product product{};
      std::int64_t index = -1, first = 0, end = 0;
      const auto find = [&](std::int64_t task, Task& found) {
        while (task >= end && ++index < count) {
          product = own_product_of(index);
          first = end;
          end += num_tasks(product, most_work);
        }
        if (task >= end) return false;
        found = {
            product, blocks_of(product, most_work), block_of(product, most_work, task - first)};
        return true;
      };
      // Probably: another thread may take it.
      const auto find_upcoming = [&](Task& found) { return find(next.load(), found); };
      Task task{};
      if (kernels_.begin != nullptr) kernels_.begin();
      while (find(next++, task)) run(task, std::cref(find_upcoming), own_scratch);
      if (kernels_.end != nullptr) kernels_.end();
    };
    const auto on_thread = [&](int thread) { work(product_of, scratch + thread * kScratchBytes); };
    on_threads(threads, std::cref(on_thread));
  }

 private:
  /// Calls body(0) to body(threads - 1) side by side, or fewer where there are not as many threads.
  static void on_threads(int threads, const std::function<void(int)>& body);

  struct Blocks {
    std::int64_t rows, columns;  ///< of C that one task computes, at most
    bool packs_rows;             ///< A is packed
  };
  /// The part of C that one task computes.
  struct Block {
    std::int64_t row, column, rows, columns;
  };
  struct Task {
    Product product;
    Blocks blocks;
    Block block;
  };
  /// Finds the task after this one, if there is one.
  using Upcoming = std::function<bool(Task&)>;
  /// Multiplications of one task at most, as far as blocks can be halved, so that threads end
  /// together.
  template <typename ProductOf>
  [[nodiscard]] static std::int64_t most_work_for(int threads,
                                                  std::int64_t count,
                                                  ProductOf product_of) {
    constexpr std::int64_t kTasksPerThread = 4;
    if (threads == 1) return std::numeric_limits<std::int64_t>::max() / 2;
    std::int64_t work = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const Product product = product_of(i);
      work += product.m * product.n * product.k;
    }
    return work / (kTasksPerThread * threads);
  }
  [[nodiscard]] Blocks blocks_of(const Product& product, std::int64_t most_work) const;
  [[nodiscard]] std::int64_t num_tasks(const Product& product, std::int64_t most_work) const;
  [[nodiscard]] Block block_of(const Product& product,
                               std::int64_t most_work,
                               std::int64_t task) const;
  void run(const Task& task, const Upcoming& upcoming, std::byte* scratch) const;
  [[nodiscard]] bool is_few(const Product& product) const;
  void run_few(const Product& product, const Block& block, std::byte* scratch) const;
  void run_whole(const Product& product, const Block& block) const;
  class BlockRun;
  [[nodiscard]] Lines panel_lines(const Task& task, std::int64_t p, std::int64_t j) const;
  [[nodiscard]] Lines tile_lines(const Task& task, std::int64_t i, std::int64_t j) const;

  const TileKernels& kernels_;
  std::int64_t element_bytes_;
  DType result_;
};

/// That of ctx.threads threads, in the workspace; nothing for f64, whose products need none.
[[nodiscard]] inline TensorView allocate_product_scratch(Context& ctx, DType dtype) {
  return ctx.workspace.allocate(
      DType::kU8, {dtype == DType::kF64 ? 0 : ctx.threads * Multiplier::kScratchBytes});
}

/// Rows from `row` of a row-major tensor, its columns from `column`.
inline Matrix<const void> matrix_at(const ConstTensorView& x,
                                    std::int64_t row,
                                    std::int64_t column,
                                    Transpose transpose = Transpose::kNo) {
  return {x.data + std::size_t(row * x.shape[1] + column) * size_of(x.dtype),
          std::max<std::int64_t>(x.shape[1], 1),
          transpose};
}
inline Matrix<void> matrix_at(const TensorView& x, std::int64_t row, std::int64_t column) {
  return {x.data + std::size_t(row * x.shape[1] + column) * size_of(x.dtype),
          std::max<std::int64_t>(x.shape[1], 1)};
}

/// A product of f64, which has no kernels of its own.
void multiply_f64(int threads, const Product& product);

/// That are worth it for so many multiplications.
[[nodiscard]] int threads_for_products(const Context& ctx, std::int64_t work);

/// Computes product_of(0) to product_of(count - 1), whose results are disjoint, as
/// Multiplier::multiply; f64 one after the other. `factors` is the dtype of A and B, `result` that
/// of C, `work` the multiplications in all, of which few are not worth threads. Takes the scratch
/// of allocate_product_scratch.
template <typename ProductOf>
void multiply_all(Context& ctx,
                  DType factors,
                  DType result,
                  std::int64_t count,
                  std::int64_t work,
                  ProductOf product_of) {
  if (factors == DType::kF64) {
    for (std::int64_t i = 0; i < count; ++i) multiply_f64(ctx.threads, product_of(i));
    return;
  }
  const device::ArenaScope scope(ctx.workspace);
  const TensorView scratch = allocate_product_scratch(ctx, factors);
  const auto kernels = factors == DType::kBF16 ? bf16_tile_kernels() : f32_tile_kernels();
  Multiplier(*kernels.back(), factors, result)
      .multiply(threads_for_products(ctx, work), count, std::move(product_of), scratch.data);
}

}  // namespace pecan::ops::detail
