#include "ops/vector_kernels.hpp"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "ops/op_test.hpp"
#include "ops/reference.hpp"

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

TEST_CASE("vector kernels: every instruction set gives the same f64 product to rounding") {
  const Values values = random_values(64 * 64, 1);
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (!ops::detail::supports(isa)) continue;
    const auto& kernels = ops::detail::isa_kernels(isa);
    const auto& baseline = ops::detail::isa_kernels(Isa::kBaseline);
    Values c_wide(7 * 50), c_narrow(7 * 50);
    kernels.multiply_tile(7, 50, 20, values.data(), 20, 1, values.data(), c_wide.data(), 50);
    baseline.multiply_tile(7, 50, 20, values.data(), 20, 1, values.data(), c_narrow.data(), 50);
    check_close(c_wide, c_narrow, tolerance(DType::kF64, 20));
  }
}

// What follows runs every loop over stored tensors in every instruction set of this machine, each
// storage type, and lengths round the vector widths, against formulas in double.

namespace {

constexpr std::int64_t kLengths[] = {0, 1, 7, 17, 63, 64, 65, 1003};

template <typename T>
using BitsOf = std::conditional_t<std::is_same_v<T, BFloat16>, ops::detail::Bf16Bits, T>;

template <typename T>
BitsOf<T>* bits_of(Guarded& x) {
  return reinterpret_cast<BitsOf<T>*>(x.view().as<T>().data());
}

/// One storage type: its kernels, tensors of it and of what it is computed with.
template <typename T>
struct Stored {
  using M = typename ops::detail::WideOf<BitsOf<T>>::Type;
  static constexpr DType kType = kDTypeOf<T>;
  static constexpr DType kMath = kDTypeOf<M>;
  const ops::detail::StorageKernels<BitsOf<T>>& kernels;
  [[nodiscard]] auto* at(Guarded& x) const { return bits_of<T>(x); }
  [[nodiscard]] M* wide(Guarded& x) const { return x.view().template as<M>().data(); }
  static void close(Guarded& x, const Values& expected, std::int64_t length = 8) {
    Tolerance limit = tolerance(x.view().dtype, length);
    // The mean square of a single rounding is that of the worst.
    if (expected.size() == 1) limit.nmse = limit.max_error * limit.max_error;
    check_close(x.values(), expected, limit);
  }
  static void close(double x, double expected, double magnitude) {
    CHECK(std::abs(x - expected) <= 1e-12 * magnitude);
  }
};

/// A tensor of n random numbers; `values()` are these as they are stored.
struct Random : Guarded {
  Random(DType type, std::int64_t n, std::uint64_t seed)
      : Guarded(type, {n}, random_values(n, seed)) {}
};

template <typename Body>
void for_each_stored(Body&& body) {
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (!ops::detail::supports(isa)) continue;
    const auto run = [&]<typename T>(T) {
      for (const std::int64_t n : kLengths) {
        INFO("instruction set " << int(isa) << ", " << name_of(kDTypeOf<T>) << ", " << n);
        body(Stored<T>{ops::detail::storage_kernels<BitsOf<T>>(isa)}, n);
      }
    };
    run(float{});
    run(double{});
    run(BFloat16{});
  }
}

/// f(i) for i in [0, n).
template <typename F>
Values each(std::int64_t n, F&& f) {
  Values values;
  for (std::int64_t i = 0; i < n; ++i) values.push_back(f(std::size_t(i)));
  return values;
}

}  // namespace

