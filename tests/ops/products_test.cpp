#include "ops/products.hpp"

#include "ops/op_test.hpp"
#include "ops/reference.hpp"

namespace pecan::test {
namespace {

using ops::Accumulate;
using ops::detail::Matrix;
using ops::detail::Multiplier;
using ops::detail::Product;
using ops::detail::TileKernels;
using ops::detail::Transpose;

struct Sizes {
  std::int64_t m, n, k;
};

/// The factors and the result of one product, with lines longer than what belongs to it.
class Operands {
 public:
  Operands(DType factors, DType result, Sizes sizes, Transpose ta, Transpose tb, bool even)
      : sizes_(sizes),
        padding_(even ? 4 : 3),
        a_(factors, lines(sizes.m, sizes.k, ta), values_of(lines(sizes.m, sizes.k, ta), 1)),
        b_(factors, lines(sizes.k, sizes.n, tb), values_of(lines(sizes.k, sizes.n, tb), 2)),
        old_c_(stored(result, values_of(lines(sizes.m, sizes.n, Transpose::kNo), 3))),
        result_(result) {
    const auto at = [](const auto& values, std::int64_t stride, Transpose t, auto i, auto j) {
      return t == Transpose::kYes ? values[j * std::size_t(stride) + i]
                                  : values[i * std::size_t(stride) + j];
    };
    const std::int64_t a_stride = a_.view().shape[1], b_stride = b_.view().shape[1];
    const Values a = a_.values(), b = b_.values();
    product_ = reference::product(
        std::size_t(sizes.m),
        std::size_t(sizes.n),
        std::size_t(sizes.k),
        [&](auto i, auto p) { return at(a, a_stride, ta, i, p); },
        [&](auto p, auto j) { return at(b, b_stride, tb, p, j); });
    product_of_ = {sizes.m, sizes.n, sizes.k, matrix(a_, ta), matrix(b_, tb), {}, {}};
  }
  /// What lies in the result's memory, padding included, after `multiply` ran on it.
  template <typename Multiply>
  Values run(Accumulate accumulate, const Multiply& multiply) {
    const Shape shape = lines(sizes_.m, sizes_.n, Transpose::kNo);
    Guarded c(result_, shape, old_c_);
    Product product = product_of_;
    product.accumulate = accumulate;
    product.c = {c.view().data, shape[1]};
    multiply(product);
    return c.values();
  }
  [[nodiscard]] Values expected(Accumulate accumulate) const {
    Values c = old_c_;
    const std::int64_t stride = sizes_.n + padding_;
    for (std::int64_t i = 0; i < sizes_.m; ++i) {
      for (std::int64_t j = 0; j < sizes_.n; ++j) {
        double& value = c[std::size_t(i * stride + j)];
        value =
            product_[std::size_t(i * sizes_.n + j)] + (accumulate == Accumulate::kAdd ? value : 0);
      }
    }
    return c;
  }

 private:
  [[nodiscard]] Shape lines(std::int64_t rows, std::int64_t columns, Transpose transpose) const {
    return transpose == Transpose::kYes ? Shape{columns, rows + padding_}
                                        : Shape{rows, columns + padding_};
  }
  static Values values_of(const Shape& shape, std::uint64_t seed) {
    return random_values(shape.num_elements(), seed);
  }
  static Matrix<const void> matrix(Guarded& x, Transpose transpose) {
    return {x.view().data, x.view().shape[1], transpose};
  }

