#include <algorithm>

#include <pecan/ops/default_vectors.hpp>
#include <pecan/ops/permute.hpp>

#include "ops/op_test.hpp"

namespace pecan::test {
namespace {

using ops::Accumulate;

/// Choices of K different experts for each token, the first of every third token dropped.
Values some_ids(std::int64_t tokens, std::int64_t k, std::int64_t num_experts) {
  Values ids;
  const Values draws = random_values(tokens, 21);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto first =
        std::int64_t((draws[std::size_t(t)] + 1) / 2 * double(num_experts)) % num_experts;
    for (std::int64_t i = 0; i < k; ++i)
      ids.push_back(i == 0 && t % 3 == 1 ? -1 : double((first + 2 * i) % num_experts));
  }
  return ids;
}

bool is_own(const Values& ids, std::int64_t k, std::int64_t token, std::int64_t expert) {
  const auto first = ids.begin() + token * k;
  return std::find(first, first + k, double(expert)) != first + k;
}

Values softmax_rows(const Values& logits, std::int64_t width) {
  Values probs;
  for (std::size_t first = 0; first < logits.size(); first += std::size_t(width)) {
    double sum = 0;
    for (std::size_t e = 0; e < std::size_t(width); ++e) sum += std::exp(logits[first + e]);
    for (std::size_t e = 0; e < std::size_t(width); ++e)
      probs.push_back(std::exp(logits[first + e]) / sum);
  }
  return probs;
}

Values reference_weights(double scale,
                         const Values& probs,
                         const Values& ids,
                         std::int64_t k,
                         std::int64_t num_experts) {
  Values weights;
  for (std::size_t i = 0; i < probs.size(); ++i) {
    const std::int64_t token = std::int64_t(i) / num_experts,
                       expert = std::int64_t(i) % num_experts;
    weights.push_back(is_own(ids, k, token, expert) ? 0 : scale * probs[i]);
  }
  return weights;
}

/// What the gradient of weights, through the softmax over all experts, adds to `before`.
Values reference_dlogits(double scale,
                         const Values& probs,
                         const Values& ids,
                         std::int64_t k,
                         std::int64_t num_experts,
                         const Values& dweights,
                         const Values& before) {
  // A weight is its probability times the scale or 0, so its gradient takes the same way back.
  const Values dprobs = reference_weights(scale, dweights, ids, k, num_experts);
  Values dlogits = before;
  for (std::size_t first = 0; first < probs.size(); first += std::size_t(num_experts)) {
    for (std::size_t i = 0; i < std::size_t(num_experts); ++i) {
      for (std::size_t j = 0; j < std::size_t(num_experts); ++j)
        dlogits[first + i] +=
            dprobs[first + j] * probs[first + j] * ((i == j ? 1 : 0) - probs[first + i]);
    }
  }
  return dlogits;
}

struct Sizes {
  std::int64_t tokens, k, num_experts, width;
};
// The last one has enough elements for threads in every operator.
constexpr Sizes kSizes[] = {{0, 2, 4, 3},
                            {1, 1, 3, 1},
                            {7, 2, 5, 63},
                            {40, 3, 7, 64},
                            {33, 2, 8, 65},
                            {130, 2, 16, 200},
                            {129, 2, 256, 129}};

}  // namespace

TEST_CASE("default vectors: weights of experts that a token was not sent to, and their gradient",
          "[any device]") {
  constexpr double kScale = 1.5;
  for (const auto& [tokens, k, num_experts, width] : kSizes) {
    const Shape scores{tokens, num_experts};
    const Values ids = some_ids(tokens, k, num_experts);
    Values logits = random_values(tokens * num_experts, 1);
    const Values probs = softmax_rows(logits, num_experts);
    const Values dweights = random_values(tokens * num_experts, 2);
    const Values before = random_values(tokens * num_experts, 3);
    for_each_kind([&](DType dtype, int threads) {
      OpContext ctx(threads);
      Guarded probs_tensor(dtype, scores, probs), ids_tensor(DType::kI32, {tokens, k}, ids);
      Guarded weights(dtype, scores), dlogits(dtype, scores, before);
      ops::default_weights_forward(ctx, kScale, probs_tensor, ids_tensor, weights);
      check_close(weights.values(),
                  reference_weights(kScale, stored(dtype, probs), ids, k, num_experts),
                  tolerance(dtype));
      ops::default_weights_backward(
          ctx, kScale, probs_tensor, ids_tensor, Guarded(dtype, scores, dweights), dlogits);
      const Values expected =
          reference_dlogits(kScale, stored(dtype, probs), ids, k, num_experts, dweights, before);
      check_close(dlogits.values(), expected, tolerance(dtype, num_experts));
      if (dtype != DType::kF64 || tokens == 0 || tokens > 40) return;
      Values gradient = dlogits.values();
      for (std::size_t i = 0; i < gradient.size(); ++i) gradient[i] -= before[i];
      check_gradient(logits, gradient, [&] {
        const Values moved = softmax_rows(logits, num_experts);
        return dot(reference_weights(kScale, moved, ids, k, num_experts), dweights);
      });
    });
  }
}