TEST_CASE("vector kernels: elementwise loops") {
  for_each_stored([&]<typename T>(Stored<T> s, std::int64_t n) {
    using M = typename Stored<T>::M;
    Random a(s.kType, n, 1), b(s.kType, n, 2), wide_b(s.kMath, n, 3);
    const Values x = a.values(), y = b.values(), z = wide_b.values();
    {
      Guarded out(s.kType, {n});
      s.kernels.add(s.at(a), s.at(b), s.at(out), n);
      s.close(out, each(n, [&](auto i) { return x[i] + y[i]; }));
      s.kernels.axpy(M(0.5), s.at(a), s.at(b), n);
      s.close(b, each(n, [&](auto i) { return y[i] + 0.5 * x[i]; }));
    }
    {
      Random to(s.kType, n, 2);
      s.kernels.axpy_wide(M(-2), s.wide(wide_b), s.at(to), n);
      s.close(to, each(n, [&](auto i) { return y[i] - 2 * z[i]; }));
    }
    {
      Random to(s.kType, n, 2);
      s.kernels.scale(M(1.5), s.at(to), n);
      s.close(to, each(n, [&](auto i) { return 1.5 * y[i]; }));
    }
    {
      Random to(s.kType, n, 2);
      s.kernels.add_wide(s.wide(wide_b), s.at(to), n);
      s.close(to, each(n, [&](auto i) { return y[i] + z[i]; }));
    }
    {
      Guarded out(s.kMath, {n}), back(s.kType, {n});
      s.kernels.widen(s.at(a), s.wide(out), n);
      CHECK(out.values() == x);
      s.kernels.narrow(s.wide(out), s.at(back), n);
      CHECK(back.values() == x);
    }
    s.kernels.accumulate(s.at(a), s.wide(wide_b), n);
    s.close(wide_b, each(n, [&](auto i) { return z[i] + x[i]; }));
  });
}

TEST_CASE("vector kernels: bf16 is rounded as BFloat16 does, also ties, infinities and NaNs") {
  std::vector<float> x;
  for (std::uint32_t high = 0; high < 0x10000U; high += 7) {
    for (const std::uint32_t low : {0x0000U, 0x0001U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU})
      x.push_back(std::bit_cast<float>((high << 16U) | low));
  }
  for (const std::uint32_t special : {0x7F800000U, 0xFF800000U, 0x7F800001U, 0xFFFFFFFFU})
    x.push_back(std::bit_cast<float>(special));
  std::vector<std::uint16_t> y(x.size());
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (!ops::detail::supports(isa)) continue;
    INFO("instruction set " << int(isa));
    ops::detail::isa_kernels(isa).of_bf16.narrow(x.data(), y.data(), std::int64_t(x.size()));
    std::size_t different = 0;
    for (std::size_t i = 0; i < x.size(); ++i) different += y[i] != BFloat16(x[i]).bits ? 1U : 0U;
    CHECK(different == 0);
  }
}

TEST_CASE("vector kernels: sums over elements and over rows") {
  for_each_stored([&]<typename T>(Stored<T> s, std::int64_t n) {
    Random a(s.kType, n, 1);
    const Values x = a.values();
    double sum = 0;
    for (const double value : x) sum += value;
    s.close(s.kernels.sum(s.at(a), n), sum, double(n));
    s.close(s.kernels.sum_of_squares(s.at(a), n), dot(x, x), double(n));
    CHECK(s.kernels.count_non_finite(s.at(a), n) == 0);
    for (std::int64_t i = 0; i < n; i += 5) {
      const double far = i % 2 == 0 ? std::numeric_limits<double>::infinity()
                                    : std::numeric_limits<double>::quiet_NaN();
      a.view().template as<T>()[std::size_t(i)] = T(typename Stored<T>::M(i % 3 == 0 ? -far : far));
    }
    CHECK(s.kernels.count_non_finite(s.at(a), n) == (n + 4) / 5);

    // Rows of 70, of which some columns are summed.
    constexpr std::int64_t kWidth = 70, kFirst = 3;
    const std::int64_t rows = std::min<std::int64_t>(n, 65);
    Random dy(s.kType, rows * kWidth, 4), in(s.kType, rows * kWidth, 5);
    Random mean(s.kMath, rows, 6), rstd(s.kMath, rows, 7);
    const Values d = dy.values(), v = in.values(), m = mean.values(), r = rstd.values();
    for (const std::int64_t columns : {0, 1, 7, 63, 64}) {
      double sums[3][64] = {}, biases[64] = {};
      s.kernels.add_columns(s.at(in) + kFirst, rows, kWidth, columns, sums[0]);
      s.kernels.rms_norm_columns(
          s.at(dy) + kFirst, s.at(in) + kFirst, s.wide(rstd), rows, kWidth, columns, sums[1]);
      s.kernels.layer_norm_columns(s.at(dy) + kFirst,
                                   s.at(in) + kFirst,
                                   s.wide(mean),
                                   s.wide(rstd),
                                   rows,
                                   kWidth,
                                   columns,
                                   sums[2],
                                   biases);
      const double bound = double(rows + 1) * (s.kMath == DType::kF64 ? 1e-14 : 5e-7);
      for (std::int64_t c = 0; c < 64; ++c) {
        double expected[3] = {}, bias = 0;
        for (std::int64_t t = 0; c < columns && t < rows; ++t) {
          const std::size_t at = std::size_t(t * kWidth + kFirst + c);
          expected[0] += v[at];
          expected[1] += d[at] * v[at] * r[std::size_t(t)];
          expected[2] += d[at] * (v[at] - m[std::size_t(t)]) * r[std::size_t(t)];
          bias += d[at];
        }
        for (int i = 0; i < 3; ++i) CHECK(std::abs(sums[i][c] - expected[i]) <= bound);
        CHECK(std::abs(biases[c] - bias) <= bound);
      }
    }
  });
}

