#include <algorithm>
#include <numeric>

#include <pecan/ops/permute.hpp>

#include "ops/op_test.hpp"

namespace pecan::test {
namespace {

using ops::Accumulate;

struct Plan {
  Guarded ids, counts, order, positions;
  Plan(Context& ctx,
       std::int64_t tokens,
       std::int64_t k,
       std::int64_t num_experts,
       const Values& chosen)
      : ids(DType::kI32, {tokens, k}, chosen),
        counts(DType::kI64, {num_experts}),
        order(DType::kI32, {tokens * k}),
        positions(DType::kI32, {tokens, k}) {
    ops::permute_plan(ctx, ids, counts, order, positions);
  }
};

/// Every `drop_every`-th slot, 0: none, is dropped.
Values random_ids(std::int64_t tokens,
                  std::int64_t k,
                  std::int64_t num_experts,
                  std::size_t drop_every) {
  Values ids = random_values(tokens * k, 11);
  for (double& id : ids) id = std::floor((id + 1) / 2 * double(num_experts));
  for (std::size_t s = 0; drop_every > 0 && s < ids.size(); s += drop_every) ids[s] = -1;
  return ids;
}

std::int64_t num_kept(const Values& ids) {
  return std::count_if(ids.begin(), ids.end(), [](double id) { return id >= 0; });
}

constexpr std::size_t kDrops[] = {0, 3, 1};

constexpr std::int64_t kShapes[][4] = {{0, 2, 4, 3},
                                       {1, 1, 1, 1},
                                       {7, 2, 4, 5},
                                       {65, 3, 2, 63},
                                       {129, 2, 16, 129},
                                       {40, 2, 300, 8},
                                       {500, 2, 700, 3}};

}  // namespace

TEST_CASE("permute_plan: slots stand by expert, then by slot", "[any device]") {
  OpContext ctx;
  for (const auto& [tokens, k, num_experts, width] : kShapes) {
    static_cast<void>(width);
    for (const std::size_t drop_every : kDrops) {
      const Values ids = random_ids(tokens, k, num_experts, drop_every);
      Plan plan(ctx, tokens, k, num_experts, ids);
      const auto rank_of = [&](double slot) {
        const double id = ids[std::size_t(slot)];
        return id < 0 ? double(num_experts) : id;
      };
      Values order(ids.size());
      std::iota(order.begin(), order.end(), 0.0);
      std::stable_sort(
          order.begin(), order.end(), [&](double a, double b) { return rank_of(a) < rank_of(b); });
      CHECK(plan.order.values() == order);
      const Values positions = plan.positions.values();
      for (std::size_t p = 0; p < order.size(); ++p) {
        const bool kept = ids[std::size_t(order[p])] >= 0;
        CHECK(positions[std::size_t(order[p])] == (kept ? double(p) : -1));
      }
      Values counts(static_cast<std::size_t>(num_experts));
      for (const double id : ids) {
        if (id >= 0) counts[std::size_t(id)] += 1;
      }
      CHECK(plan.counts.values() == counts);
    }
  }
}

TEST_CASE("permute: gathers, weighted sums and their gradients agree with the formulas",
          "[any device]") {
  for_each_storage_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    for (const auto& [tokens, k, num_experts, width] : kShapes) {
      for (const std::size_t drop_every : kDrops) {
        INFO("T " << tokens << " K " << k << " E " << num_experts << " H " << width
                  << ", dropped 1/" << drop_every);
        const auto T = std::size_t(tokens), K = std::size_t(k), H = std::size_t(width);
        const Values ids = random_ids(tokens, k, num_experts, drop_every);
        const std::int64_t num_rows = num_kept(ids);
        Plan plan(ctx, tokens, k, num_experts, ids);
        const Values positions = plan.positions.values();
        const auto row_of = [&](std::size_t t, std::size_t i) {
          return std::size_t(positions[t * K + i]) * H;
        };
        const Values x = stored(dtype, random_values(tokens * width, 1));
        const Values rows = stored(dtype, random_values(num_rows * width, 2));
        const Values weights = random_values(tokens * k, 3);
        const Values dy = stored(dtype, random_values(tokens * width, 4));
        Values gathered(rows.size()), sums(x.size()), combined(x.size()), drows(rows.size()),
            dweights(weights.size());
        for (std::size_t t = 0; t < T; ++t) {
          for (std::size_t i = 0; i < K; ++i) {
            if (ids[t * K + i] < 0) continue;
            for (std::size_t h = 0; h < H; ++h) {
              gathered[row_of(t, i) + h] = x[t * H + h];
              sums[t * H + h] += rows[row_of(t, i) + h];
              combined[t * H + h] += weights[t * K + i] * rows[row_of(t, i) + h];
              drows[row_of(t, i) + h] = weights[t * K + i] * dy[t * H + h];
              dweights[t * K + i] += dy[t * H + h] * rows[row_of(t, i) + h];
            }
          }
        }
        const Shape token_shape{tokens, width}, row_shape{num_rows, width};
        Guarded x_tensor(dtype, token_shape, x), rows_tensor(dtype, row_shape, rows),
            weights_tensor(master_of(dtype), {tokens, k}, weights);
        Guarded dy_tensor(dtype, token_shape, dy);

        Guarded gathered_tensor(dtype, row_shape);
        ops::permute_forward(ctx, x_tensor, plan.order, gathered_tensor);
        CHECK(gathered_tensor.values() == gathered);
        Guarded combined_tensor(dtype, token_shape);
        ops::unpermute_forward(ctx,
                               rows_tensor,
                               plan.positions,
                               weights_tensor,
                               combined_tensor,
                               Accumulate::kOverwrite);
        check_close(combined_tensor.values(), combined, tolerance(dtype, k));
        Guarded sums_tensor(dtype, token_shape);
        ops::permute_backward(
            ctx, rows_tensor, plan.positions, sums_tensor, Accumulate::kOverwrite);
        check_close(sums_tensor.values(), sums, tolerance(dtype, k));

        Guarded added(dtype, token_shape, x);
        ops::permute_backward(ctx, rows_tensor, plan.positions, added, Accumulate::kAdd);
        ops::unpermute_forward(
            ctx, rows_tensor, plan.positions, weights_tensor, added, Accumulate::kAdd);
        for (std::size_t i = 0; i < x.size(); ++i) sums[i] += x[i] + combined[i];
        Tolerance twice = tolerance(dtype, 2 * k + 1);
        // bf16 rounds after each of the two, and what they leave may be smaller than what they add.
        if (dtype == DType::kBF16) twice = {8 * twice.nmse, 2 * twice.max_error};
        check_close(added.values(), sums, twice);

        Guarded drows_tensor(dtype, row_shape), dweights_tensor(master_of(dtype), {tokens, k});
        ops::unpermute_backward(ctx,
                                dy_tensor,
                                rows_tensor,
                                plan.positions,
                                weights_tensor,
                                drows_tensor,
                                dweights_tensor);
        check_close(drows_tensor.values(), drows, tolerance(dtype));
        check_close(dweights_tensor.values(), dweights, tolerance(master_of(dtype), width));
        ops::unpermute_backward(ctx,
                                dy_tensor,
                                rows_tensor,
                                plan.positions,
                                weights_tensor,
                                rows_tensor,
                                dweights_tensor);
        CHECK(rows_tensor.values() == drows_tensor.values());
        check_close(dweights_tensor.values(), dweights, tolerance(master_of(dtype), width));
      }
    }
  });
}

