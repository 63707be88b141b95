#include <list>
#include <numeric>

#include <pecan/ops/grouped_matmul.hpp>
#include <pecan/ops/matmul.hpp>

#include "ops/reference.hpp"
#include "ops/weight.hpp"

namespace pecan::test {
namespace {

using ops::Accumulate;
using Counts = std::vector<std::int64_t>;

struct Case {
  Counts counts;
  std::int64_t outputs, inputs;
};

/// Weights of all groups, whose memory stays where it is.
class Weights {
 public:
  Weights(
      DType dtype, std::size_t groups, const Shape& shape, std::int64_t panel, std::uint64_t seed) {
    for (std::size_t e = 0; e < groups; ++e) {
      values_.push_back(stored(dtype, random_values(shape.num_elements(), seed + e)));
      weights_.emplace_back(dtype, shape, panel, values_.back());
      storages_.push_back(weights_.back().storage());
    }
  }
  [[nodiscard]] std::span<ops::ParamStorage> storages() { return storages_; }
  [[nodiscard]] const Values& original(std::size_t e) const { return values_[e]; }
  [[nodiscard]] Values values(std::size_t e) {
    return std::next(weights_.begin(), std::ptrdiff_t(e))->values();
  }

 private:
  std::vector<Values> values_;
  std::list<Weight> weights_;
  std::vector<ops::ParamStorage> storages_;
};

/// Everything that the three products make of one case.
struct Results {
  Values y, dx, dx_added;
  std::vector<Values> dw;
  bool operator==(const Results&) const = default;
};

class Problem {
 public:
  Problem(DType dtype, const Case& of, std::int64_t panel)
      : dtype_(dtype),
        case_(of),
        panel_(panel),
        rows_(std::accumulate(of.counts.begin(), of.counts.end(), std::int64_t{0})),
        x_(dtype, {rows_, of.inputs}, stored(dtype, random_values(rows_ * of.inputs, 1))),
        dy_(dtype, {rows_, of.outputs}, stored(dtype, random_values(rows_ * of.outputs, 2))),
        old_dx_(stored(dtype, random_values(rows_ * of.inputs, 3))),
        w_(dtype, of.counts.size(), {of.outputs, of.inputs}, panel, 10) {}

  /// By grouped products, or by one product a group.
  template <bool kGrouped>
  Results run(int threads) {
    OpContext ctx(threads, kProductScratch);
    Weights dw = gradients();
    Guarded y(dtype_, {rows_, case_.outputs}), dx(dtype_, {rows_, case_.inputs});
    Guarded dx_added(dtype_, {rows_, case_.inputs}, old_dx_);
    if constexpr (kGrouped) {
      ops::grouped_matmul_forward(ctx, case_.counts, x_, w_.storages(), y);
      ops::grouped_matmul_backward_input(
          ctx, case_.counts, dy_, w_.storages(), dx, Accumulate::kOverwrite);
      ops::grouped_matmul_backward_input(
          ctx, case_.counts, dy_, w_.storages(), dx_added, Accumulate::kAdd);
      ops::grouped_matmul_backward_weight(ctx, case_.counts, dy_, x_, dw.storages());
    } else {
      for_each_group([&](std::size_t e, std::int64_t first, std::int64_t count) {
        const TensorView x = x_.view().rows(first, count), out = dy_.view().rows(first, count);
        const ops::ParamStorage& w = w_.storages()[e];
        ops::matmul_forward(ctx, x, w, y.view().rows(first, count));
        ops::matmul_backward_input(
            ctx, out, w, dx.view().rows(first, count), Accumulate::kOverwrite);
        ops::matmul_backward_input(
            ctx, out, w, dx_added.view().rows(first, count), Accumulate::kAdd);
        ops::matmul_backward_weight(ctx, out, x, dw.storages()[e]);
      });
    }
    Results results{y.values(), dx.values(), dx_added.values(), {}};
    for (std::size_t e = 0; e < case_.counts.size(); ++e) results.dw.push_back(dw.values(e));
    return results;
  }

  /// In double, in the order of the formulas.
  void check_reference(const Results& results) {
    const auto I = std::size_t(case_.inputs), O = std::size_t(case_.outputs);
    const Values x = x_.values(), dy = dy_.values();
    Values y, dx;
    Weights old_dw = gradients();
    for_each_group([&](std::size_t e, std::int64_t first, std::int64_t count) {
      const Values& w = w_.original(e);
      const auto F = std::size_t(first), T = std::size_t(count);
      const auto x_at = [&](auto t, auto i) { return x[(F + t) * I + i]; };
      const auto dy_at = [&](auto t, auto o) { return dy[(F + t) * O + o]; };
      const Values group_y =
          reference::product(T, O, I, x_at, [&](auto i, auto o) { return w[o * I + i]; });
      y.insert(y.end(), group_y.begin(), group_y.end());
      const Values group_dx =
          reference::product(T, I, O, dy_at, [&](auto o, auto i) { return w[o * I + i]; });
      dx.insert(dx.end(), group_dx.begin(), group_dx.end());
      Values dw = reference::product(
          O, I, T, [&](auto o, auto t) { return dy_at(t, o); }, x_at);
      for (std::size_t i = 0; i < dw.size(); ++i) dw[i] += old_dw.original(e)[i];
      check_close(results.dw[e], dw, tolerance(master_of(dtype_), count + 1));
    });
    check_close(results.y, y, tolerance(dtype_, case_.inputs));
    check_close(results.dx, dx, tolerance(dtype_, case_.outputs));
    for (std::size_t i = 0; i < dx.size(); ++i) dx[i] += old_dx_[i];
    check_close(results.dx_added, dx, tolerance(dtype_, case_.outputs + 1));
  }

