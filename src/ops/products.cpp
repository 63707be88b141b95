#include "ops/products.hpp"

#include <omp.h>

#include "ops/cpu.hpp"

namespace pecan::ops::detail {
namespace {

constexpr std::int64_t kPackedBlockRows = 256, kPackedBlockColumns = 256;
constexpr std::int64_t kReadBlockRows = 512, kReadBlockColumns = 128;
/// Of products with few rows.
constexpr std::int64_t kMostBlockColumns = 1024;
// Of oneDNN: enough blocks for a few threads, large enough for its packing to pay.
constexpr std::int64_t kSmallBlock = 256, kLargeBlock = 512, kLargeProduct = 1 << 21;
static_assert(kReadBlockRows * kReadBlockColumns == 256 * 256);

constexpr std::int64_t blocks_in(std::int64_t extent, std::int64_t block) {
  return (extent + block - 1) / block;
}

Contiguous contiguous(Transpose transpose, Transpose along_units) {
  return transpose == along_units ? Contiguous::kAlongUnits : Contiguous::kAcrossUnits;
}

/// Where element (row, column) after transposition of x lies, whose elements have `bytes`.
const std::byte* element_at(const Matrix<const void>& x,
                            std::int64_t row,
                            std::int64_t column,
                            std::int64_t bytes) {
  const std::int64_t line = x.transpose == Transpose::kYes ? column : row;
  const std::int64_t in_line = x.transpose == Transpose::kYes ? row : column;
  return static_cast<const std::byte*>(x.data) + (line * x.stride + in_line) * bytes;
}

Lines lines_of(const std::byte* first,
               std::int64_t rows,
               std::int64_t row_bytes,
               std::int64_t stride) {
  const auto before = std::int64_t(reinterpret_cast<std::uintptr_t>(first) % kLineBytes);
  return {first - before, rows, row_bytes + before, stride};
}

}  // namespace

void Multiplier::on_threads(int threads, const std::function<void(int)>& body) {
  if (threads == 1) return body(0);
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num());
}

Multiplier::Blocks Multiplier::blocks_of(const Product& product, std::int64_t most_work) const {
  const Matrix<const void>& a = product.a;
  // Its sums may depend on the size of a block, which therefore depends on the product alone.
  if (kernels_.whole_blocks) {
    if (product.m * product.n >= kLargeProduct) return {kLargeBlock, kLargeBlock, false};
    return {a.transpose == Transpose::kNo ? kSmallBlock : kSmallBlock / 2, kSmallBlock, false};
  }
  const bool reads = kernels_.reads_rows && a.transpose == Transpose::kNo &&
                     product.m >= kernels_.group_rows &&
                     product.k % (kernels_.elements_per_unit * kernels_.unit_multiple) == 0 &&
                     a.stride % kernels_.elements_per_unit == 0 &&
                     reinterpret_cast<std::uintptr_t>(a.data) % alignof(Unit) == 0;
  const std::int64_t least_columns = reads ? kReadBlockColumns : kPackedBlockColumns;
  std::int64_t rows = reads ? kReadBlockRows : kPackedBlockRows, columns = least_columns;
  const std::int64_t least_rows = rows / 4;
  // Few rows leave room for more columns.
  for (; rows >= 2 * product.m && columns < kMostBlockColumns; columns *= 2) rows /= 2;
  // Where A is packed, each block packs all of its B again.
  const std::int64_t most = reads ? most_work : most_work * 2;
  const auto work = [&] {
    return std::min(rows, product.m) * std::min(columns, product.n) * product.k;
  };
  while (work() > most && (columns > least_columns || rows > least_rows)) {
    (columns > least_columns ? columns : rows) /= 2;
  }
  return {rows, columns, !reads};
}

std::int64_t Multiplier::num_tasks(const Product& product, std::int64_t most_work) const {
  if (product.k == 0 && product.accumulate == Accumulate::kAdd) return 0;
  const Blocks blocks = blocks_of(product, most_work);
  return blocks_in(product.m, blocks.rows) * blocks_in(product.n, blocks.columns);
}

Multiplier::Block Multiplier::block_of(const Product& product,
                                       std::int64_t most_work,
                                       std::int64_t task) const {
  const Blocks blocks = blocks_of(product, most_work);
  const std::int64_t across = blocks_in(product.n, blocks.columns);
  const std::int64_t row = task / across * blocks.rows, column = task % across * blocks.columns;
  return {row,
          column,
          std::min(blocks.rows, product.m - row),
          std::min(blocks.columns, product.n - column)};
}

