#include <numeric>
#include <set>

#include <pecan/ops/router.hpp>

#include "ops/op_test.hpp"
#include "ops/reference.hpp"

namespace pecan::test {
namespace {

using ops::BalanceGroups;
using ops::BalanceScales;
using ops::RouterChoice;
using ops::RouterOptions;
using ops::RouterScores;

struct Routing {
  std::vector<std::vector<std::size_t>> ids;       ///< of each token
  std::vector<std::vector<std::size_t>> balanced;  ///< those that the auxiliary loss counts
  Values weights;
  Values probs;
};

/// The indices of the `count` largest values, in descending order, equal ones by lower index.
std::vector<std::size_t> largest(const Values& values, std::size_t count) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), 0U);
  std::stable_sort(
      order.begin(), order.end(), [&](auto a, auto b) { return values[a] > values[b]; });
  order.resize(count);
  return order;
}

/// The choice of one token among `scores`: groups by the sum of their best, then experts in them.
std::vector<std::size_t> chosen_of(const RouterOptions& options, Values scores, std::size_t k) {
  if (options.num_groups > 0) {
    const std::size_t groups = std::size_t(options.num_groups), size = scores.size() / groups;
    Values sums(groups);
    for (std::size_t g = 0; g < groups; ++g) {
      const Values members(scores.begin() + std::ptrdiff_t(g * size),
                           scores.begin() + std::ptrdiff_t((g + 1) * size));
      for (const std::size_t e : largest(members, k / std::size_t(options.group_topk)))
        sums[g] += members[e];
    }
    const auto kept = largest(sums, std::size_t(options.group_topk));
    for (std::size_t e = 0; e < scores.size(); ++e) {
      if (std::find(kept.begin(), kept.end(), e / size) == kept.end()) scores[e] = -1e300;
    }
  }
  return largest(scores, k);
}

Routing reference_routing(const RouterOptions& options,
                          const Values& logits,
                          const Values& bias,
                          std::size_t num_experts,
                          std::size_t k) {
  Routing routing;
  const bool sigmoid = options.scores == RouterScores::kSigmoid;
  for (std::size_t t = 0; t < logits.size() / num_experts; ++t) {
    const double* row = logits.data() + t * num_experts;
    Values p = reference::softmax(row, num_experts);
    Values s(num_experts), score(num_experts);
    double sum = 0;
    for (std::size_t e = 0; e < num_experts; ++e) {
      s[e] = 1 / (1 + std::exp(-row[e]));
      sum += s[e];
    }
    for (std::size_t e = 0; e < num_experts; ++e) {
      if (sigmoid) p[e] = s[e] / sum;
      score[e] = sigmoid                                            ? s[e] + bias[e]
                 : options.scores == RouterScores::kTopkThenSoftmax ? row[e]
                                                                    : p[e];
    }
    std::vector<std::size_t> ids = chosen_of(options, score, k);
    std::vector<std::size_t> balanced = largest(Values(row, row + num_experts), k);
    if (options.choice == RouterChoice::kInTurn) {
      for (std::size_t i = 0; i < k; ++i)
        ids[i] = (std::size_t(options.first_in_turn) + t * k + i) % num_experts;
      balanced = ids;
    }
    Values of_chosen, logits_of_chosen;
    for (const std::size_t e : ids) {
      of_chosen.push_back(sigmoid ? s[e] : p[e]);
      logits_of_chosen.push_back(row[e]);
    }
    const Values renormalised = reference::softmax(logits_of_chosen.data(), k);
    const double total = std::accumulate(of_chosen.begin(), of_chosen.end(), 0.0);
    for (std::size_t i = 0; i < k; ++i) {
      double weight = of_chosen[i];
      if (options.scores == RouterScores::kTopkThenSoftmax) weight = renormalised[i];
      if (sigmoid && k > 1) weight /= total;
      routing.weights.push_back(options.scaling_factor * weight);
    }
    routing.probs.insert(routing.probs.end(), p.begin(), p.end());
    routing.ids.push_back(ids);
    routing.balanced.push_back(balanced);
  }
  return routing;
}

