#include <algorithm>
#include <array>
#include <optional>
#include <type_traits>

#include <dnnl.hpp>
#include <omp.h>

#include "ops/gemm.hpp"

namespace pecan::ops::detail {
namespace {

using dnnl::memory;

constexpr auto kUnknown = DNNL_RUNTIME_DIM_VAL;

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

template <typename T>
constexpr memory::data_type kTypeOf =
    std::is_same_v<T, float> ? memory::data_type::f32 : memory::data_type::bf16;

/// Steps between rows and columns after transposition.
template <typename T>
memory::dims strides_of(const Matrix<T>& x, std::int64_t stride) {
  return x.transpose == Transpose::kYes ? memory::dims{1, stride} : memory::dims{stride, 1};
}

/// A product whose sizes are given when it runs: tokens differ from call to call, and a product of
/// fixed sizes would be compiled anew for each.
template <typename C>
dnnl::matmul make_product(Transpose a, Transpose b, Accumulate accumulate) {
  const auto desc = [](memory::data_type type, Transpose transpose) {
    const Matrix<const void> side{nullptr, 0, transpose};
    return memory::desc({kUnknown, kUnknown}, type, strides_of(side, kUnknown));
  };
  dnnl::primitive_attr attributes;
  if (accumulate == Accumulate::kAdd) {
    dnnl::post_ops post_ops;
    post_ops.append_sum(1.0F);
    attributes.set_post_ops(post_ops);
  }
  const dnnl::matmul::desc product(desc(memory::data_type::bf16, a),
                                   desc(memory::data_type::bf16, b),
                                   desc(kTypeOf<C>, Transpose::kNo));
  return dnnl::matmul({product, attributes, cpu_engine()});
}

template <typename C>
void multiply_native(int threads,
                     std::int64_t m,
                     std::int64_t n,
                     std::int64_t k,
                     const Matrix<const BFloat16>& a,
                     const Matrix<const BFloat16>& b,
                     Accumulate accumulate,
                     const Matrix<C>& c) {
  // A compiled product owns scratch memory that two threads must not share.
  thread_local std::array<std::optional<dnnl::matmul>, 8> products;
  thread_local dnnl::stream stream(cpu_engine());
  const std::size_t index = (a.transpose == Transpose::kYes ? 4U : 0U) +
                            (b.transpose == Transpose::kYes ? 2U : 0U) +
                            (accumulate == Accumulate::kAdd ? 1U : 0U);
  std::optional<dnnl::matmul>& product = products.at(index);
  // oneDNN has no other way to be told; the setting belongs to the calling thread.
  if (omp_get_max_threads() != threads) omp_set_num_threads(threads);
  try {
    if (!product) product = make_product<C>(a.transpose, b.transpose, accumulate);
    const auto operand = [](const memory::dims& shape, const auto& x, const void* data) {
      using T = std::remove_cvref_t<decltype(*x.data)>;
      return memory(memory::desc(shape, kTypeOf<T>, strides_of(x, x.stride)),
                    cpu_engine(),
                    const_cast<void*>(data));
    };
    product->execute(stream,
                     {{DNNL_ARG_SRC, operand({m, k}, a, a.data)},
                      {DNNL_ARG_WEIGHTS, operand({k, n}, b, b.data)},
                      {DNNL_ARG_DST, operand({m, n}, c, c.data)}});
    stream.wait();
  } catch (const dnnl::error& e) {
    throw InternalError(
        fmt::format("a bf16 product of [{}, {}] x [{}, {}] failed: {}; is there "
                    "memory left for its packing buffers?",
                    m,
                    k,
                    k,
                    n,
                    e.what()));
  }
}

/// Converts the [rows, columns] block at (row, column) of x, after transposition, to row-major f32.
template <typename T>
void convert_block(const Matrix<T>& x,
                   std::int64_t row,
                   std::int64_t column,
                   std::int64_t rows,
                   std::int64_t columns,
                   float* block) {
  const bool transposed = x.transpose == Transpose::kYes;
  const std::int64_t row_step = transposed ? 1 : x.stride;
  const std::int64_t column_step = transposed ? x.stride : 1;
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* from = x.data + (row + i) * row_step + column * column_step;
    for (std::int64_t j = 0; j < columns; ++j)
      block[i * columns + j] = float(from[j * column_step]);
  }
}

template <typename C>
void multiply_converted(int threads,
                        std::int64_t m,
                        std::int64_t n,
                        std::int64_t k,
                        const Matrix<const BFloat16>& a,
                        const Matrix<const BFloat16>& b,
                        Accumulate accumulate,
                        const Matrix<C>& c,
                        float* converted) {
  constexpr std::int64_t kBlock = kConvertedBlock;
  float* const a_block = converted;
  float* const b_block = a_block + kBlock * kBlock;
  float* const c_block = b_block + kBlock * kBlock;
  for (std::int64_t i = 0; i < m; i += kBlock) {
    const std::int64_t rows = std::min(kBlock, m - i);
    for (std::int64_t j = 0; j < n; j += kBlock) {
      const std::int64_t columns = std::min(kBlock, n - j);
      if (accumulate == Accumulate::kAdd) {
        convert_block(c, i, j, rows, columns, c_block);
      } else {
        std::fill_n(c_block, rows * columns, 0.0F);
      }
      for (std::int64_t p = 0; p < k; p += kBlock) {
        const std::int64_t depth = std::min(kBlock, k - p);
        convert_block(a, i, p, rows, depth, a_block);
        convert_block(b, p, j, depth, columns, b_block);
        gemm(threads,
             rows,
             columns,
             depth,
             Matrix<const float>{a_block, depth},
             Matrix<const float>{b_block, columns},
             Accumulate::kAdd,
             Matrix<float>{c_block, columns});
      }
      for (std::int64_t row = 0; row < rows; ++row) {
        C* to = c.data + (i + row) * c.stride + j;
        for (std::int64_t column = 0; column < columns; ++column)
          to[column] = C(c_block[row * columns + column]);
      }
    }
  }
}

template <typename C>
void multiply(BF16Path path,
              int threads,
              std::int64_t m,
              std::int64_t n,
              std::int64_t k,
              const Matrix<const BFloat16>& a,
              const Matrix<const BFloat16>& b,
              Accumulate accumulate,
              const Matrix<C>& c,
              float* converted) {
  PECAN_EXPECTS(c.transpose == Transpose::kNo);
  if (m == 0 || n == 0) return;
  if (k > 0 && path == BF16Path::kNative) {
    multiply_native(threads, m, n, k, a, b, accumulate, c);
  } else {
    multiply_converted(threads, m, n, k, a, b, accumulate, c, converted);
  }
}

}  // namespace

