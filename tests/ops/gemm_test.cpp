#include "ops/gemm.hpp"

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

template <typename T>
void check_gemm(std::size_t m, std::size_t n, std::size_t k) {
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
          Values c = stored(kDTypeOf<T>, random_values(std::int64_t(c_stride * m), 3));
          const std::vector<T> a_typed = typed<T>(a);
          const std::vector<T> b_typed = typed<T>(b);
          std::vector<T> c_typed = typed<T>(c);
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
          gemm(threads,
               std::int64_t(m),
               std::int64_t(n),
               std::int64_t(k),
               Matrix<const T>{a_typed.data(), std::int64_t(a_stride), ta},
               Matrix<const T>{b_typed.data(), std::int64_t(b_stride), tb},
               accumulate,
               Matrix<T>{c_typed.data(), std::int64_t(c_stride)});
          Values observed;
          for (const T value : c_typed) observed.push_back(double(value));
          check_close(observed, c, tolerance(kDTypeOf<T>, std::int64_t(k)));
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