TEST_CASE("vector kernels: rotations and sums of rows") {
  for_each_stored([&]<typename T>(Stored<T> s, std::int64_t n) {
    using M = typename Stored<T>::M;
    constexpr std::int64_t kHeads = 3;
    {
      const std::int64_t dim = 2 * n;
      Random x(s.kType, kHeads * dim, 1), cosines(s.kMath, n, 2), sines(s.kMath, n, 3);
      const Values before = x.values(), c = cosines.values(), q = sines.values();
      s.kernels.rotate(M(-1), s.wide(cosines), s.wide(sines), kHeads, dim, s.at(x));
      s.close(x, each(kHeads * dim, [&](std::size_t at) {
                const std::size_t row = at / std::size_t(dim) * std::size_t(dim);
                const std::size_t i = (at - row) % std::size_t(n);
                const double a = before[row + i], b = before[row + std::size_t(n) + i];
                return at - row < std::size_t(n) ? a * c[i] + b * q[i] : b * c[i] - a * q[i];
              }));
    }
    Random rows(s.kType, 5 * n, 4), weights(s.kMath, 3, 5);
    const Values r = rows.values(), w = weights.values();
    const std::int32_t positions[] = {4, -1, 2};
    for (const bool weighted : {false, true}) {
      for (const bool add : {false, true}) {
        Random y(s.kType, n, 6);
        const Values before = y.values();
        s.kernels.sum_rows(
            s.at(rows), positions, weighted ? s.wide(weights) : nullptr, 3, add, s.at(y), n);
        s.close(y, each(n, [&](std::size_t i) {
                  return (add ? before[i] : 0) + (weighted ? w[0] : 1) * r[4 * std::size_t(n) + i] +
                         (weighted ? w[2] : 1) * r[2 * std::size_t(n) + i];
                }));
      }
    }
    Random a(s.kType, n, 7), b(s.kType, n, 8);
    const Values x = a.values(), y = b.values();
    Guarded out(s.kType, {n});
    s.close(s.kernels.dot_and_scale(M(0.75), s.at(a), s.at(b), s.at(out), n), dot(x, y), double(n));
    s.close(out, each(n, [&](auto i) { return 0.75 * x[i]; }));
  });
}

