#include <pecan/ops/layer_norm.hpp>

#include "ops/op_test.hpp"
#include "ops/reference.hpp"

namespace pecan::test {
namespace {

using ops::Accumulate;
constexpr double kEps = 1e-5;

struct Gradients {
  Values dx;
  Values dw;
  Values db;
};

Gradients backward(Context& ctx,
                   DType dtype,
                   const Shape& shape,
                   const Values& x,
                   const Values& w,
                   const Values& dy,
                   Accumulate accumulate) {
  const DType master = master_of(dtype);
  const Shape width{std::int64_t(w.size())};
  const Shape rows{shape.num_elements() / width[0]};
  Guarded x_tensor(dtype, shape, x), w_tensor(master, width, w), y(dtype, shape);
  Guarded mean(master, rows), rstd(master, rows);
  ops::layer_norm_forward(
      ctx, x_tensor, w_tensor, Guarded(master, width, Values(w.size())), kEps, y, mean, rstd);
  Guarded dx(dtype, shape, Values(x.size(), 1.0));
  Guarded dw(master, width, Values(w.size(), 1.0)), db(master, width, Values(w.size(), 1.0));
  ops::layer_norm_backward(
      ctx, Guarded(dtype, shape, dy), x_tensor, w_tensor, mean, rstd, dx, accumulate, dw, db);
  return {dx.values(), dw.values(), db.values()};
}

/// Values away from 0, so that the mean matters.
Values shifted(std::int64_t count, std::uint64_t seed) {
  Values values = random_values(count, seed);
  for (double& value : values) value += 0.75;
  return values;
}

}  // namespace

TEST_CASE("layer_norm: forward agrees with the reference, also of heads", "[any device]") {
  const Shape shapes[] = {
      {0, 4}, {1, 1}, {3, 7}, {65, 63}, {9, 129}, {128, 256}, {5, 3, 32}, {3, 1153}};
  for_each_storage_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    for (const Shape& shape : shapes) {
      INFO(shape.to_string());
      const DType master = master_of(dtype);
      const std::int64_t width = shape[shape.num_dims() - 1];
      const Shape rows{shape.num_elements() / width};
      const Values x = stored(dtype, shifted(shape.num_elements(), 1));
      const Values w = random_values(width, 2), b = random_values(width, 3);
      Guarded y(dtype, shape), mean(master, rows), rstd(master, rows);
      ops::layer_norm_forward(ctx,
                              Guarded(dtype, shape, x),
                              Guarded(master, {width}, w),
                              Guarded(master, {width}, b),
                              kEps,
                              y,
                              mean,
                              rstd);
      check_close(y.values(), reference::layer_norm(x, w, b, kEps), tolerance(dtype, 4));
    }
  });
}

TEST_CASE("layer_norm: a large mean does not drown small deviations", "[any device]") {
  OpContext ctx;
  // f32 holds these exactly, but not the squares of which a one-pass variance is the difference.
  const Values x{4096.25, 4096.5, 4096.75, 4097};
  const Values ones(4, 1.0), zeros(4);
  Guarded y(DType::kF32, {1, 4}), mean(DType::kF32, {1}), rstd(DType::kF32, {1});
  ops::layer_norm_forward(ctx,
                          Guarded(DType::kF32, {1, 4}, x),
                          Guarded(DType::kF32, {4}, ones),
                          Guarded(DType::kF32, {4}, zeros),
                          kEps,
                          y,
                          mean,
                          rstd);
  check_close(y.values(), reference::layer_norm(x, ones, zeros, kEps), {1e-9, 1e-4});
}

TEST_CASE("layer_norm: gradients agree with central differences", "[any device]") {
  OpContext ctx;
  const Shape shape{4, 7};
  Values x = shifted(28, 1);
  Values w = random_values(7, 2);
  Values b = random_values(7, 4);
  const Values dy = random_values(28, 3);
  const auto loss = [&] { return dot(reference::layer_norm(x, w, b, kEps), dy); };
  Gradients g = backward(ctx, DType::kF64, shape, x, w, dy, Accumulate::kOverwrite);
  check_gradient(x, g.dx, loss);
  for (double& value : g.dw) value -= 1;
  check_gradient(w, g.dw, loss);
  for (double& value : g.db) value -= 1;
  check_gradient(b, g.db, loss);
}