/// One way to group tokens: of some tokens, with rows for `num_groups` groups.
struct Grouping {
  BalanceGroups groups;
  std::int64_t num_groups;
  BalanceScales scales;
};

/// A micro-batch of its own.
Grouping whole_batch(std::int64_t tokens, std::int64_t num_experts, std::int64_t k) {
  const double t = double(tokens);
  return {{0, tokens}, 1, {double(num_experts) / (double(k) * t * t), 1 / t}};
}

/// That, three sequences (the last one short), and a later part of a micro-batch that begins and
/// ends inside a group, with one group more than there are tokens of.
std::vector<Grouping> groupings(std::int64_t tokens, std::int64_t num_experts, std::int64_t k) {
  const std::int64_t length = (tokens + 2) / 3;
  const double factor = double(num_experts) / (double(k) * double(tokens) * double(length));
  return {whole_batch(tokens, num_experts, k),
          {{0, length}, 3, {factor, 1 / double(tokens)}},
          {{5, 4}, (5 + tokens - 1) / 4 + 2, {0.3, 0.7}}};
}

/// Counts [G, E] that the auxiliary loss is of.
Values reference_counts(const Routing& routing, const Grouping& grouping, std::size_t num_experts) {
  Values counts(std::size_t(grouping.num_groups) * num_experts);
  for (std::size_t t = 0; t < routing.balanced.size(); ++t) {
    const std::size_t group = (std::size_t(grouping.groups.first_token) + t) /
                              std::size_t(grouping.groups.tokens_per_group);
    for (const std::size_t e : routing.balanced[t]) counts[group * num_experts + e] += 1;
  }
  return counts;
}

ops::RouterLosses reference_losses(const Routing& routing,
                                   const Grouping& grouping,
                                   const Values& logits,
                                   std::size_t num_experts) {
  const Values counts = reference_counts(routing, grouping, num_experts);
  Values prob_sums(counts.size());
  ops::RouterLosses losses;
  for (std::size_t t = 0; t < routing.ids.size(); ++t) {
    const std::size_t group = (std::size_t(grouping.groups.first_token) + t) /
                              std::size_t(grouping.groups.tokens_per_group);
    double sum = 0;
    for (std::size_t e = 0; e < num_experts; ++e) {
      prob_sums[group * num_experts + e] += routing.probs[t * num_experts + e];
      sum += std::exp(logits[t * num_experts + e]);
    }
    losses.z += grouping.scales.z * std::log(sum) * std::log(sum);
  }
  losses.aux = grouping.scales.aux * dot(counts, prob_sums);
  return losses;
}

Values flat(const std::vector<std::vector<std::size_t>>& ids) {
  Values values;
  for (const auto& token : ids) values.insert(values.end(), token.begin(), token.end());
  return values;
}