TEST_CASE("vector kernels: activations") {
  for_each_stored([&]<typename T>(Stored<T> s, std::int64_t n) {
    Random dh(s.kType, n, 1), gate(s.kType, n, 2), up(s.kType, n, 3);
    const Values d = dh.values(), g = gate.values(), u = up.values();
    const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
    Guarded h(s.kType, {n}), dx(s.kType, {n});
    s.kernels.swiglu(s.at(gate), s.at(up), s.at(h), n);
    s.close(h, each(n, [&](auto i) { return reference::silu(g[i]) * u[i]; }), 16);
    s.kernels.gelu(s.at(gate), s.at(h), n);
    s.close(h, each(n, [&](auto i) { return reference::gelu(g[i]); }), 16);
    s.kernels.gelu_backward(s.at(dh), s.at(gate), s.at(dx), n);
    s.close(dx,
            each(n,
                 [&](auto i) {
                   constexpr double kStep = 1e-5;
                   return d[i] * (reference::gelu(g[i] + kStep) - reference::gelu(g[i] - kStep)) /
                          (2 * kStep);
                 }),
            // Central differences are no closer than 1e-10.
            s.kMath == DType::kF64 ? std::int64_t(1) << 40 : 16);
    s.kernels.swiglu_backward(s.at(dh), s.at(gate), s.at(up), s.at(gate), s.at(up), n);
    s.close(up, each(n, [&](auto i) { return d[i] * reference::silu(g[i]); }), 16);
    s.close(gate,
            each(n,
                 [&](auto i) {
                   const double q = sigmoid(g[i]);
                   return d[i] * u[i] * (q + g[i] * q * (1 - q));
                 }),
            16);
  });
}

TEST_CASE("vector kernels: norms of a row") {
  for_each_stored([&]<typename T>(Stored<T> s, std::int64_t n) {
    using M = typename Stored<T>::M;
    if (n == 0) return;
    constexpr double kEps = 1e-3;
    Random in(s.kType, n, 1), weight(s.kMath, n, 2), bias(s.kMath, n, 3), grad(s.kType, n, 4);
    const Values x = in.values(), w = weight.values(), b = bias.values(), d = grad.values();
    Guarded y(s.kType, {n}), mean(s.kMath, {1});
    // Statistics are sums in double, whose order a sanitizer's build changes: those of f64 show it.
    const std::int64_t length = s.kMath == DType::kF64 ? n : 8;
    const M r = s.kernels.rms_norm(s.at(in), s.wide(weight), kEps, s.at(y), n);
    s.close(y, reference::rms_norm(x, w, kEps), length);
    const M q = s.kernels.layer_norm(
        s.at(in), s.wide(weight), s.wide(bias), kEps, s.at(y), s.wide(mean), n);
    s.close(y, reference::layer_norm(x, w, b, kEps), length);
    const double m = mean.values()[0];
    for (const bool add : {false, true}) {
      double along = 0, shift = 0, along_mean = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        along += d[i] * w[i] * x[i] / double(n);
        shift += d[i] * w[i] / double(n);
        along_mean += d[i] * w[i] * (x[i] - m) / double(n);
      }
      if (n == 1) continue;  // Both gradients are differences of nearly equal numbers.
      Random dx(s.kType, n, 5), dz(s.kType, n, 5);
      const Values before = dx.values();
      s.kernels.rms_norm_backward(s.at(grad), s.at(in), s.wide(weight), r, add, s.at(dx), n);
      s.close(dx, each(n, [&](auto i) {
                return (add ? before[i] : 0) +
                       double(r) * (d[i] * w[i] - x[i] * along * double(r) * double(r));
              }));
      s.kernels.layer_norm_backward(
          s.at(grad), s.at(in), s.wide(weight), M(m), q, add, s.at(dz), n);
      s.close(dz, each(n, [&](auto i) {
                return (add ? before[i] : 0) +
                       double(q) *
                           (d[i] * w[i] - shift - (x[i] - m) * along_mean * double(q) * double(q));
              }));
    }
  });
}