Lines Multiplier::panel_lines(const Task& task, std::int64_t p, std::int64_t j) const {
  const Matrix<const void>& b = task.product.b;
  const std::int64_t column = task.block.column + j;
  const std::int64_t depth = std::min(kPanelUnits * kernels_.elements_per_unit, task.product.k - p);
  const std::int64_t width = std::min(kPanelColumns, task.block.columns - j);
  const bool along = b.transpose == Transpose::kYes;
  return lines_of(element_at(b, p, column, element_bytes_),
                  along ? width : depth,
                  (along ? depth : width) * element_bytes_,
                  b.stride * element_bytes_);
}

Lines Multiplier::tile_lines(const Task& task, std::int64_t i, std::int64_t j) const {
  const Matrix<void>& c = task.product.c;
  const auto bytes = std::int64_t(size_of(result_));
  return lines_of(static_cast<const std::byte*>(c.data) +
                      ((task.block.row + i) * c.stride + task.block.column + j) * bytes,
                  std::min(kernels_.tile_rows, task.block.rows - i),
                  std::min(kPanelColumns, task.block.columns - j) * bytes,
                  c.stride * bytes);
}

void Multiplier::run_whole(const Product& product, const Block& block) const {
  const std::byte* const a = element_at(product.a, block.row, 0, element_bytes_);
  const std::byte* const b = element_at(product.b, 0, block.column, element_bytes_);
  float* const c =
      static_cast<float*>(product.c.data) + block.row * product.c.stride + block.column;
  if (product.m <= kFewRows && product.a.transpose == Transpose::kNo && product.k > 0)
    return kernels_.multiply_few(contiguous(product.b.transpose, Transpose::kYes),
                                 block.rows,
                                 block.columns,
                                 product.k,
                                 reinterpret_cast<const float*>(a),
                                 product.a.stride,
                                 reinterpret_cast<const float*>(b),
                                 product.b.stride,
                                 product.accumulate == Accumulate::kAdd,
                                 c,
                                 product.c.stride);
  const auto typed = [](const Matrix<const void>& x, const std::byte* at) {
    return Matrix<const float>{reinterpret_cast<const float*>(at), x.stride, x.transpose};
  };
  gemm(1,
       block.rows,
       block.columns,
       product.k,
       typed(product.a, a),
       typed(product.b, b),
       product.accumulate,
       Matrix<float>{c, product.c.stride});
}

/// Computes one block of C, tile by tile.
class Multiplier::BlockRun {
 public:
  BlockRun(const Multiplier& multiplier,
           const Task& task,
           const Upcoming& upcoming,
           std::byte* scratch)
      : multiplier_(multiplier),
        kernels_(multiplier.kernels_),
        task_(task),
        upcoming_(upcoming),
        left_(reinterpret_cast<Unit*>(scratch)),
        panel_(left_ + (kPackedBlockRows + kMaxTileRows) * kPanelUnits),
        sums_(reinterpret_cast<float*>(panel_ + kPanelColumns * kPanelUnits)),
        tile_(sums_ + kSums) {}

  void run() {
    for (first_ = 0; first_ == 0 || first_ < task_.product.k; first_ += deepest_) {
      depth_ = std::min(deepest_, task_.product.k - first_);
      units_ = units_of(depth_);
      last_ = first_ + deepest_ >= task_.product.k;
      if (packs_all_panels()) {
        by_rows();
      } else {
        by_panels();
      }
    }
  }

 private:
  [[nodiscard]] std::int64_t units_of(std::int64_t depth) const {
    return blocks_in(depth, kernels_.elements_per_unit * kernels_.unit_multiple) *
           kernels_.unit_multiple;
  }
  /// Where sums need no memory of their own, panels may lie there.
  [[nodiscard]] bool packs_all_panels() const {
    const std::int64_t units = units_of(std::min(deepest_, task_.product.k));
    return task_.blocks.packs_rows && multiplier_.result_ == DType::kF32 &&
           units * blocks_in(task_.block.columns, kPanelColumns) * kPanelColumns <= kSums;
  }

  /// Each panel is packed, then multiplied by all rows while the next one is fetched: a weight that
  /// is read for few rows comes from memory.
  void by_panels() {
    const auto [row, column, rows, columns] = task_.block;
    if (task_.blocks.packs_rows)
      for (std::int64_t i = 0; i < rows; i += kernels_.packed_rows)
        pack_rows(i, left_ + i * kPanelUnits);
    const std::int64_t tiles = blocks_in(rows, kernels_.tile_rows);
    for (std::int64_t j = 0; j < columns; j += kPanelColumns) {
      pack_panel(j, panel_);
      if (j + kPanelColumns < columns) {
        ahead_.panel = multiplier_.panel_lines(task_, first_, j + kPanelColumns);
      } else if (!last_) {
        ahead_.panel = multiplier_.panel_lines(task_, first_ + deepest_, 0);
      } else {
        has_next_ = upcoming_(next_);
        ahead_.panel = has_next_ ? multiplier_.panel_lines(next_, 0, 0) : Lines{};
      }
      ahead_.panel_lines = blocks_in(count(ahead_.panel), tiles);
      for (std::int64_t pack = 0; pack < rows; pack += kernels_.packed_rows) {
        const std::int64_t end = std::min(pack + kernels_.packed_rows, rows);
        const Unit* const packed = left_ + pack * kPanelUnits;
        for (std::int64_t i = pack; i < end; i += kernels_.tile_rows) {
          ahead_.tile = last_ ? multiplier_.tile_lines(task_, i, j) : Lines{};
          multiply_tile(i, j, packed + (i - pack) * kernels_.packed_row_step, panel_);
        }
      }
    }
  }

