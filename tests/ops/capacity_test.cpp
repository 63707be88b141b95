#include <algorithm>

#include <pecan/ops/capacity.hpp>

#include "ops/op_test.hpp"

namespace pecan::test {
namespace {

using ops::DropPolicy;

struct Dropped {
  Values kept_ids;
  Values counts;
  std::int64_t number;
};

Dropped drop(DType dtype,
             DropPolicy policy,
             std::int64_t capacity,
             std::int64_t k,
             std::int64_t num_experts,
             const Values& ids,
             const Values& weights) {
  OpContext ctx;
  const Shape shape{std::int64_t(ids.size()) / k, k};
  Guarded counts(DType::kI64, {num_experts}), kept(DType::kI32, shape);
  const std::int64_t number = ops::drop_over_capacity(ctx,
                                                      policy,
                                                      capacity,
                                                      Guarded(DType::kI32, shape, ids),
                                                      Guarded(dtype, shape, weights),
                                                      counts,
                                                      kept);
  return {kept.values(), counts.values(), number};
}

}  // namespace

TEST_CASE("capacity: an even share times the factor, rounded up") {
  CHECK(ops::expert_capacity(2048, 1, 8, 1.0) == 256);
  CHECK(ops::expert_capacity(2048, 2, 8, 1.25) == 640);
  CHECK(ops::expert_capacity(10, 2, 8, 1.0) == 3);
  CHECK(ops::expert_capacity(10, 2, 8, 0.1) == 1);
  CHECK(ops::expert_capacity(0, 2, 8, 1.0) == 0);
  CHECK_THROWS_AS(ops::expert_capacity(10, 2, 8, 0), ShapeError);
}

TEST_CASE("capacity: the largest weights stay, or the earliest tokens", "[any device]") {
  // Expert 0 is chosen by the tokens 0, 1, 2, 4, expert 1 by 0, 1, 3, 4, expert 2 by 2 and 3.
  const Values ids{0, 1, 1, 0, 2, 0, 2, 1, 0, 1};
  const Values weights{0.3, 0.7, 0.5, 0.5, 0.1, 0.9, 0.4, 0.5, 0.5, 0.5};
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    const Dropped probs = drop(dtype, DropPolicy::kProbs, 2, 2, 3, ids, weights);
    CHECK(probs.kept_ids == Values{-1, 1, 1, 0, 2, 0, 2, -1, -1, -1});
    CHECK(probs.counts == Values{4, 4, 2});
    CHECK(probs.number == 4);
    const Dropped position = drop(dtype, DropPolicy::kPosition, 2, 2, 3, ids, weights);
    CHECK(position.kept_ids == Values{0, 1, 1, 0, 2, -1, 2, -1, -1, -1});
    CHECK(position.counts == probs.counts);
    CHECK(position.number == 4);
  }
}

TEST_CASE("capacity: each expert keeps what the policy ranks first, and no more than fits",
          "[any device]") {
  constexpr std::int64_t kTokens = 200, kChoices = 3, kExperts = 12;
  Values ids, weights = random_values(kTokens * kChoices, 1);
  for (double& weight : weights) weight = std::floor((weight + 1) * 8);  // with many ties
  const Values draws = random_values(kTokens, 2);
  for (const double draw : draws) {
    const double first = std::floor((draw + 1) / 2 * kExperts);
    for (std::int64_t i = 0; i < kChoices; ++i)
      ids.push_back(double((std::int64_t(first * first) + i) % kExperts));
  }
  for (const DropPolicy policy : {DropPolicy::kProbs, DropPolicy::kPosition}) {
    for (const std::int64_t capacity : {0, 1, 40, 50, 600}) {
      const Dropped result = drop(DType::kF64, policy, capacity, kChoices, kExperts, ids, weights);
      std::int64_t number = 0;
      for (std::int64_t e = 0; e < kExperts; ++e) {
        std::vector<std::size_t> slots;
        for (std::size_t s = 0; s < ids.size(); ++s) {
          if (ids[s] == double(e)) slots.push_back(s);
        }
        CHECK(result.counts[std::size_t(e)] == double(slots.size()));
        if (policy == DropPolicy::kProbs) {
          std::stable_sort(
              slots.begin(), slots.end(), [&](auto a, auto b) { return weights[a] > weights[b]; });
        }
        for (std::size_t i = 0; i < slots.size(); ++i) {
          const bool kept = std::int64_t(i) < capacity;
          CHECK(result.kept_ids[slots[i]] == (kept ? double(e) : -1.0));
          number += kept ? 0 : 1;
        }
      }
      CHECK(result.number == number);
    }
  }
}

TEST_CASE("capacity: NaN weights go first, and no tokens are fine", "[any device]") {
  const Dropped nan =
      drop(DType::kF32, DropPolicy::kProbs, 1, 1, 1, {0, 0, 0}, {std::nan(""), 0.0, 0.5});
  CHECK(nan.kept_ids == Values{-1, -1, 0});
  const Dropped all =
      drop(DType::kF32, DropPolicy::kProbs, 1, 1, 1, {0, 0, 0}, Values(3, std::nan("")));
  CHECK(all.kept_ids == Values{0, -1, -1});
  // A weight of zero is a weight.
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    const Dropped zero = drop(dtype, DropPolicy::kProbs, 1, 1, 1, {0, 0}, {std::nan(""), 0.0});
    CHECK(zero.kept_ids == Values{-1, 0});
  }
  CHECK(drop(DType::kF32, DropPolicy::kProbs, 3, 2, 4, {}, {}).number == 0);
}

TEST_CASE("capacity: wrong ids are refused") {
  CHECK_THROWS_AS(drop(DType::kF32, DropPolicy::kProbs, 3, 1, 4, {4}, {1}), ShapeError);
  CHECK_THROWS_AS(drop(DType::kF32, DropPolicy::kProbs, 3, 1, 4, {-1}, {1}), ShapeError);
}

}  // namespace pecan::test
