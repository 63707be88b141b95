#include <pecan/ops/rms_norm.hpp>

#include "ops/op_test.hpp"
#include "ops/reference.hpp"

namespace pecan::test {
namespace {

using ops::Accumulate;
constexpr double kEps = 1e-5;

struct Gradients {
  Values dx;
  Values dw;
};

Gradients backward(Context& ctx,
                   DType dtype,
                   const Shape& shape,
                   const Values& x,
                   const Values& w,
                   const Values& dy,
                   Accumulate accumulate) {
  const std::int64_t rows = shape.num_elements() / std::int64_t(w.size());
  Guarded x_tensor(dtype, shape, x);
  Guarded w_tensor(master_of(dtype), {std::int64_t(w.size())}, w);
  Guarded y(dtype, shape);
  Guarded rstd(master_of(dtype), {rows});
  ops::rms_norm_forward(ctx, x_tensor, w_tensor, kEps, y, rstd);
  Guarded dx(dtype, shape, Values(x.size(), 1.0));
  Guarded dw(master_of(dtype), {std::int64_t(w.size())}, Values(w.size(), 1.0));
  ops::rms_norm_backward(
      ctx, Guarded(dtype, shape, dy), x_tensor, w_tensor, rstd, dx, accumulate, dw);
  return {dx.values(), dw.values()};
}

}  // namespace

TEST_CASE("rms_norm: forward agrees with the reference, also of heads", "[any device]") {
  const Shape shapes[] = {
      {0, 4}, {1, 1}, {3, 7}, {65, 63}, {9, 129}, {128, 256}, {5, 3, 32}, {3, 1153}};
  for_each_storage_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    for (const Shape& shape : shapes) {
      INFO(shape.to_string());
      const std::int64_t width = shape[shape.num_dims() - 1];
      const Values x = stored(dtype, random_values(shape.num_elements(), 1));
      const Values w = random_values(width, 2);
      Guarded y(dtype, shape);
      Guarded rstd(master_of(dtype), {shape.num_elements() / width});
      ops::rms_norm_forward(
          ctx, Guarded(dtype, shape, x), Guarded(master_of(dtype), {width}, w), kEps, y, rstd);
      check_close(y.values(), reference::rms_norm(x, w, kEps), tolerance(dtype));
    }
  });
}

TEST_CASE("rms_norm: gradients agree with central differences", "[any device]") {
  OpContext ctx;
  const Shape shape{4, 7};
  Values x = random_values(28, 1);
  Values w = random_values(7, 2);
  const Values dy = random_values(28, 3);
  const auto loss = [&] { return dot(reference::rms_norm(x, w, kEps), dy); };
  Gradients g = backward(ctx, DType::kF64, shape, x, w, dy, Accumulate::kOverwrite);
  check_gradient(x, g.dx, loss);
  for (double& value : g.dw) value -= 1;
  check_gradient(w, g.dw, loss);
}

TEST_CASE("rms_norm: f32 and threaded gradients agree with f64, and add where asked",
          "[any device]") {
  OpContext exact_ctx;
  // The last two: several rows of each part that sums over rows are made of, on a GPU.
  for (const Shape& shape : {Shape{1, 1},
                             Shape{63, 65},
                             Shape{300, 129},
                             Shape{0, 8},
                             Shape{2600, 7},
                             Shape{520, 515}}) {
    // Values that all types hold.
    const Values x = stored(DType::kBF16, random_values(shape.num_elements(), 1));
    const Values w = random_values(shape[1], 2);
    const Values dy = stored(DType::kBF16, random_values(shape.num_elements(), 3));
    Gradients exact = backward(exact_ctx, DType::kF64, shape, x, w, dy, Accumulate::kAdd);
    for_each_storage_kind([&](DType dtype, int threads) {
      INFO(shape.to_string());
      OpContext ctx(threads);
      const Gradients added = backward(ctx, dtype, shape, x, w, dy, Accumulate::kAdd);
      Gradients plain = backward(ctx, dtype, shape, x, w, dy, Accumulate::kOverwrite);
      check_close(added.dx, exact.dx, tolerance(dtype, 4));
      check_close(added.dw, exact.dw, tolerance(master_of(dtype), 16));
      for (double& value : plain.dx) value += 1;
      check_close(plain.dx, exact.dx, tolerance(dtype, 16));
      CHECK(plain.dw == added.dw);
    });
  }
}

TEST_CASE("rms_norm: gradients of rows that fill the shared memory of a block", "[any device]") {
  // The last width for which a GPU's kernel gets its sums without asking for more memory, and it
  // declares some itself.
  const Shape shape{2, 12288};
  const Values x = random_values(shape.num_elements(), 1), w = random_values(shape[1], 2),
               dy = random_values(shape.num_elements(), 3);
  OpContext ctx;
  const Gradients exact = backward(ctx, DType::kF64, shape, x, w, dy, Accumulate::kOverwrite);
  const Gradients found = backward(ctx, DType::kF32, shape, x, w, dy, Accumulate::kOverwrite);
  check_close(found.dx, exact.dx, tolerance(DType::kF32, 16));
  check_close(found.dw, exact.dw, tolerance(DType::kF32, 16));
}

TEST_CASE("rms_norm: dx may take the place of dy", "[any device]") {
  OpContext ctx;
  const Values x = random_values(6 * 5, 1);
  const Values w = random_values(5, 2);
  const Values dy = random_values(6 * 5, 3);
  const Gradients apart = backward(ctx, DType::kF32, {6, 5}, x, w, dy, Accumulate::kOverwrite);
  Guarded x_tensor(DType::kF32, {6, 5}, x);
  Guarded w_tensor(DType::kF32, {5}, w);
  Guarded y(DType::kF32, {6, 5});
  Guarded rstd(DType::kF32, {6});
  ops::rms_norm_forward(ctx, x_tensor, w_tensor, kEps, y, rstd);
  Guarded both(DType::kF32, {6, 5}, dy);
  Guarded dw(DType::kF32, {5}, Values(5, 1.0));
  ops::rms_norm_backward(ctx, both, x_tensor, w_tensor, rstd, both, Accumulate::kOverwrite, dw);
  CHECK(both.values() == apart.dx);
  CHECK(dw.values() == apart.dw);
}

}  // namespace pecan::test
