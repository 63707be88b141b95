#include "ops/products.hpp"

#include <omp.h>

#include "ops/cpu.hpp"

namespace pecan::ops::detail {
namespace {

constexpr std::int64_t kPackedBlockRows = 256, kPackedBlockColumns = 256;
constexpr std::int64_t kReadBlockRows = 512, kReadBlockColumns = 128;
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

}  // namespace

void Multiplier::on_threads(int threads, const std::function<void(int)>& body) {
  if (threads == 1) return body(0);
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num());
}

Multiplier::Blocks Multiplier::blocks_of(const Product& product, int halvings) const {
  const Matrix<const void>& a = product.a;
  // Its sums may depend on the size of a block, which therefore depends on the product alone.
  if (kernels_.whole_blocks) {
    if (product.m * product.n >= kLargeProduct) return {kLargeBlock, kLargeBlock, false};
    return {a.transpose == Transpose::kNo ? kSmallBlock : kSmallBlock / 2, kSmallBlock, false};
  }
  const bool reads = kernels_.reads_rows && a.transpose == Transpose::kNo &&
                     product.k % (kernels_.elements_per_unit * kernels_.unit_multiple) == 0 &&
                     a.stride % kernels_.elements_per_unit == 0 &&
                     reinterpret_cast<std::uintptr_t>(a.data) % alignof(Unit) == 0;
  if (reads) return {kReadBlockRows >> halvings, kReadBlockColumns, false};
  return {kPackedBlockRows >> halvings, kPackedBlockColumns, true};
}

std::int64_t Multiplier::num_tasks(const Product& product, int halvings) const {
  if (product.k == 0 && product.accumulate == Accumulate::kAdd) return 0;
  const Blocks blocks = blocks_of(product, halvings);
  return blocks_in(product.m, blocks.rows) * blocks_in(product.n, blocks.columns);
}

void Multiplier::run(const Product& product,
                     int halvings,
                     std::int64_t task,
                     std::byte* scratch) const {
  const Blocks blocks = blocks_of(product, halvings);
  const std::int64_t across = blocks_in(product.n, blocks.columns);
  const std::int64_t row = task / across * blocks.rows, column = task % across * blocks.columns;
  const Block block{row,
                    column,
                    std::min(blocks.rows, product.m - row),
                    std::min(blocks.columns, product.n - column)};
  if (kernels_.whole_blocks) {
    run_whole(product, block);
  } else {
    run_tiles(product, blocks, block, scratch);
  }
}

void Multiplier::run_whole(const Product& product, const Block& block) const {
  const auto typed = [](const Matrix<const void>& x, const std::byte* at) {
    return Matrix<const float>{reinterpret_cast<const float*>(at), x.stride, x.transpose};
  };
  const std::int64_t c_offset = block.row * product.c.stride + block.column;
  gemm(1,
       block.rows,
       block.columns,
       product.k,
       typed(product.a, element_at(product.a, block.row, 0, element_bytes_)),
       typed(product.b, element_at(product.b, 0, block.column, element_bytes_)),
       product.accumulate,
       Matrix<float>{static_cast<float*>(product.c.data) + c_offset, product.c.stride});
}

void Multiplier::run_tiles(const Product& product,
                           const Blocks& blocks,
                           const Block& block,
                           std::byte* scratch) const {
  const auto [row, column, rows, columns] = block;
  auto* const left = reinterpret_cast<Unit*>(scratch);
  Unit* const panel = left + (kPackedBlockRows + kMaxTileRows) * kPanelUnits;
  auto* const sums = reinterpret_cast<float*>(panel + kPanelColumns * kPanelUnits);
  float* const tile = sums + 256 * 256;

  const std::int64_t deepest = kPanelUnits * kernels_.elements_per_unit;
  const Contiguous a_contiguous = contiguous(product.a.transpose, Transpose::kNo);
  const Contiguous b_contiguous = contiguous(product.b.transpose, Transpose::kYes);
  const bool adds = product.accumulate == Accumulate::kAdd;
  const bool one_step = product.k <= deepest;

  for (std::int64_t p = 0; p == 0 || p < product.k; p += deepest) {
    const std::int64_t depth = std::min(deepest, product.k - p);
    const std::int64_t units =
        blocks_in(depth, kernels_.elements_per_unit * kernels_.unit_multiple) *
        kernels_.unit_multiple;
    const bool last = p + deepest >= product.k;
    const auto pack_rows = [&](std::int64_t first, std::int64_t count, Unit* to) {
      kernels_.pack_rows(a_contiguous,
                         element_at(product.a, row + first, p, element_bytes_),
                         product.a.stride,
                         depth,
                         count,
                         to);
    };
    if (blocks.packs_rows) {
      for (std::int64_t i = 0; i < rows; i += kernels_.packed_rows)
        pack_rows(i, std::min(kernels_.packed_rows, rows - i), left + i * kPanelUnits);
    }
    for (std::int64_t j = 0; j < columns; j += kPanelColumns) {
      const std::int64_t width = std::min(kPanelColumns, columns - j);
      kernels_.pack_panel(b_contiguous,
                          element_at(product.b, p, column + j, element_bytes_),
                          product.b.stride,
                          depth,
                          width,
                          panel);
      for (std::int64_t i = 0; i < rows; i += kernels_.tile_rows) {
        const std::int64_t height = std::min(kernels_.tile_rows, rows - i);
        const bool whole = height == kernels_.tile_rows && width == kPanelColumns;
        const Unit* a = left;
        std::int64_t row_step = kernels_.packed_row_step, unit_step = kernels_.packed_unit_step;
        if (blocks.packs_rows) {
          const std::int64_t in_pack = i % kernels_.packed_rows;
          a += (i - in_pack) * kPanelUnits + in_pack * row_step;
        } else if (kernels_.needs_whole_tiles && height < kernels_.tile_rows) {
          pack_rows(i, height, left);
        } else {
          a = reinterpret_cast<const Unit*>(element_at(product.a, row + i, p, element_bytes_));
          row_step = product.a.stride / kernels_.elements_per_unit;
          unit_step = 1;
        }
        const auto multiply = [&](bool add, float* c, std::int64_t c_row) {
          kernels_.multiply(height, width, units, a, row_step, unit_step, panel, add, c, c_row);
        };
        const std::int64_t c_offset = (row + i) * product.c.stride + column + j;
        if (result_ == DType::kBF16) {
          float* const to = one_step ? tile : sums + i * blocks.columns + j;
          const std::int64_t to_row = one_step ? kPanelColumns : blocks.columns;
          multiply(p > 0, to, to_row);
          if (last) {
            auto* const c = static_cast<std::uint16_t*>(product.c.data) + c_offset;
            kernels_.store_bf16(height, width, to, to_row, adds, c, product.c.stride);
          }
          continue;
        }
        float* const c = static_cast<float*>(product.c.data) + c_offset;
        const bool add = adds || p > 0;
        if (whole || !kernels_.needs_whole_tiles) {
          multiply(add, c, product.c.stride);
          continue;
        }
        multiply(false, tile, kPanelColumns);
        for (std::int64_t r = 0; r < height; ++r) {
          for (std::int64_t s = 0; s < width; ++s) {
            float& to = c[r * product.c.stride + s];
            to = (add ? to : 0.0F) + tile[r * kPanelColumns + s];
          }
        }
      }
    }
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