 private:
  [[nodiscard]] Weights gradients() const {
    return {master_of(dtype_), case_.counts.size(), {case_.outputs, case_.inputs}, panel_, 50};
  }
  template <typename Body>
  void for_each_group(const Body& body) const {
    std::int64_t first = 0;
    for (std::size_t e = 0; e < case_.counts.size(); first += case_.counts[e++])
      body(e, first, case_.counts[e]);
  }

  DType dtype_;
  const Case& case_;
  std::int64_t panel_, rows_;
  Guarded x_, dy_;
  Values old_dx_;
  Weights w_;
};

const Case kCases[] = {
    {{}, 3, 5},
    {{0, 0}, 3, 5},
    {{1}, 1, 1},
    {{0, 1, 0, 13, 2}, 7, 9},
    {{1, 1, 1, 1, 1, 1, 1, 1}, 33, 31},
    {{300, 0, 0, 1}, 48, 64},
    {{0, 0, 530}, 64, 32},
    {{17, 64, 33, 0, 5}, 160, 96},
    {{7, 61, 16, 40, 3, 67, 1, 12}, 192, 64},
    {{4, 3}, 0, 6},
    {{4, 3}, 6, 0},
};

}  // namespace

TEST_CASE("grouped_matmul: products and gradients of all groups agree with the reference",
          "[any device]") {
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    for (const Case& of : kCases) {
      for (const std::int64_t panel : {0, 16}) {
        // A panel's product is rounded before the next one is added.
        if (dtype == DType::kBF16 && panel > 0) continue;
        INFO(name_of(dtype) << ", O " << of.outputs << " I " << of.inputs << ", groups "
                            << of.counts.size() << ", panel " << panel);
        Problem problem(dtype, of, panel);
        const Results one = problem.run<true>(1);
        problem.check_reference(one);
        CHECK(problem.run<true>(1) == one);
        CHECK(problem.run<true>(2) == one);
        CHECK(problem.run<true>(3) == one);
        CHECK(problem.run<false>(2) == one);
      }
    }
  }
}

TEST_CASE("grouped_matmul: a weight gradient without memory is left out", "[any device]") {
  OpContext ctx(1, kProductScratch);
  const Counts counts{2, 3, 1};
  Guarded x(DType::kF32, {6, 4}, random_values(24, 1)),
      dy(DType::kF32, {6, 5}, random_values(30, 2));
  Weights all(DType::kF32, 3, {5, 4}, 0, 7), some(DType::kF32, 3, {5, 4}, 0, 7);
  ops::grouped_matmul_backward_weight(ctx, counts, dy, x, all.storages());
  some.storages()[1] = {};
  ops::grouped_matmul_backward_weight(ctx, counts, dy, x, some.storages());
  CHECK(some.values(0) == all.values(0));
  CHECK(some.values(1) == some.original(1));
  CHECK(some.values(2) == all.values(2));
}

TEST_CASE("grouped_matmul: the plan of products is enough, and the background is given a moment") {
  device::Stream stream(device::cpu());
  device::Arena measured;
  Context plan{device::cpu(), stream, measured, 2};
  ops::plan_matmul(plan, DType::kF32);
  OpContext ctx(2, measured.high_water());
  CountingBackground background;
  ctx.set_background(&background);
  const Counts counts{1, 2};
  Guarded x(DType::kF32, {3, 4}, Values(12)), y(DType::kF32, {3, 5});
  Weights w(DType::kF32, 2, {5, 4}, 0, 1);
  ops::grouped_matmul_forward(ctx, counts, x, w.storages(), y);
  CHECK(background.count == 1);
  CHECK(ctx.workspace().used() == 0);
  CHECK(ctx.workspace().high_water() == measured.high_water());
}

TEST_CASE("grouped_matmul: counts, shapes and overlaps that do not fit are refused") {
  OpContext ctx(1, kProductScratch);
  Guarded x(DType::kF32, {3, 4}, Values(12)), y(DType::kF32, {3, 5}, Values(15));
  Weights w(DType::kF32, 2, {5, 4}, 0, 1), wide(DType::kF32, 2, {5, 6}, 0, 1);
  Weights w_bf16(DType::kBF16, 2, {5, 4}, 0, 1);
  const auto forward = [&](const Counts& counts, Weights& weights) {
    ops::grouped_matmul_forward(ctx, counts, x, weights.storages(), y);
  };
  CHECK_NOTHROW(forward({1, 2}, w));
  CHECK_THROWS_AS(forward({1, 1}, w), ShapeError);
  CHECK_THROWS_AS(forward({4, -1}, w), ShapeError);
  CHECK_THROWS_AS(forward({1, 1, 1}, w), ShapeError);
  CHECK_THROWS_AS(forward({1, 2}, wide), ShapeError);
  CHECK_THROWS_AS(forward({1, 2}, w_bf16), ShapeError);
  CHECK_THROWS_AS(ops::grouped_matmul_backward_weight(ctx, Counts{1, 2}, y, x, w_bf16.storages()),
                  ShapeError);
  w.storages()[1] = {};
  CHECK_THROWS_AS(forward({1, 2}, w), ShapeError);
  Weights square(DType::kF32, 2, {4, 4}, 0, 1);
  CHECK_THROWS_AS(ops::grouped_matmul_forward(ctx, Counts{1, 2}, x, square.storages(), x),
                  ShapeError);
}

}  // namespace pecan::test