TEST_CASE("default vectors: sums of outputs by expert, and the moving average", "[any device]") {
  for (const auto& [tokens, k, num_experts, width] : kSizes) {
    const Values ids = some_ids(tokens, k, num_experts);
    const Values weights = random_values(tokens * k, 5);
    const std::int64_t sent = std::ranges::count_if(ids, [](double id) { return id >= 0; });
    for_each_storage_kind([&](DType dtype, int threads) {
      const DType master = master_of(dtype);
      OpContext ctx(threads);
      Guarded ids_tensor(DType::kI32, {tokens, k}, ids), counts(DType::kI64, {num_experts});
      Guarded order(DType::kI32, {tokens * k}), positions(DType::kI32, {tokens, k});
      ops::permute_plan(ctx, ids_tensor, counts, order, positions);
      const Values rows = stored(dtype, random_values(sent * width, 6));
      const Values held = stored(master, random_values(num_experts * (width + 1), 7));
      Values expected(held.size(), 0);
      for (std::size_t row = 0; row < std::size_t(sent); ++row) {
        const std::size_t slot = std::size_t(order.values()[row]);
        const std::size_t to = std::size_t(ids[slot]) * std::size_t(width + 1);
        const double weight = stored(master, weights)[slot];
        for (std::size_t h = 0; h < std::size_t(width); ++h)
          expected[to + h] += weight * rows[row * std::size_t(width) + h];
        expected[to + std::size_t(width)] += weight;
      }
      Guarded rows_tensor(dtype, {sent, width}, rows);
      Guarded weights_tensor(master, {tokens, k}, weights);
      Guarded sums(master, {num_experts, width + 1}), added(master, {num_experts, width + 1}, held);
      ops::expert_output_sums(
          ctx, rows_tensor, order, ids_tensor, weights_tensor, sums, Accumulate::kOverwrite);
      ops::expert_output_sums(
          ctx, rows_tensor, order, ids_tensor, weights_tensor, added, Accumulate::kAdd);
      check_close(sums.values(), expected, tolerance(master, std::max<std::int64_t>(1, sent)));
      for (std::size_t i = 0; i < held.size(); ++i) expected[i] += held[i];
      check_close(added.values(), expected, tolerance(master, std::max<std::int64_t>(1, sent)));

      const Values vectors = stored(master, random_values(num_experts * width, 8));
      Values moved = vectors;
      const Values means = sums.values();
      for (std::size_t e = 0; e < std::size_t(num_experts); ++e) {
        const double total = means[e * std::size_t(width + 1) + std::size_t(width)];
        for (std::size_t h = 0; h < std::size_t(width) && total != 0; ++h) {
          double& value = moved[e * std::size_t(width) + h];
          value = 0.75 * value + 0.25 * means[e * std::size_t(width + 1) + h] / total;
        }
      }
      Guarded vectors_tensor(master, {num_experts, width}, vectors);
      ops::default_vectors_update(ctx, 0.75, sums, vectors_tensor);
      check_close(vectors_tensor.values(), moved, tolerance(master, 4));
      // Experts without tokens keep every bit.
      const Values number = counts.values();
      for (std::size_t e = 0; e < std::size_t(num_experts); ++e) {
        const auto row = [&](const Values& all) {
          const auto first = all.begin() + std::ptrdiff_t(e) * width;
          return Values(first, first + width);
        };
        if (number[e] == 0) CHECK(row(vectors_tensor.values()) == row(vectors));
      }
    });
  }
}

TEST_CASE("default vectors: what does not fit is refused") {
  OpContext ctx;
  Guarded probs(DType::kF32, {1, 3}, {0.5, 0.25, 0.25}), weights(DType::kF32, {1, 3});
  CHECK_THROWS_AS(
      ops::default_weights_forward(ctx, 1, probs, Guarded(DType::kI32, {1, 1}, {3}), weights),
      ShapeError);
  Guarded rows(DType::kF32, {2, 1}, {1, 2}), sums(DType::kF32, {3, 2});
  Guarded slot_weights(DType::kF32, {1, 2}, {1, 1});
  const auto sum = [&](const Values& order, const Values& ids) {
    ops::expert_output_sums(ctx,
                            rows,
                            Guarded(DType::kI32, {2}, order),
                            Guarded(DType::kI32, {1, 2}, ids),
                            slot_weights,
                            sums,
                            Accumulate::kOverwrite);
  };
  sum({1, 0}, {2, 1});
  CHECK_THROWS_AS(sum({0, 1}, {2, 1}), ShapeError);   // not sorted by expert
  CHECK_THROWS_AS(sum({0, 1}, {-1, 1}), ShapeError);  // a row of a dropped slot
  CHECK_THROWS_AS(sum({0, 2}, {1, 2}), ShapeError);
  Guarded vectors(DType::kF32, {3, 1}, {0, 0, 0});
  CHECK_THROWS_AS(ops::default_vectors_update(ctx, 1, sums, vectors), ShapeError);
}

}  // namespace pecan::test
