#include <array>
#include <complex>

#include <pecan/ops/rope.hpp>

#include "ops/op_test.hpp"

namespace pecan::test {

TEST_CASE("rope: pairs (i, i + D/2) turn like complex numbers", "[any device]") {
  for_each_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    for (const auto& [batch, sequence, heads, dim] : {std::array{0, 4, 1, 2},
                                                      std::array{1, 1, 1, 2},
                                                      std::array{2, 5, 3, 6},
                                                      std::array{2, 65, 4, 64}}) {
      const Shape shape{batch * sequence, heads, dim};
      INFO(shape.to_string());
      const Values x = random_values(shape.num_elements(), 1);
      Values expected(x.size());
      const auto half = std::size_t(dim / 2);
      for (std::size_t row = 0; row < x.size() / std::size_t(dim); ++row) {
        const std::size_t position = row / std::size_t(heads) % std::size_t(sequence);
        for (std::size_t i = 0; i < half; ++i) {
          const std::size_t at = row * std::size_t(dim) + i;
          const double angle = double(position) / std::pow(10000.0, 2 * double(i) / double(dim));
          const auto turned = std::complex(x[at], x[at + half]) * std::polar(1.0, angle);
          expected[at] = turned.real();
          expected[at + half] = turned.imag();
        }
      }
      Guarded table(dtype, {sequence, dim});
      ops::rope_table(ctx, 10000.0, table);
      Guarded rotated(dtype, shape, x);
      ops::rope_forward(ctx, table, {}, rotated);
      // Angles grow to S, and so does their own rounding error, which f64 shows.
      const std::int64_t growth = dtype == DType::kF64 ? sequence * sequence : 1;
      check_close(rotated.values(), expected, tolerance(dtype, growth));
      // The rotation is orthogonal: its inverse is its transpose, which is the gradient.
      ops::rope_backward(ctx, table, {}, rotated);
      check_close(rotated.values(), x, tolerance(dtype, 4));
    }
  });
}

TEST_CASE("rope: given positions turn like the rows of a table at these positions",
          "[any device]") {
  for_each_storage_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    const Shape shape{6, 2, 4};
    Guarded table(master_of(dtype), {5, 4});
    ops::rope_table(ctx, 100.0, table);
    const Values x = stored(dtype, random_values(shape.num_elements(), 1));
    const Values positions{0, 1, 0, 4, 2, 2};
    Guarded rotated(dtype, shape, x);
    ops::rope_forward(ctx, table, Guarded(DType::kI32, {6}, positions), rotated);
    Values expected(x.size());
    for (std::size_t row = 0; row < 12; ++row) {
      for (std::size_t i = 0; i < 2; ++i) {
        const double angle = positions[row / 2] / std::pow(100.0, double(i) / 2);
        const auto turned =
            std::complex(x[row * 4 + i], x[row * 4 + i + 2]) * std::polar(1.0, angle);
        expected[row * 4 + i] = turned.real();
        expected[row * 4 + i + 2] = turned.imag();
      }
    }
    check_close(rotated.values(), expected, tolerance(dtype, 4));
  });
}

TEST_CASE("rope: the gradient agrees with central differences", "[any device]") {
  OpContext ctx;
  const Shape shape{6, 2, 4};
  Guarded table(DType::kF64, {3, 4});
  ops::rope_table(ctx, 100.0, table);
  Values x = random_values(48, 1);
  const Values dy = random_values(48, 2);
  Guarded dx(DType::kF64, shape, dy);
  ops::rope_backward(ctx, table, {}, dx);
  check_gradient(x, dx.values(), [&] {
    Guarded y(DType::kF64, shape, x);
    ops::rope_forward(ctx, table, {}, y);
    return dot(y.values(), dy);
  });
}

TEST_CASE("rope: odd head dims and broken sequences are refused") {
  OpContext ctx;
  Guarded odd(DType::kF32, {4, 3}, Values(12));
  CHECK_THROWS_AS(ops::rope_table(ctx, 10000.0, odd), ShapeError);
  Guarded table(DType::kF32, {4, 2}, Values(8));
  Guarded x(DType::kF32, {6, 1, 2}, Values(12));
  CHECK_THROWS_AS(ops::rope_forward(ctx, table, {}, x), ShapeError);
  for (const double outside : {-1.0, 4.0}) {
    Guarded positions(DType::kI32, {6}, {0, 1, 2, 3, 0, outside});
    CHECK_THROWS_AS(ops::rope_forward(ctx, table, positions, x), ShapeError);
  }
}

}  // namespace pecan::test