struct Routed {
  DType dtype;
  Grouping grouping;
  Guarded logits, bias, ids, weights, probs, counts;
  Routed(DType type,
         std::int64_t tokens,
         std::int64_t num_experts,
         std::int64_t k,
         const Values& values,
         const Values& biases = {})
      : Routed(type, tokens, num_experts, k, whole_batch(tokens, num_experts, k), values, biases) {}
  Routed(DType type,
         std::int64_t tokens,
         std::int64_t num_experts,
         std::int64_t k,
         const Grouping& grouped,
         const Values& values,
         const Values& biases)
      : dtype(type),
        grouping(grouped),
        logits(dtype, {tokens, num_experts}, values),
        bias(dtype, {std::int64_t(biases.size())}, biases),
        ids(DType::kI32, {tokens, k}),
        weights(dtype, {tokens, k}),
        probs(dtype, {tokens, num_experts}),
        counts(DType::kI64, {grouping.num_groups, num_experts}) {}
  void forward(Context& ctx, const RouterOptions& options) {
    const ConstTensorView none;
    ops::router_forward(ctx,
                        options,
                        logits,
                        bias.view().num_elements() == 0 ? none : ConstTensorView(bias),
                        ids,
                        weights,
                        probs);
  }
  ops::RouterLosses losses(Context& ctx, const RouterOptions& options) {
    return losses(ctx, options, grouping, counts);
  }
  ops::RouterLosses losses(Context& ctx,
                           const RouterOptions& options,
                           const Grouping& by,
                           Guarded& counted) {
    ops::router_counts(ctx, options, logits, probs, ids, by.groups, counted);
    return ops::router_losses(ctx, logits, probs, counted, by.groups, by.scales);
  }
  /// `aux` and `z` are coefficients of the scaled losses.
  Values backward(
      Context& ctx, const RouterOptions& options, const Values& dweights, double aux, double z) {
    Guarded dlogits(dtype, logits.view().shape);
    ops::router_backward(ctx,
                         options,
                         logits,
                         probs,
                         ids,
                         weights,
                         Guarded(dtype, ids.view().shape, dweights),
                         counts,
                         grouping.groups,
                         aux * grouping.scales.aux,
                         z * grouping.scales.z,
                         dlogits);
    return dlogits.values();
  }
};

/// One kind of router, with a bias where `biased`.
struct Variant {
  const char* name;
  RouterOptions options;
  bool biased = false;
};

/// Every kind of router for E divisible by 4 and K by 2; without groups for any. Four groups of
/// experts, or of a large E many groups of four.
std::vector<Variant> variants(std::int64_t num_experts, std::int64_t k) {
  std::vector<Variant> all{
      {"top-k then softmax", {.scores = RouterScores::kTopkThenSoftmax, .scaling_factor = 1.5}},
      {"softmax then top-k", {.scores = RouterScores::kSoftmaxThenTopk, .scaling_factor = 1.5}},
      {"sigmoid", {.scores = RouterScores::kSigmoid, .scaling_factor = 2.5}},
      {"sigmoid with bias", {.scores = RouterScores::kSigmoid, .scaling_factor = 2.5}, true}};
  const std::size_t plain = all.size();
  for (std::size_t i = 0; i < plain; ++i) {
    if (num_experts % 4 == 0 && k % 2 == 0 && k / 2 <= num_experts / 4) {
      all.push_back(all[i]);
      all.back().options.num_groups = num_experts > 256 ? num_experts / 4 : 4;
      all.back().options.group_topk = num_experts > 256 ? k / 2 : 2;
    }
    all.push_back(all[i]);
    all.back().options.choice = RouterChoice::kInTurn;
    all.back().options.first_in_turn = 5;
  }
  return all;
}

/// Multiples of 1/8 up to 1/2: sigmoid scores and their biases do not cancel to ties by chance.
Values some_bias(std::int64_t num_experts, bool biased) {
  Values bias;
  for (std::int64_t e = 0; biased && e < num_experts; ++e)
    bias.push_back(double(e * 5 % 9 - 4) / 8);
  return bias;
}

Values zeros_for(const Values& bias, std::int64_t num_experts) {
  return bias.empty() ? Values(std::size_t(num_experts)) : bias;
}

}  // namespace