  /// All panels are packed, then tiles follow one another in the memory of C while the next one is
  /// fetched: the gradient of a weight that is read and written for few rows comes from memory.
  void by_rows() {
    const auto [row, column, rows, columns] = task_.block;
    auto* const panels = reinterpret_cast<Unit*>(sums_);
    for (std::int64_t j = 0; j < columns; j += kPanelColumns) pack_panel(j, panels + j * units_);
    for (std::int64_t pack = 0; pack < rows; pack += kernels_.packed_rows) {
      const std::int64_t end = std::min(pack + kernels_.packed_rows, rows);
      pack_rows(pack, left_);
      for (std::int64_t i = pack; i < end; i += kernels_.tile_rows) {
        const std::int64_t below = i + kernels_.tile_rows;
        if (below >= rows && last_) has_next_ = upcoming_(next_);
        for (std::int64_t j = 0; j < columns; j += kPanelColumns) {
          look_ahead(i, j);
          multiply_tile(i, j, left_ + (i - pack) * kernels_.packed_row_step, panels + j * units_);
        }
      }
    }
  }
  /// From the tile at (i, j) to the next one in memory, and to the panels of the next block.
  void look_ahead(std::int64_t i, std::int64_t j) {
    const std::int64_t below = i + kernels_.tile_rows, right = j + kPanelColumns;
    ahead_ = {};
    if (first_ == 0 && right < task_.block.columns) {
      ahead_.tile = multiplier_.tile_lines(task_, i, right);
    } else if (first_ == 0 && below < task_.block.rows) {
      ahead_.tile = multiplier_.tile_lines(task_, below, 0);
    } else if (has_next_ && right >= task_.block.columns) {
      ahead_.tile = multiplier_.tile_lines(next_, 0, 0);
    }
    if (has_next_ && j < next_.block.columns) {
      ahead_.panel = multiplier_.panel_lines(next_, 0, j);
      ahead_.panel_lines = count(ahead_.panel);
    }
  }

  static std::int64_t count(const Lines& lines) {
    return lines.rows * blocks_in(lines.row_bytes, kLineBytes);
  }

  void pack_rows(std::int64_t i, Unit* to) const {
    const Product& product = task_.product;
    kernels_.pack_rows(
        contiguous(product.a.transpose, Transpose::kNo),
        element_at(product.a, task_.block.row + i, first_, multiplier_.element_bytes_),
        product.a.stride,
        depth_,
        std::min(kernels_.packed_rows, task_.block.rows - i),
        to);
  }
  void pack_panel(std::int64_t j, Unit* to) const {
    const Product& product = task_.product;
    kernels_.pack_panel(
        contiguous(product.b.transpose, Transpose::kYes),
        element_at(product.b, first_, task_.block.column + j, multiplier_.element_bytes_),
        product.b.stride,
        depth_,
        std::min(kPanelColumns, task_.block.columns - j),
        to);
  }