BF16Path best_bf16_path() {
#if defined(__x86_64__)
  // oneDNN knows both what the processor can do and what ONEDNN_MAX_CPU_ISA leaves of it.
  static const bool native =
      __builtin_cpu_supports("avx512bf16") != 0 &&
      (unsigned(dnnl::get_effective_cpu_isa()) & unsigned(dnnl::cpu_isa::avx512_core_bf16)) ==
          unsigned(dnnl::cpu_isa::avx512_core_bf16);
  return native ? BF16Path::kNative : BF16Path::kConverted;
#else
  return BF16Path::kConverted;
#endif
}

void gemm(BF16Path path,
          int threads,
          std::int64_t m,
          std::int64_t n,
          std::int64_t k,
          Matrix<const BFloat16> a,
          Matrix<const BFloat16> b,
          Accumulate accumulate,
          Matrix<BFloat16> c,
          float* converted) {
  multiply(path, threads, m, n, k, a, b, accumulate, c, converted);
}

void gemm(BF16Path path,
          int threads,
          std::int64_t m,
          std::int64_t n,
          std::int64_t k,
          Matrix<const BFloat16> a,
          Matrix<const BFloat16> b,
          Accumulate accumulate,
          Matrix<float> c,
          float* converted) {
  multiply(path, threads, m, n, k, a, b, accumulate, c, converted);
}

}  // namespace pecan::ops::detail