  Sizes sizes_;
  std::int64_t padding_;
  Guarded a_, b_;
  Values old_c_, product_;
  DType result_;
  Product product_of_{};
};

/// One product with every number of threads.
void check_product(const TileKernels& kernels,
                   DType factors,
                   DType result,
                   Sizes sizes,
                   Transpose ta,
                   Transpose tb,
                   bool even) {
  constexpr int kThreads = 3;
  alignas(64) static std::byte scratch[kThreads * Multiplier::kScratchBytes];
  const Multiplier multiplier(kernels, factors, result);
  Operands operands(factors, result, sizes, ta, tb, even);
  for (const Accumulate accumulate : {Accumulate::kOverwrite, Accumulate::kAdd}) {
    INFO(kernels.name << ": " << sizes.m << " x " << sizes.n << " x " << sizes.k << ", transposed "
                      << int(ta) << int(tb) << ", accumulate " << int(accumulate) << ", even lines "
                      << even);
    const auto run = [&](int threads) {
      return operands.run(accumulate, [&](const Product& product) {
        multiplier.multiply(
            threads, 1, [&](std::int64_t) { return product; }, scratch);
      });
    };
    const Values one = run(1);
    check_close(one, operands.expected(accumulate), tolerance(result, sizes.k));
    CHECK(run(2) == one);
    CHECK(run(3) == one);
  }
}

void check_kernels(const TileKernels& kernels, DType factors, DType result, Sizes sizes) {
  for (const Transpose ta : {Transpose::kNo, Transpose::kYes})
    for (const Transpose tb : {Transpose::kNo, Transpose::kYes})
      for (const bool even : {false, true})
        check_product(kernels, factors, result, sizes, ta, tb, even);
}

}  // namespace

TEST_CASE("products of every instruction set agree with the sum in the order of the formula") {
  const Sizes shapes[] = {{1, 1, 1},
                          {2, 3, 0},
                          {5, 7, 3},
                          {31, 33, 64},
                          {32, 32, 32},
                          {47, 65, 96},
                          {64, 16, 130},
                          {270, 35, 31},
                          {9, 290, 257},
                          {40, 40, 544}};
  for (const Sizes& sizes : shapes) {
    for (const TileKernels* kernels : ops::detail::f32_tile_kernels())
      check_kernels(*kernels, DType::kF32, DType::kF32, sizes);
    for (const TileKernels* kernels : ops::detail::bf16_tile_kernels()) {
      check_kernels(*kernels, DType::kBF16, DType::kF32, sizes);
      check_kernels(*kernels, DType::kBF16, DType::kBF16, sizes);
    }
  }
  if (ops::detail::bf16_tile_kernels().size() < 5)
    WARN("this CPU lacks AVX512-BF16 or AMX: their tiles are not tested");
}

TEST_CASE("products of few rows agree with the reference, whatever the number of rows") {
  std::vector<std::int64_t> row_counts{61, 62, 63, 64, 65, 66, 67};
  for (std::int64_t rows = 1; rows <= 40; ++rows) row_counts.push_back(rows);
  using enum Transpose;
  for (const std::int64_t rows : row_counts) {
    const auto check = [&](const TileKernels& kernels, DType factors, DType result) {
      // Forward, gradient of the input in two steps of bf16, gradient of the weight.
      check_product(kernels, factors, result, {rows, 70, 64}, kNo, kYes, true);
      check_product(kernels, factors, result, {rows, 40, 544}, kNo, kNo, true);
      check_product(kernels, factors, result, {70, 83, rows}, kYes, kNo, true);
    };
    for (const TileKernels* kernels : ops::detail::f32_tile_kernels())
      check(*kernels, DType::kF32, DType::kF32);
    for (const TileKernels* kernels : ops::detail::bf16_tile_kernels()) {
      check(*kernels, DType::kBF16, DType::kF32);
      check(*kernels, DType::kBF16, DType::kBF16);
    }
    // What whole blocks leave to each instruction set.
    for (const TileKernels* kernels : ops::detail::f32_tile_kernels()) {
      TileKernels beside = *ops::detail::f32_tile_kernels().back();
      beside.name = kernels->name;
      beside.whole_blocks = true;
      beside.add_few = kernels->add_few;
      beside.multiply_few = kernels->multiply_few;
      check(beside, DType::kF32, DType::kF32);
      check_product(beside, DType::kF32, DType::kF32, {rows, 71, 67}, kNo, kYes, false);
      check_product(beside, DType::kF32, DType::kF32, {rows, 71, 37}, kNo, kNo, false);
    }
  }
}

TEST_CASE("products with several steps along k are rounded to bf16 once") {
  // A rounding in between would make 1 of 1 + 2^-8, and again at the end.
  constexpr std::int64_t kDepth = 1025;
  for (const TileKernels* kernels : ops::detail::bf16_tile_kernels()) {
    Values a(kDepth, 0), b(kDepth, 1);
    a[0] = 1;
    a[1] = a.back() = 0x1p-8;
    Guarded left(DType::kBF16, {1, kDepth}, a), right(DType::kBF16, {kDepth, 1}, b);
    Guarded c(DType::kBF16, {1, 1}, {0});
    alignas(64) static std::byte scratch[Multiplier::kScratchBytes];
    const Product product{1,
                          1,
                          kDepth,
                          {left.view().data, kDepth},
                          {right.view().data, 1},
                          Accumulate::kAdd,
                          {c.view().data, 1}};
    Multiplier(*kernels, DType::kBF16, DType::kBF16)
        .multiply(
            1, 1, [&](std::int64_t) { return product; }, scratch);
    INFO(kernels->name);
    CHECK(c.values() == Values{1 + 0x1p-7});
  }
}

}  // namespace pecan::test
