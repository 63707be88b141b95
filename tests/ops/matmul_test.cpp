#include <pecan/ops/matmul.hpp>

#include "ops/reference.hpp"
#include "ops/weight.hpp"

namespace pecan::test {
namespace {

using ops::Accumulate;

}  // namespace

TEST_CASE("matmul: products and gradients agree with the reference in every storage order",
          "[any device]") {
  const std::int64_t shapes[][3] = {{0, 5, 3},
                                    {1, 1, 1},
                                    {3, 7, 5},
                                    {64, 63, 65},
                                    {65, 129, 64},
                                    {7, 48, 17},
                                    {4, 6, 0},
                                    {4, 0, 6}};
  for_each_storage_kind([&](DType dtype, int threads) {
    OpContext ctx(threads, kProductScratch);
    const DType master = master_of(dtype);
    for (const auto& [tokens, outputs, inputs] : shapes) {
      for (const std::int64_t panel : {0, 1, 16, 200}) {
        // A panel's product is rounded before the next one is added: many small ones are too
        // coarse.
        if (dtype == DType::kBF16 && panel > 0 && panel < 200) continue;
        INFO("T " << tokens << " O " << outputs << " I " << inputs << ", panel " << panel);
        const auto T = std::size_t(tokens), O = std::size_t(outputs), I = std::size_t(inputs);
        const Values x = stored(dtype, random_values(tokens * inputs, 1));
        const Values w = stored(dtype, random_values(outputs * inputs, 2));
        const Values dy = stored(dtype, random_values(tokens * outputs, 3));
        const Values old_dx = stored(dtype, random_values(tokens * inputs, 4));
        const Values old_dw = random_values(outputs * inputs, 5);
        const auto x_at = [&](auto t, auto i) { return x[t * I + i]; };
        const auto w_at = [&](auto o, auto i) { return w[o * I + i]; };
        const auto dy_at = [&](auto t, auto o) { return dy[t * O + o]; };
        Guarded x_tensor(dtype, {tokens, inputs}, x);
        Guarded dy_tensor(dtype, {tokens, outputs}, dy);
        Weight weight(dtype, {outputs, inputs}, panel, w);

        Guarded y(dtype, {tokens, outputs});
        ops::matmul_forward(ctx, x_tensor, weight.storage(), y);
        check_close(y.values(),
                    reference::product(T, O, I, x_at, [&](auto i, auto o) { return w_at(o, i); }),
                    tolerance(dtype, inputs));

        Values dx = reference::product(T, I, O, dy_at, w_at);
        Guarded dx_new(dtype, {tokens, inputs});
        ops::matmul_backward_input(
            ctx, dy_tensor, weight.storage(), dx_new, Accumulate::kOverwrite);
        check_close(dx_new.values(), dx, tolerance(dtype, outputs));
        Guarded dx_sum(dtype, {tokens, inputs}, old_dx);
        ops::matmul_backward_input(ctx, dy_tensor, weight.storage(), dx_sum, Accumulate::kAdd);
        for (std::size_t i = 0; i < dx.size(); ++i) dx[i] += old_dx[i];
        check_close(dx_sum.values(), dx, tolerance(dtype, outputs + 1));

        Values dw = reference::product(
            O, I, T, [&](auto o, auto t) { return dy_at(t, o); }, x_at);
        for (std::size_t i = 0; i < dw.size(); ++i) dw[i] += old_dw[i];
        Weight gradient(master, {outputs, inputs}, panel, old_dw);
        ops::matmul_backward_weight(ctx, dy_tensor, x_tensor, gradient.storage());
        check_close(gradient.values(), dw, tolerance(master, tokens + 1));
      }
    }
  });
}

TEST_CASE("matmul: gradients agree with central differences", "[any device]") {
  OpContext ctx(1, kProductScratch);
  Values x = random_values(3 * 5, 1);
  Values w = random_values(4 * 5, 2);
  const Values dy = random_values(3 * 4, 3);
  const auto loss = [&] {
    Guarded y(DType::kF64, {3, 4});
    Guarded w_now(DType::kF64, {4, 5}, w);
    ops::matmul_forward(ctx, Guarded(DType::kF64, {3, 5}, x), w_now.storage(), y);
    return dot(y.values(), dy);
  };
  Guarded dy_tensor(DType::kF64, {3, 4}, dy);
  Guarded weight(DType::kF64, {4, 5}, w);
  Guarded dx(DType::kF64, {3, 5});
  Guarded dw(DType::kF64, {4, 5}, Values(20));
  ops::matmul_backward_input(ctx, dy_tensor, weight.storage(), dx, Accumulate::kOverwrite);
  ops::matmul_backward_weight(ctx, dy_tensor, Guarded(DType::kF64, {3, 5}, x), dw.storage());
  check_gradient(x, dx.values(), loss);
  check_gradient(w, dw.values(), loss);
}

TEST_CASE("matmul: the plan takes exactly what a product takes") {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    device::Stream stream(device::cpu());
    device::Arena measured;
    Context plan{device::cpu(), stream, measured, 1};
    ops::plan_matmul(plan, dtype);
    device::Arena served(device::cpu(), measured.high_water());
    Context ctx{device::cpu(), stream, served, 1};
    Guarded x(dtype, {2, 3}, Values(6)), w(dtype, {4, 3}, Values(12)), y(dtype, {2, 4});
    ops::matmul_forward(ctx, x, w.storage(), y);
    CHECK(served.high_water() == measured.high_water());
    CHECK(served.used() == 0);
  }
}