  /// The tile at (i, j) of the block; its rows are at `a`, if rows are packed.
  void multiply_tile(std::int64_t i, std::int64_t j, const Unit* a, const Unit* panel) {
    const Product& product = task_.product;
    const auto [row, column, rows, columns] = task_.block;
    const std::int64_t width = std::min(kPanelColumns, columns - j);
    const std::int64_t height = std::min(kernels_.tile_rows, rows - i);
    const std::int64_t group = kernels_.group_rows;
    std::int64_t row_step = kernels_.packed_row_step, unit_step = kernels_.packed_unit_step;
    std::int64_t multiplied =
        height == kernels_.tile_rows ? height : blocks_in(height, group) * group;
    // The last group of rows repeats so many of those before.
    std::int64_t repeated = 0;
    if (!task_.blocks.packs_rows) {
      a = reinterpret_cast<const Unit*>(
          element_at(product.a, row + i, first_, multiplier_.element_bytes_));
      row_step = product.a.stride / kernels_.elements_per_unit;
      unit_step = 1;
      repeated = multiplied - height;
      if (height < group) {
        a -= repeated * row_step;
      } else {
        multiplied = height;
      }
    }
    const auto multiply = [&](bool add, float* c, std::int64_t c_row) {
      kernels_.multiply(
          multiplied, width, units_, a, row_step, unit_step, panel, add, c, c_row, ahead_);
    };
    // Calls store(first row, rows, where the first one is in memory of whole groups).
    const auto for_rows = [&](const float* groups, std::int64_t groups_row, const auto& store) {
      const std::int64_t before = repeated > 0 ? (height - 1) / group * group : height;
      if (before > 0) store(0, before, groups);
      if (before < height)
        store(before, height - before, groups + (before + repeated) * groups_row);
    };
    const bool adds = product.accumulate == Accumulate::kAdd;
    const std::int64_t c_offset = (row + i) * product.c.stride + column + j;
    if (multiplier_.result_ == DType::kBF16) {
      const bool one_step = product.k <= deepest_;
      float* const to = one_step ? tile_ : sums_ + i * task_.blocks.columns + j;
      const std::int64_t to_row = one_step ? kPanelColumns : task_.blocks.columns;
      multiply(first_ > 0, to, to_row);
      if (!last_) return;
      auto* const c = static_cast<std::uint16_t*>(product.c.data) + c_offset;
      const std::int64_t c_row = product.c.stride;
      for_rows(to, to_row, [&](std::int64_t r, std::int64_t count, const float* from) {
        kernels_.store_bf16(count, width, from, to_row, adds, c + r * c_row, c_row);
      });
      return;
    }
    float* const c = static_cast<float*>(product.c.data) + c_offset;
    const bool add = adds || first_ > 0;
    if (group == 1 || (height == multiplied && repeated == 0 && width == kPanelColumns))
      return multiply(add, c, product.c.stride);
    multiply(false, tile_, kPanelColumns);
    for_rows(tile_, kPanelColumns, [&](std::int64_t first, std::int64_t count, const float* from) {
      for (std::int64_t r = 0; r < count; ++r) {
        for (std::int64_t s = 0; s < width; ++s) {
          float& to = c[(first + r) * product.c.stride + s];
          to = (add ? to : 0.0F) + from[r * kPanelColumns + s];
        }
      }
    });
  }

  static constexpr std::int64_t kSums = std::int64_t(256) * 256;
  const Multiplier& multiplier_;
  const TileKernels& kernels_;
  const Task& task_;
  const Upcoming& upcoming_;
  Unit *left_, *panel_;
  float *sums_, *tile_;
  const std::int64_t deepest_ = kPanelUnits * kernels_.elements_per_unit;
  /// Of the step along k.
  std::int64_t first_ = 0, depth_ = 0, units_ = 0;
  bool last_ = false;
  Ahead ahead_;
  Task next_{};
  bool has_next_ = false;
};

/// A gradient of a weight for few rows costs nothing but the memory of the gradient.
bool Multiplier::is_few(const Product& product) const {
  return product.k <= kFewUnits && product.a.transpose == Transpose::kYes &&
         product.b.transpose == Transpose::kNo && product.accumulate == Accumulate::kAdd &&
         result_ == DType::kF32;
}

void Multiplier::run_few(const Product& product, const Block& block, std::byte* scratch) const {
  kernels_.add_few(
      block.rows,
      block.columns,
      product.k,
      element_at(product.a, block.row, 0, element_bytes_),
      product.a.stride,
      element_at(product.b, 0, block.column, element_bytes_),
      product.b.stride,
      static_cast<float*>(product.c.data) + block.row * product.c.stride + block.column,
      product.c.stride,
      reinterpret_cast<float*>(scratch));
}

void Multiplier::run(const Task& task, const Upcoming& upcoming, std::byte* scratch) const {
  if (is_few(task.product)) return run_few(task.product, task.block, scratch);
  if (kernels_.whole_blocks) {
    run_whole(task.product, task.block);
  } else {
    BlockRun(*this, task, upcoming, scratch).run();
  }
}

void multiply_f64(int threads, const Product& product) {
  const auto typed = [](const Matrix<const void>& x) {
    return Matrix<const double>{static_cast<const double*>(x.data), x.stride, x.transpose};
  };
  gemm(threads,
       product.m,
       product.n,
       product.k,
       typed(product.a),
       typed(product.b),
       product.accumulate,
       Matrix<double>{static_cast<double*>(product.c.data), product.c.stride});
}

int threads_for_products(const Context& ctx, std::int64_t work) {
  return work < 8 * cpu::kMinParallelWork ? 1 : ctx.threads;
}

}  // namespace pecan::ops::detail