TEST_CASE("router: choices, weights and losses of every kind agree with the reference",
          "[any device]") {
  // Threads of the host share out many tokens; a warp of a device runs its loops over experts,
  // groups and choices thrice.
  const std::int64_t many = test_device() == device::cpu() ? 300 : 9;
  const std::int64_t shapes[][3] = {{1, 1, 1},
                                    {7, 4, 2},
                                    {65, 8, 8},
                                    {13, 17, 3},
                                    {many, 64, 6},
                                    {50, 12, 1},
                                    {10, 200, 4},
                                    {1, 264, 70}};
  for_each_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    for (const auto& [tokens, num_experts, k] : shapes) {
      for (const Variant& variant : variants(num_experts, k)) {
        const RouterOptions& options = variant.options;
        INFO("T " << tokens << " E " << num_experts << " K " << k << ", " << variant.name
                  << ", groups " << options.num_groups << ", choice " << int(options.choice));
        Values logits = random_values(tokens * num_experts, 1);
        for (double& logit : logits) logit *= 3;
        const Values bias = some_bias(num_experts, variant.biased);
        const Routing exact = reference_routing(options,
                                                logits,
                                                zeros_for(bias, num_experts),
                                                std::size_t(num_experts),
                                                std::size_t(k));
        Routed routed(dtype, tokens, num_experts, k, logits, bias);
        routed.forward(ctx, options);
        CHECK(routed.ids.values() == flat(exact.ids));
        check_close(routed.weights.values(), exact.weights, tolerance(dtype, 4));
        check_close(routed.probs.values(), exact.probs, tolerance(dtype, 4));
        for (const Grouping& grouping : groupings(tokens, num_experts, k)) {
          INFO("groups of " << grouping.groups.tokens_per_group << " tokens from "
                            << grouping.groups.first_token);
          Guarded counted(DType::kI64, {grouping.num_groups, num_experts});
          const ops::RouterLosses losses = routed.losses(ctx, options, grouping, counted);
          const ops::RouterLosses expected =
              reference_losses(exact, grouping, logits, std::size_t(num_experts));
          const double epsilon = dtype == DType::kF32 ? 1e-6 : 1e-13;
          CHECK(losses.aux == Approx(expected.aux).epsilon(epsilon));
          CHECK(losses.z == Approx(expected.z).epsilon(epsilon));
          const Values counts = counted.values();
          CHECK(counts == reference_counts(exact, grouping, std::size_t(num_experts)));
          CHECK(std::accumulate(counts.begin(), counts.end(), 0.0) == double(tokens * k));
        }
      }
    }
  });
}

TEST_CASE("router: the gradient agrees with central differences through weights and both losses",
          "[any device]") {
  OpContext ctx;
  constexpr double kAux = 0.7, kZ = 0.3;
  const std::int64_t shapes[][3] = {{5, 6, 3}, {5, 8, 2}, {6, 8, 4}, {4, 5, 1}, {2, 70, 3}};
  for (const auto& [tokens, num_experts, k] : shapes) {
    Values logits = random_values(tokens * num_experts, 2);
    const Values dweights = random_values(tokens * k, 3);
    for (const Variant& variant : variants(num_experts, k)) {
      const RouterOptions& options = variant.options;
      INFO("E " << num_experts << " K " << k << ", " << variant.name << ", groups "
                << options.num_groups << ", choice " << int(options.choice));
      const Values bias = some_bias(num_experts, variant.biased);
      for (const Grouping& grouping : groupings(tokens, num_experts, k)) {
        INFO("groups of " << grouping.groups.tokens_per_group << " tokens from "
                          << grouping.groups.first_token);
        Routed routed(DType::kF64, tokens, num_experts, k, grouping, logits, bias);
        routed.forward(ctx, options);
        static_cast<void>(routed.losses(ctx, options));
        const Values exact = routed.backward(ctx, options, dweights, kAux, kZ);
        check_gradient(logits, exact, [&] {
          const Routing now = reference_routing(options,
                                                logits,
                                                zeros_for(bias, num_experts),
                                                std::size_t(num_experts),
                                                std::size_t(k));
          const ops::RouterLosses losses =
              reference_losses(now, grouping, logits, std::size_t(num_experts));
          return dot(now.weights, dweights) + kAux * losses.aux + kZ * losses.z;
        });
        for_each_kind([&](DType dtype, int threads) {
          OpContext other(threads);
          Routed again(dtype, tokens, num_experts, k, grouping, logits, bias);
          again.forward(other, options);
          static_cast<void>(again.losses(other, options));
          check_close(
              again.backward(other, options, dweights, kAux, kZ), exact, tolerance(dtype, 16));
        });
      }
    }
  }
}

