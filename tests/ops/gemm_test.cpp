#include "ops/gemm.hpp"

#include <type_traits>

#include "ops/op_test.hpp"
#include "ops/reference.hpp"

namespace pecan::test {
namespace {

using ops::Accumulate;
using ops::detail::gemm;
using ops::detail::Matrix;
using ops::detail::Transpose;

template <typename T>
std::vector<T> typed(const Values& values) {
  std::vector<T> result;
  for (const double value : values) result.push_back(T(value));
  return result;
}

/// gemm of one type, or of bf16 factors on the given path.
template <typename T, typename C, typename... Sides>
void multiply(ops::detail::BF16Path path, Sides... sides) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    std::vector<float> converted(std::size_t(ops::detail::kConvertedElements));
    gemm(path, sides..., converted.data());
  } else {
    gemm(sides...);
  }
}

template <typename T, typename C = T>
void check_gemm(std::size_t m,
                std::size_t n,
                std::size_t k,
                ops::detail::BF16Path path = ops::detail::best_bf16_path()) {
  constexpr std::size_t kPadding = 3;
  for (const Transpose ta : {Transpose::kNo, Transpose::kYes}) {
    for (const Transpose tb : {Transpose::kNo, Transpose::kYes}) {
      for (const Accumulate accumulate : {Accumulate::kOverwrite, Accumulate::kAdd}) {
        for (const int threads : {1, 2}) {
          INFO(m << " x " << n << " x " << k << ", transposed " << int(ta) << int(tb)
                 << ", accumulate " << int(accumulate) << ", threads " << threads);
          const std::size_t a_stride = (ta == Transpose::kYes ? m : k) + kPadding;
          const std::size_t b_stride = (tb == Transpose::kYes ? k : n) + kPadding;
          const std::size_t c_stride = n + kPadding;
          const Values a =
              stored(kDTypeOf<T>,
                     random_values(std::int64_t(a_stride * (ta == Transpose::kYes ? k : m)), 1));
          const Values b =
              stored(kDTypeOf<T>,
                     random_values(std::int64_t(b_stride * (tb == Transpose::kYes ? n : k)), 2));
          Values c = stored(kDTypeOf<C>, random_values(std::int64_t(c_stride * m), 3));
          const std::vector<T> a_typed = typed<T>(a);
          const std::vector<T> b_typed = typed<T>(b);
          std::vector<C> c_typed = typed<C>(c);
          const Values product = reference::product(
              m,
              n,
              k,
              [&](auto i, auto p) {
                return ta == Transpose::kYes ? a[p * a_stride + i] : a[i * a_stride + p];
              },
              [&](auto p, auto j) {
                return tb == Transpose::kYes ? b[j * b_stride + p] : b[p * b_stride + j];
              });
          for (std::size_t i = 0; i < m; ++i) {
            for (std::size_t j = 0; j < n; ++j) {
              double& value = c[i * c_stride + j];
              value = product[i * n + j] + (accumulate == Accumulate::kAdd ? value : 0);
            }
          }
          multiply<T, C>(path,
                         threads,
                         std::int64_t(m),
                         std::int64_t(n),
                         std::int64_t(k),
                         Matrix<const T>{a_typed.data(), std::int64_t(a_stride), ta},
                         Matrix<const T>{b_typed.data(), std::int64_t(b_stride), tb},
                         accumulate,
                         Matrix<C>{c_typed.data(), std::int64_t(c_stride)});
          Values observed;
          for (const C value : c_typed) observed.push_back(double(value));
          check_close(observed, c, tolerance(kDTypeOf<C>, std::int64_t(k)));
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("gemm agrees with the sum in the order of the formula") {
  const std::size_t shapes[][3] = {
      {1, 1, 1}, {2, 3, 0}, {5, 7, 3}, {63, 65, 31}, {64, 64, 64}, {129, 65, 33}, {97, 128, 101}};
  for (const auto& [m, n, k] : shapes) {
    check_gemm<float>(m, n, k);
    check_gemm<double>(m, n, k);
  }
}

TEST_CASE("gemm of bf16 factors sums in f32, with and without the CPU's bf16 instructions") {
  using ops::detail::BF16Path;
  const std::size_t shapes[][3] = {
      {1, 1, 1}, {2, 3, 0}, {63, 65, 31}, {129, 65, 33}, {300, 257, 520}};
  std::vector<BF16Path> paths{BF16Path::kConverted};
  if (ops::detail::best_bf16_path() == BF16Path::kNative) {
    paths.push_back(BF16Path::kNative);
  } else {
    WARN("this CPU has no AVX512-BF16: the native path is not tested");
  }
  for (const BF16Path path : paths) {
    INFO("path " << int(path));
    for (const auto& [m, n, k] : shapes) {
      check_gemm<BFloat16>(m, n, k, path);
      check_gemm<BFloat16, float>(m, n, k, path);
    }
  }
}

TEST_CASE("gemm in f64 is the same for any number of threads") {
  const Values a = random_values(130 * 70, 1);
  const Values b = random_values(70 * 150, 2);
  Values one(130 * 150);
  Values three(130 * 150);
  gemm(1, 130, 150, 70, {a.data(), 70}, {b.data(), 150}, Accumulate::kOverwrite, {one.data(), 150});
  gemm(3,
       130,
       150,
       70,
       {a.data(), 70},
       {b.data(), 150},
       Accumulate::kOverwrite,
       {three.data(), 150});
  CHECK(one == three);
}

}  // namespace pecan::test
