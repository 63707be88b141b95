#include <numeric>
#include <set>

#include <pecan/ops/router.hpp>

#include "ops/op_test.hpp"
#include "ops/reference.hpp"

namespace pecan::test {
namespace {

using ops::RouterOptions;
using ops::RouterOrder;

struct Routing {
  std::vector<std::vector<std::size_t>> ids;  ///< of each token
  Values weights;
  Values probs;
};

/// Sorts all experts of each token by (logit descending, index).
Routing reference_routing(const RouterOptions& options,
                          const Values& logits,
                          std::size_t num_experts,
                          std::size_t k) {
  Routing routing;
  for (std::size_t t = 0; t < logits.size() / num_experts; ++t) {
    const double* row = logits.data() + t * num_experts;
    std::vector<std::size_t> order(num_experts);
    std::iota(order.begin(), order.end(), 0U);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return row[a] > row[b]; });
    order.resize(k);
    const Values p = reference::softmax(row, num_experts);
    Values chosen;
    for (const std::size_t e : order) chosen.push_back(row[e]);
    const Values renormalised = reference::softmax(chosen.data(), k);
    for (std::size_t i = 0; i < k; ++i) {
      const double weight =
          options.order == RouterOrder::kTopkThenSoftmax ? renormalised[i] : p[order[i]];
      routing.weights.push_back(options.scaling_factor * weight);
    }
    routing.probs.insert(routing.probs.end(), p.begin(), p.end());
    routing.ids.push_back(order);
  }
  return routing;
}

ops::RouterLosses reference_losses(const Routing& routing,
                                   const Values& logits,
                                   std::size_t num_experts,
                                   std::size_t k) {
  const std::size_t tokens = routing.ids.size();
  Values counts(num_experts), prob_sums(num_experts);
  ops::RouterLosses losses;
  for (std::size_t t = 0; t < tokens; ++t) {
    for (const std::size_t e : routing.ids[t]) counts[e] += 1;
    double sum = 0;
    for (std::size_t e = 0; e < num_experts; ++e) {
      prob_sums[e] += routing.probs[t * num_experts + e];
      sum += std::exp(logits[t * num_experts + e]);
    }
    losses.z += std::log(sum) * std::log(sum) / double(tokens);
  }
  losses.aux =
      double(num_experts) / (double(k) * double(tokens) * double(tokens)) * dot(counts, prob_sums);
  return losses;
}

struct Routed {
  Guarded logits, ids, weights, probs, counts;
  Routed(DType dtype,
         std::int64_t tokens,
         std::int64_t num_experts,
         std::int64_t k,
         const Values& values)
      : logits(dtype, {tokens, num_experts}, values),
        ids(DType::kI32, {tokens, k}),
        weights(dtype, {tokens, k}),
        probs(dtype, {tokens, num_experts}),
        counts(DType::kI64, {num_experts}) {}
};

}  // namespace

TEST_CASE("router: choices, weights and losses agree with the reference in both orders") {
  const std::int64_t shapes[][3] = {{1, 1, 1}, {7, 4, 2}, {65, 8, 8}, {63, 17, 3}, {300, 64, 6}};
  for_each_kind([&](DType dtype, int threads) {
    CpuContext ctx(threads);
    for (const auto& [tokens, num_experts, k] : shapes) {
      for (const RouterOrder order :
           {RouterOrder::kTopkThenSoftmax, RouterOrder::kSoftmaxThenTopk}) {
        INFO("T " << tokens << " E " << num_experts << " K " << k << ", order " << int(order));
        const RouterOptions options{order, 1.5};
        Values logits = random_values(tokens * num_experts, 1);
        for (double& logit : logits) logit *= 3;
        const Routing exact =
            reference_routing(options, logits, std::size_t(num_experts), std::size_t(k));
        Routed routed(dtype, tokens, num_experts, k, logits);
        ops::router_forward(ctx, options, routed.logits, routed.ids, routed.weights, routed.probs);
        Values ids;
        for (const auto& token : exact.ids) ids.insert(ids.end(), token.begin(), token.end());
        CHECK(routed.ids.values() == ids);
        check_close(routed.weights.values(), exact.weights, tolerance(dtype, 4));
        check_close(routed.probs.values(), exact.probs, tolerance(dtype, 4));
        const ops::RouterLosses losses =
            ops::router_losses(ctx, routed.logits, routed.probs, routed.ids, routed.counts);
        const ops::RouterLosses expected =
            reference_losses(exact, logits, std::size_t(num_experts), std::size_t(k));
        const double epsilon = dtype == DType::kF32 ? 1e-6 : 1e-13;
        CHECK(losses.aux == Approx(expected.aux).epsilon(epsilon));
        CHECK(losses.z == Approx(expected.z).epsilon(epsilon));
        const Values counts = routed.counts.values();
        CHECK(std::accumulate(counts.begin(), counts.end(), 0.0) == double(tokens * k));
      }
    }
  });
}