TEST_CASE("vector kernels: rows of logits, also of many pieces and with -inf") {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for_each_stored([&]<typename T>(Stored<T> s, std::int64_t length) {
    if (length == 0) return;
    for (const std::int64_t n : {length, 3 * length}) {
      Values logits = random_values(n, 1);
      for (std::size_t i = 0; i < logits.size(); ++i)
        logits[i] = i < 600 && n > 1000 ? -kInfinity : 8 * logits[i] + 20 * double(i) / double(n);
      Guarded row(s.kType, {n}, logits), again(s.kType, {n}, logits);
      logits = row.values();
      const Values p = reference::softmax(logits.data(), logits.size());
      const double largest = *std::max_element(logits.begin(), logits.end());
      double sum = 0;
      for (const double logit : logits) sum += std::exp(logit - largest);
      const double bound = (s.kMath == DType::kF64 ? 1e-12 : 1e-6) * sum;
      CHECK(s.kernels.largest(s.at(row), n) == largest);
      const ops::detail::ExpSum known = s.kernels.exp_sum(s.at(row), n);
      CHECK(known.largest == largest);
      CHECK(std::abs(known.sum - sum) <= bound);
      CHECK(std::abs(s.kernels.exp_sum_below(s.at(row), n, largest) - sum) <= bound);
      const std::int64_t label = n - 1 - n / 3;
      const Values expected =
          each(n, [&](std::size_t i) { return 0.5 * (p[i] - (i == std::size_t(label) ? 1 : 0)); });
      s.kernels.softmax_gradient(s.at(row), n, label, known, 0.5);
      const ops::detail::ExpSum both = s.kernels.softmax_and_gradient(s.at(again), n, label, 0.5);
      CHECK(both.largest == largest);
      CHECK(std::abs(both.sum - sum) <= bound);
      if (n == 1) {
        CHECK(std::abs(row.values()[0]) <= 1e-7);
        CHECK(std::abs(again.values()[0]) <= 1e-7);
        continue;
      }
      s.close(row, expected, 64);
      CHECK(again.values() == row.values());
    }
  });
}

TEST_CASE("vector kernels: adamw gives the same bits in every instruction set") {
  const ops::detail::AdamWFactors<float> narrow{
      0.7F, 0.999F, 0.9F, 0.95F, 0.1F, 0.05F, 1e-3F, 1e-8F};
  const ops::detail::AdamWFactors<double> wide{0.7, 0.999, 0.9, 0.95, 0.1, 0.05, 1e-3, 1e-8};
  for (const std::int64_t n : kLengths) {
    Values squares = random_values(n, 4);
    for (double& value : squares) value = value * value;
    struct Updated {
      std::vector<std::byte> bytes;
      bool operator==(const Updated&) const = default;
    };
    std::optional<Updated> first;
    for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
      if (!ops::detail::supports(isa)) continue;
      INFO("instruction set " << int(isa) << ", " << n);
      Random g(DType::kF32, n, 1), p(DType::kF32, n, 2), m(DType::kF32, n, 3);
      Random dg(DType::kF64, n, 1), dp(DType::kF64, n, 2), dm(DType::kF64, n, 3);
      Guarded v(DType::kF32, {n}, squares), dv(DType::kF64, {n}, squares);
      Guarded plain(DType::kF32, {n}, p.values()), rounded(DType::kBF16, {n});
      Guarded pm(DType::kF32, {n}, m.values()), pv(DType::kF32, {n}, squares);
      const auto f32 = [](Guarded& x) { return x.view().as<float>().data(); };
      const auto f64 = [](Guarded& x) { return x.view().as<double>().data(); };
      const auto& kernels = ops::detail::exact_kernels(isa);
      kernels.adamw_f32(narrow, f32(g), f32(p), f32(m), f32(v), bits_of<BFloat16>(rounded), n);
      kernels.adamw_f32(narrow, f32(g), f32(plain), f32(pm), f32(pv), nullptr, n);
      kernels.adamw_f64(wide, f64(dg), f64(dp), f64(dm), f64(dv), n);
      CHECK(plain.values() == p.values());
      CHECK(rounded.values() ==
            each(n, [&](std::size_t i) { return double(BFloat16(p.view().as<float>()[i])); }));
      Updated updated;
      for (Guarded* x : {static_cast<Guarded*>(&p),
                         static_cast<Guarded*>(&m),
                         &v,
                         &rounded,
                         static_cast<Guarded*>(&dp),
                         static_cast<Guarded*>(&dm),
                         &dv}) {
        updated.bytes.insert(
            updated.bytes.end(), x->view().data, x->view().data + x->view().num_bytes());
      }
      if (!first) first = updated;
      CHECK(updated == *first);
    }
  }
}

}  // namespace pecan::test
