#include "ops/vector_kernels.hpp"

#include <cfloat>

#include "ops/op_test.hpp"

namespace pecan::test {

using ops::detail::Isa;

TEST_CASE("vector kernels: expf is within 2e-7 in every instruction set of this machine") {
  std::vector<float> x;
  for (double value = -87; value < 88; value += 0.00173) x.push_back(float(value));
  std::vector<float> y(x.size());
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (!ops::detail::supports(isa)) continue;
    INFO("instruction set " << int(isa));
    const auto& kernels = ops::detail::isa_kernels(isa).f32;
    const double sum = kernels.exp_sum(x.data(), y.data(), std::int64_t(x.size()), 1.0F, 0.0F);
    double worst = 0;
    double expected_sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double exact = std::exp(double(x[i]));
      expected_sum += double(y[i]);
      worst = std::max(worst, std::abs(double(y[i]) - exact) / exact);
    }
    CHECK(worst <= 2e-7);
    CHECK(std::abs(sum - expected_sum) <= 1e-12 * expected_sum);
    // exp(2 x - 3), of every length round the vector widths.
    for (std::int64_t n = 0; n < 70; ++n) {
      Guarded out(DType::kF32, {n});
      kernels.exp_sum(x.data() + 50000, out.view().as<float>().data(), n, 2.0F, 3.0F);
      Values expected;
      for (std::int64_t i = 0; i < n; ++i)
        expected.push_back(std::exp(2 * double(x[std::size_t(50000 + i)]) - 3));
      check_close(out.values(), expected, tolerance(DType::kF32, 16));
    }
  }
}

TEST_CASE("vector kernels: exp of 0, far and special arguments") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  // Enough of each for the vector loop and its tail.
  const std::vector<float> arguments{
      0.0F, -88.0F, -1e30F, -FLT_MAX, -kInfinity, std::numeric_limits<float>::quiet_NaN()};
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (!ops::detail::supports(isa)) continue;
    for (const float argument : arguments) {
      std::vector<float> x(19, argument);
      static_cast<void>(
          ops::detail::isa_kernels(isa).f32.exp_sum(x.data(), x.data(), 19, 1.0F, 0.0F));
      for (const float value : x) {
        INFO("exp(" << argument << ") gave " << value);
        if (std::isnan(argument)) {
          CHECK(std::isnan(value));
        } else {
          CHECK(value == (argument == 0 ? 1.0F : 0.0F));
        }
      }
    }
  }
}

TEST_CASE("vector kernels: max finds the largest wherever it stands") {
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (!ops::detail::supports(isa)) continue;
    for (std::size_t n = 1; n < 40; ++n) {
      for (std::size_t at = 0; at < n; ++at) {
        std::vector<float> x(n, -3.0F);
        x[at] = -2.0F;
        CHECK(ops::detail::isa_kernels(isa).f32.max(x.data(), std::int64_t(n)) == -2.0F);
      }
    }
    CHECK(ops::detail::isa_kernels(isa).f64.max(nullptr, 0) ==
          -std::numeric_limits<double>::infinity());
  }
}

TEST_CASE(
    "vector kernels: every instruction set gives the same swiglu and f64 product to rounding") {
  const Values values = random_values(64 * 64, 1);
  const std::vector<float> x(values.begin(), values.end());
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (!ops::detail::supports(isa)) continue;
    const auto& kernels = ops::detail::isa_kernels(isa);
    const auto& baseline = ops::detail::isa_kernels(Isa::kBaseline);
    std::vector<float> wide(100), narrow(100);
    kernels.f32.swiglu(x.data(), x.data() + 100, wide.data(), 99);
    baseline.f32.swiglu(x.data(), x.data() + 100, narrow.data(), 99);
    check_close(Values(wide.begin(), wide.end()),
                Values(narrow.begin(), narrow.end()),
                tolerance(DType::kF32, 4));
    Values c_wide(7 * 50), c_narrow(7 * 50);
    kernels.multiply_tile(7, 50, 20, values.data(), 20, 1, values.data(), c_wide.data(), 50);
    baseline.multiply_tile(7, 50, 20, values.data(), 20, 1, values.data(), c_narrow.data(), 50);
    check_close(c_wide, c_narrow, tolerance(DType::kF64, 20));
  }
}

}  // namespace pecan::test