TEST_CASE("matmul: the background is given a moment between panels and at the end") {
  for (const int threads : {1, 2}) {
    OpContext ctx(threads, kProductScratch);
    CountingBackground background;
    ctx.set_background(&background);
    Guarded x(DType::kF32, {2, 3}, Values(6)), y(DType::kF32, {2, 5}), dx(DType::kF32, {2, 3});
    const auto moments = [&](const auto& op) {
      const int before = background.count;
      op();
      return background.count - before;
    };
    for (const auto& [panel, expected] : {std::pair{0, 1}, {2, 3}}) {
      Weight w(DType::kF32, {5, 3}, panel, Values(15));
      CHECK(moments([&] { ops::matmul_forward(ctx, x, w.storage(), y); }) == expected);
      CHECK(moments([&] {
              ops::matmul_backward_input(ctx, y, w.storage(), dx, Accumulate::kOverwrite);
            }) == expected);
      CHECK(moments([&] { ops::matmul_backward_weight(ctx, y, x, w.storage()); }) == expected);
    }
  }
}

TEST_CASE("matmul: a realistic shape gives the same bits again and on any number of threads",
          "[any device]") {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Guarded x(dtype, {256, 384}, random_values(256 * 384, 1));
    Guarded w(dtype, {512, 384}, random_values(512 * 384, 2));
    Guarded first(dtype, {256, 512});
    OpContext one(1, kProductScratch);
    ops::matmul_forward(one, x, w.storage(), first);
    for (const int threads : thread_counts()) {
      OpContext ctx(threads, kProductScratch);
      for (int repeat = 0; repeat < 3; ++repeat) {
        Guarded again(dtype, {256, 512});
        ops::matmul_forward(ctx, x, w.storage(), again);
        CHECK(again.values() == first.values());
      }
    }
  }
}

TEST_CASE("matmul: shapes, dtypes and overlaps that do not fit are refused") {
  OpContext ctx(1, kProductScratch);
  Guarded x(DType::kF32, {2, 3}, Values(6));
  Guarded w(DType::kF32, {4, 3}, Values(12));
  Guarded y(DType::kF32, {2, 4}, Values(8));
  Guarded y_wrong(DType::kF32, {2, 5}, Values(10));
  Guarded y_double(DType::kF64, {2, 4}, Values(8));
  CHECK_THROWS_AS(ops::matmul_forward(ctx, x, w.storage(), y_wrong), ShapeError);
  CHECK_THROWS_AS(ops::matmul_forward(ctx, x, w.storage(), y_double), ShapeError);
  Guarded x_half(DType::kBF16, {2, 3}, Values(6)), y_half(DType::kBF16, {2, 4}, Values(8));
  CHECK_THROWS_AS(ops::matmul_forward(ctx, x_half, w.storage(), y_half), ShapeError);
  Guarded dw_half(DType::kBF16, {4, 3}, Values(12));
  CHECK_THROWS_AS(ops::matmul_backward_weight(ctx, y_half, x_half, dw_half.storage()), ShapeError);
  Guarded square(DType::kF32, {3, 3}, Values(9));
  CHECK_THROWS_AS(ops::matmul_forward(ctx, square, square.storage(), square), ShapeError);
  CHECK_NOTHROW(ops::matmul_forward(ctx, x, w.storage(), y));
}

}  // namespace pecan::test