TEST_CASE("router: parts of a batch add up to the whole in counts, losses and gradients",
          "[any device]") {
  constexpr std::int64_t kTokens = 13, kFirst = 5, kExperts = 8, kChoices = 2;
  // The parts meet inside a group; a group of 100 stands for a global batch.
  for (const std::int64_t tokens_per_group : {4, 100}) {
    for_each_kind([&](DType dtype, int threads) {
      OpContext ctx(threads);
      for (const Variant& variant : variants(kExperts, kChoices)) {
        INFO(variant.name << ", groups of " << tokens_per_group);
        const Values logits = random_values(kTokens * kExperts, 1);
        const Values dweights = random_values(kTokens * kChoices, 2);
        const Values bias = some_bias(kExperts, variant.biased);
        const auto part_of = [&](const Values& values, std::int64_t width, bool later) {
          const auto middle = values.begin() + kFirst * width;
          return later ? Values(middle, values.end()) : Values(values.begin(), middle);
        };
        const Grouping all{{2, tokens_per_group}, 4, {0.3, 0.7}};
        Grouping rest = all;
        rest.groups.first_token += kFirst;
        RouterOptions rest_options = variant.options;
        if (rest_options.choice == RouterChoice::kInTurn)
          rest_options.first_in_turn += kFirst * kChoices;
        Routed whole(dtype, kTokens, kExperts, kChoices, all, logits, bias);
        Routed early(
            dtype, kFirst, kExperts, kChoices, all, part_of(logits, kExperts, false), bias);
        Routed later(dtype,
                     kTokens - kFirst,
                     kExperts,
                     kChoices,
                     rest,
                     part_of(logits, kExperts, true),
                     bias);
        whole.forward(ctx, variant.options);
        early.forward(ctx, variant.options);
        later.forward(ctx, rest_options);
        const ops::RouterLosses losses = whole.losses(ctx, variant.options);
        static_cast<void>(early.losses(ctx, variant.options));
        static_cast<void>(later.losses(ctx, rest_options));
        const auto early_counts = early.counts.on_host().as<std::int64_t>();
        const auto later_counts = later.counts.on_host().as<std::int64_t>();
        for (std::size_t i = 0; i < early_counts.size(); ++i)
          early_counts[i] = later_counts[i] = early_counts[i] + later_counts[i];
        CHECK(early.counts.values() == whole.counts.values());
        double aux = 0, z = 0;
        for (Routed* part : {&early, &later}) {
          const ops::RouterLosses of_part = ops::router_losses(ctx,
                                                               part->logits,
                                                               part->probs,
                                                               part->counts,
                                                               part->grouping.groups,
                                                               part->grouping.scales);
          aux += of_part.aux;
          z += of_part.z;
        }
        CHECK(aux == Approx(losses.aux).epsilon(1e-14));
        CHECK(z == Approx(losses.z).epsilon(1e-14));
        Values gradient =
            early.backward(ctx, variant.options, part_of(dweights, kChoices, false), 1.5, 2.5);
        const Values end =
            later.backward(ctx, rest_options, part_of(dweights, kChoices, true), 1.5, 2.5);
        gradient.insert(gradient.end(), end.begin(), end.end());
        CHECK(gradient == whole.backward(ctx, variant.options, dweights, 1.5, 2.5));
      }
    });
  }
}

TEST_CASE("router: groups without a row of counts, and counts of other experts, are refused") {
  OpContext ctx;
  Routed routed(DType::kF32, 4, 3, 1, Values(12, 0.5));
  routed.forward(ctx, {});
  const auto refused = [&](const BalanceGroups& groups, const Shape& counts_shape) {
    Guarded counts(DType::kI64, counts_shape, Values(std::size_t(counts_shape.num_elements())));
    CHECK_THROWS_AS(
        ops::router_counts(ctx, {}, routed.logits, routed.probs, routed.ids, groups, counts),
        ShapeError);
    CHECK_THROWS_AS(static_cast<void>(ops::router_losses(
                        ctx, routed.logits, routed.probs, counts, groups, BalanceScales{1, 1})),
                    ShapeError);
  };
  refused({0, 2}, {1, 3});
  refused({1, 4}, {1, 3});
  refused({-1, 4}, {1, 3});
  refused({0, 0}, {1, 3});
  refused({0, 4}, {1, 4});
  refused({0, 4}, {3});
  Guarded counts(DType::kI64, {2, 3});
  CHECK_NOTHROW(
      ops::router_counts(ctx, {}, routed.logits, routed.probs, routed.ids, {4, 4}, counts));
  CHECK(counts.values() == Values{0, 0, 0, 4, 0, 0});
}