TEST_CASE("layer_norm: f32, bf16 and threaded gradients agree with f64, and add where asked",
          "[any device]") {
  OpContext exact_ctx;
  // The last two: several rows of each part that sums over rows are made of, on a GPU.
  for (const Shape& shape : {Shape{1, 1},
                             Shape{63, 65},
                             Shape{300, 129},
                             Shape{0, 8},
                             Shape{2600, 7},
                             Shape{520, 515}}) {
    const Values x = stored(DType::kBF16, shifted(shape.num_elements(), 1));
    const Values w = random_values(shape[1], 2);
    const Values dy = stored(DType::kBF16, random_values(shape.num_elements(), 3));
    Gradients exact = backward(exact_ctx, DType::kF64, shape, x, w, dy, Accumulate::kAdd);
    for_each_storage_kind([&](DType dtype, int threads) {
      INFO(shape.to_string());
      OpContext ctx(threads);
      const Gradients added = backward(ctx, dtype, shape, x, w, dy, Accumulate::kAdd);
      Gradients plain = backward(ctx, dtype, shape, x, w, dy, Accumulate::kOverwrite);
      // The gradient of a row of one is 0: a difference of equal numbers, whose rounding (a fused
      // product is not rounded, the mean is) rstd makes larger.
      const std::int64_t cancelled = shape[1] == 1 ? 128 : 0;
      check_close(added.dx, exact.dx, tolerance(dtype, 4 + cancelled));
      check_close(added.dw, exact.dw, tolerance(master_of(dtype), 16));
      check_close(added.db, exact.db, tolerance(master_of(dtype), 16));
      for (double& value : plain.dx) value += 1;
      check_close(plain.dx, exact.dx, tolerance(dtype, 16 + cancelled));
      CHECK(plain.dw == added.dw);
      CHECK(plain.db == added.db);
    });
  }
}

TEST_CASE("layer_norm: gradients of rows that fill the shared memory of a block", "[any device]") {
  // As rms_norm's, with two sums a column.
  const Shape shape{2, 6144};
  const Values x = shifted(shape.num_elements(), 1), w = random_values(shape[1], 2),
               dy = random_values(shape.num_elements(), 3);
  OpContext ctx;
  const Gradients exact = backward(ctx, DType::kF64, shape, x, w, dy, Accumulate::kOverwrite);
  const Gradients found = backward(ctx, DType::kF32, shape, x, w, dy, Accumulate::kOverwrite);
  check_close(found.dx, exact.dx, tolerance(DType::kF32, 16));
  check_close(found.dw, exact.dw, tolerance(DType::kF32, 16));
  check_close(found.db, exact.db, tolerance(DType::kF32, 16));
}

TEST_CASE("layer_norm: dx may take the place of dy", "[any device]") {
  OpContext ctx;
  const Values x = random_values(6 * 5, 1), w = random_values(5, 2), dy = random_values(6 * 5, 3);
  const Gradients apart = backward(ctx, DType::kF32, {6, 5}, x, w, dy, Accumulate::kOverwrite);
  Guarded x_tensor(DType::kF32, {6, 5}, x), w_tensor(DType::kF32, {5}, w);
  Guarded y(DType::kF32, {6, 5}), mean(DType::kF32, {6}), rstd(DType::kF32, {6});
  ops::layer_norm_forward(
      ctx, x_tensor, w_tensor, Guarded(DType::kF32, {5}, Values(5)), kEps, y, mean, rstd);
  Guarded both(DType::kF32, {6, 5}, dy);
  Guarded dw(DType::kF32, {5}, Values(5, 1.0)), db(DType::kF32, {5}, Values(5, 1.0));
  ops::layer_norm_backward(
      ctx, both, x_tensor, w_tensor, mean, rstd, both, Accumulate::kOverwrite, dw, db);
  CHECK(both.values() == apart.dx);
  CHECK(dw.values() == apart.dw);
  CHECK(db.values() == apart.db);
}

TEST_CASE("layer_norm: a bias of another size and overlapping statistics are refused") {
  OpContext ctx;
  Guarded x(DType::kF32, {2, 3}, Values(6)), y(DType::kF32, {2, 3}), w(DType::kF32, {3}, Values(3));
  Guarded mean(DType::kF32, {2}), rstd(DType::kF32, {2});
  CHECK_THROWS_AS(
      ops::layer_norm_forward(ctx, x, w, Guarded(DType::kF32, {2}, Values(2)), kEps, y, mean, rstd),
      ShapeError);
  CHECK_THROWS_AS(ops::layer_norm_forward(ctx, x, w, w, kEps, y, mean, mean), ShapeError);
}

}  // namespace pecan::test