TEST_CASE("router: the gradient agrees with central differences through weights and both losses") {
  CpuContext ctx;
  constexpr std::int64_t kTokens = 5, kExperts = 6, kChoices = 3;
  constexpr double kAux = 0.7, kZ = 0.3;
  Values logits = random_values(kTokens * kExperts, 2);
  const Values dweights = random_values(kTokens * kChoices, 3);
  for (const RouterOrder order : {RouterOrder::kTopkThenSoftmax, RouterOrder::kSoftmaxThenTopk}) {
    const RouterOptions options{order, 2.5};
    Routed routed(DType::kF64, kTokens, kExperts, kChoices, logits);
    ops::router_forward(ctx, options, routed.logits, routed.ids, routed.weights, routed.probs);
    static_cast<void>(
        ops::router_losses(ctx, routed.logits, routed.probs, routed.ids, routed.counts));
    Guarded dlogits(DType::kF64, {kTokens, kExperts});
    ops::router_backward(ctx,
                         options,
                         routed.logits,
                         routed.probs,
                         routed.ids,
                         routed.weights,
                         Guarded(DType::kF64, {kTokens, kChoices}, dweights),
                         routed.counts,
                         kAux,
                         kZ,
                         dlogits);
    check_gradient(logits, dlogits.values(), [&] {
      const Routing now = reference_routing(options, logits, kExperts, kChoices);
      const ops::RouterLosses losses = reference_losses(now, logits, kExperts, kChoices);
      return dot(now.weights, dweights) + kAux * losses.aux + kZ * losses.z;
    });
    for_each_kind([&](DType dtype, int threads) {
      CpuContext other(threads);
      Routed again(dtype, kTokens, kExperts, kChoices, logits);
      ops::router_forward(other, options, again.logits, again.ids, again.weights, again.probs);
      static_cast<void>(
          ops::router_losses(other, again.logits, again.probs, again.ids, again.counts));
      Guarded gradient(dtype, {kTokens, kExperts});
      ops::router_backward(other,
                           options,
                           again.logits,
                           again.probs,
                           again.ids,
                           again.weights,
                           Guarded(dtype, {kTokens, kChoices}, dweights),
                           again.counts,
                           kAux,
                           kZ,
                           gradient);
      check_close(gradient.values(), dlogits.values(), tolerance(dtype, 16));
    });
  }
}

TEST_CASE("router: equal logits go to the lower index, balance gives an aux loss of 1") {
  CpuContext ctx;
  Routed equal(DType::kF32, 4, 4, 2, Values(16, 0.5));
  ops::router_forward(ctx, {}, equal.logits, equal.ids, equal.weights, equal.probs);
  CHECK(equal.ids.values() == Values{0, 1, 0, 1, 0, 1, 0, 1});
  CHECK(equal.weights.values() == Values(8, 0.5));
  // Each expert chosen once, probabilities symmetric: perfectly balanced.
  Routed balanced(DType::kF64, 4, 4, 1, {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1});
  ops::router_forward(ctx, {}, balanced.logits, balanced.ids, balanced.weights, balanced.probs);
  const ops::RouterLosses losses =
      ops::router_losses(ctx, balanced.logits, balanced.probs, balanced.ids, balanced.counts);
  CHECK(losses.aux == Approx(1.0).epsilon(1e-14));
  CHECK(balanced.counts.values() == Values(4, 1.0));
}

TEST_CASE("router: no tokens and NaN logits") {
  CpuContext ctx;
  Routed none(DType::kF32, 0, 4, 2, {});
  ops::router_forward(ctx, {}, none.logits, none.ids, none.weights, none.probs);
  const ops::RouterLosses losses =
      ops::router_losses(ctx, none.logits, none.probs, none.ids, none.counts);
  CHECK(losses.aux == 0);
  CHECK(losses.z == 0);
  CHECK(none.counts.values() == Values(4, 0.0));
  for (const double logit : {std::nan(""), -double(INFINITY)}) {
    Routed bad(DType::kF32, 1, 5, 3, Values(5, logit));
    ops::router_forward(ctx, {}, bad.logits, bad.ids, bad.weights, bad.probs);
    const Values ids = bad.ids.values();
    CHECK(std::set<double>(ids.begin(), ids.end()).size() == 3);
    for (const double id : ids) CHECK((id >= 0 && id < 5));
    CHECK(std::isnan(bad.weights.values()[0]));
  }
}

TEST_CASE("router: more choices than experts are refused") {
  CpuContext ctx;
  Routed wrong(DType::kF32, 2, 3, 4, Values(6));
  CHECK_THROWS_AS(ops::router_forward(ctx, {}, wrong.logits, wrong.ids, wrong.weights, wrong.probs),
                  ShapeError);
}

}  // namespace pecan::test