TEST_CASE("router: equal logits go to the lower index, balance gives an aux loss of 1",
          "[any device]") {
  OpContext ctx;
  Routed equal(DType::kF32, 4, 4, 2, Values(16, 0.5));
  equal.forward(ctx, {});
  CHECK(equal.ids.values() == Values{0, 1, 0, 1, 0, 1, 0, 1});
  CHECK(equal.weights.values() == Values(8, 0.5));
  // Each expert chosen once, probabilities symmetric: perfectly balanced.
  Routed balanced(DType::kF64, 4, 4, 1, {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1});
  balanced.forward(ctx, {});
  CHECK(balanced.losses(ctx, {}).aux == Approx(1.0).epsilon(1e-14));
  CHECK(balanced.counts.values() == Values(4, 1.0));
}

TEST_CASE("router: equal groups go to the lower index, the best group need not hold the best",
          "[any device]") {
  OpContext ctx;
  const RouterOptions options{.num_groups = 3, .group_topk = 1};
  Routed equal(DType::kF32, 1, 6, 2, Values(6, 0.5));
  equal.forward(ctx, options);
  CHECK(equal.ids.values() == Values{0, 1});
  Routed sum(DType::kF32, 1, 6, 2, {3, -4, 1, 2, 0, 0});
  sum.forward(ctx, options);
  CHECK(sum.ids.values() == Values{3, 2});
  // A sum of three counts each expert once: 3 + 2 + 1 of the first group, which is second with 2.
  Routed three(DType::kF32, 1, 8, 3, {2, 3, 1, 0, 2.5, 2.5, 2, 0});
  three.forward(ctx, {.scores = RouterScores::kTopkThenSoftmax, .num_groups = 2, .group_topk = 1});
  CHECK(three.ids.values() == Values{4, 5, 6});
}

TEST_CASE("router: a NaN logit is counted for nobody and takes no place from the others",
          "[any device]") {
  OpContext ctx;
  // Counts of sigmoid scores are of the choices that the logits alone would make. NaNs stand before
  // and behind numbers, in the same lane of a warp and in others.
  const RouterOptions options{.scores = RouterScores::kSigmoid};
  Values logits(140, std::nan("")), expected(70);
  for (const std::size_t e : {33U, 40U, 69U}) {
    logits[e] = -double(e);
    expected[e] += 1;
  }
  for (const std::size_t e : {0U, 35U}) {
    logits[70 + e] = double(e);
    expected[e] += 1;
  }
  Routed routed(DType::kF32, 2, 70, 3, logits);
  routed.forward(ctx, options);
  static_cast<void>(routed.losses(ctx, options));
  CHECK(routed.counts.values() == expected);
}

TEST_CASE("router: a bias moves the choice, but neither the weights nor the auxiliary loss",
          "[any device]") {
  OpContext ctx;
  const RouterOptions options{.scores = RouterScores::kSigmoid};
  // sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4: the bias lifts expert 2 over 0.
  const Values logits{0, std::log(3.0), -std::log(3.0)};
  Routed routed(DType::kF64, 1, 3, 2, logits, {0, 0, 0.375});
  routed.forward(ctx, options);
  CHECK(routed.ids.values() == Values{1, 2});
  check_close(routed.weights.values(), {0.75, 0.25}, tolerance(DType::kF64, 4));
  check_close(routed.probs.values(), {1.0 / 3, 0.5, 1.0 / 6}, tolerance(DType::kF64, 4));
  CHECK(routed.losses(ctx, options).aux == Approx(3.0 / 2 * (1.0 / 3 + 0.5)).epsilon(1e-14));
  CHECK(routed.counts.values() == Values{1, 1, 0});
}