TEST_CASE("permute: gradients agree with central differences of gather, scale and combine",
          "[any device]") {
  OpContext ctx;
  constexpr std::int64_t kTokens = 4, kChoices = 2, kWidth = 3;
  const Values ids = random_ids(kTokens, kChoices, 3, 3);
  const Shape row_shape{num_kept(ids), kWidth};
  Plan plan(ctx, kTokens, kChoices, 3, ids);
  Values x = random_values(kTokens * kWidth, 1);
  Values weights = random_values(kTokens * kChoices, 2);
  const Values dy = random_values(kTokens * kWidth, 3);
  Guarded rows(DType::kF64, row_shape), y(DType::kF64, {kTokens, kWidth});
  const auto loss = [&] {
    ops::permute_forward(ctx, Guarded(DType::kF64, {kTokens, kWidth}, x), plan.order, rows);
    ops::unpermute_forward(ctx,
                           rows,
                           plan.positions,
                           Guarded(DType::kF64, {kTokens, kChoices}, weights),
                           y,
                           Accumulate::kOverwrite);
    return dot(y.values(), dy);
  };
  static_cast<void>(loss());
  Guarded drows(DType::kF64, row_shape), dweights(DType::kF64, {kTokens, kChoices}),
      dx(DType::kF64, {kTokens, kWidth});
  ops::unpermute_backward(ctx,
                          Guarded(DType::kF64, {kTokens, kWidth}, dy),
                          rows,
                          plan.positions,
                          Guarded(DType::kF64, {kTokens, kChoices}, weights),
                          drows,
                          dweights);
  ops::permute_backward(ctx, drows, plan.positions, dx, Accumulate::kOverwrite);
  check_gradient(x, dx.values(), loss);
  check_gradient(weights, dweights.values(), loss);
}

TEST_CASE("permute: indices outside their range are refused") {
  OpContext ctx;
  Guarded ids(DType::kI32, {1, 2}, {0, 3}), counts(DType::kI64, {3}), order(DType::kI32, {2}),
      positions(DType::kI32, {1, 2});
  CHECK_THROWS_AS(ops::permute_plan(ctx, ids, counts, order, positions), ShapeError);
  Guarded lower(DType::kI32, {1, 2}, {0, -2});
  CHECK_THROWS_AS(ops::permute_plan(ctx, lower, counts, order, positions), ShapeError);
  Guarded x(DType::kF32, {1, 2}, Values(2)), rows(DType::kF32, {2, 2});
  CHECK_THROWS_AS(ops::permute_forward(ctx, x, Guarded(DType::kI32, {2}, {0, 2}), rows),
                  ShapeError);
}

}  // namespace pecan::test