TEST_CASE("router: choices in turn load every expert alike", "[any device]") {
  OpContext ctx;
  const RouterOptions options{.choice = RouterChoice::kInTurn, .first_in_turn = 3};
  Routed routed(DType::kF32, 10, 4, 2, random_values(40, 1));
  routed.forward(ctx, options);
  static_cast<void>(routed.losses(ctx, options));
  CHECK(routed.counts.values() == Values(4, 5.0));
  CHECK(routed.ids.values()[0] == 3);
  CHECK(routed.ids.values()[1] == 0);
}

TEST_CASE("router: no tokens, NaN and far logits", "[any device]") {
  OpContext ctx;
  for (const Variant& variant : variants(8, 2)) {
    INFO(variant.name << ", groups " << variant.options.num_groups << ", choice "
                      << int(variant.options.choice));
    const Values bias = some_bias(8, variant.biased);
    Routed none(DType::kF32, 0, 8, 2, {}, bias);
    none.forward(ctx, variant.options);
    const ops::RouterLosses losses = none.losses(ctx, variant.options);
    CHECK(losses.aux == 0);
    CHECK(losses.z == 0);
    CHECK(none.counts.values() == Values(8, 0.0));
    Values logits(24, std::nan(""));
    logits[3] = logits[9] = 1;
    for (std::size_t e = 0; e < 8; ++e) logits[16 + e] = -double(INFINITY);
    Routed bad(DType::kF32, 3, 8, 2, logits, bias);
    bad.forward(ctx, variant.options);
    static_cast<void>(bad.losses(ctx, variant.options));
    const Values ids = bad.ids.values();
    for (std::size_t t = 0; t < 3; ++t) {
      CHECK(ids[2 * t] != ids[2 * t + 1]);
      for (std::size_t i = 0; i < 2; ++i) CHECK((ids[2 * t + i] >= 0 && ids[2 * t + i] < 8));
    }
    CHECK((std::isnan(bad.weights.values()[0]) || std::isnan(bad.weights.values()[1])));
    // The chosen ones of the first group, or in turn, lie where exp of their distance to the
    // largest is 0; or the second of those in turn is the largest.
    for (const std::size_t peak : {7U, 6U}) {
      Values far(8, -400.0);
      far[peak] = 400;
      Routed spread(DType::kF32, 1, 8, 2, far, bias);
      spread.forward(ctx, variant.options);
      CHECK(std::isfinite(spread.losses(ctx, variant.options).z));
      for (const double value : spread.weights.values()) CHECK(std::isfinite(value));
      for (const double value : spread.backward(ctx, variant.options, {1, -1}, 1, 1))
        CHECK(std::isfinite(value));
    }
  }
}

TEST_CASE("router: options that contradict the shapes or each other are refused") {
  OpContext ctx;
  const auto refused = [&](std::int64_t num_experts,
                           std::int64_t k,
                           const RouterOptions& options,
                           const Values& bias = {}) {
    Routed wrong(DType::kF32, 2, num_experts, k, Values(std::size_t(2 * num_experts)), bias);
    CHECK_THROWS_AS(wrong.forward(ctx, options), ShapeError);
  };
  refused(3, 4, {});
  refused(4, 2, {.num_groups = 3, .group_topk = 1});
  refused(4, 2, {.num_groups = 2, .group_topk = 3});
  refused(4, 2, {.num_groups = 4, .group_topk = 1});
  refused(8, 3, {.num_groups = 4, .group_topk = 2});
  refused(4, 2, {.group_topk = 1});
  refused(4, 2, {.choice = RouterChoice::kInTurn, .first_in_turn = -1});
  refused(4, 2, {}, Values(4));
  refused(4, 2, {.scores = RouterScores::kSigmoid}, Values(3));
}

}  // namespace pecan::test
