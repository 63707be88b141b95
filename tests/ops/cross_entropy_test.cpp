#include <deque>

#include <pecan/ops/cross_entropy.hpp>

#include "ops/op_test.hpp"
#include "ops/reference.hpp"

namespace pecan::test {
namespace {

using ops::VocabShard;

Values labels_of(std::int64_t tokens, std::int64_t vocab) {
  Values labels = random_values(tokens, 5);
  for (double& label : labels) label = std::floor((label + 1) / 2 * double(vocab));
  return labels;
}

/// Columns that one rank holds of a vocabulary.
struct Cut {
  VocabShard shard;
  std::int64_t columns;
};

/// 1, 2 and 3 shards of `vocab` entries; of the last, one is padding alone.
std::vector<std::vector<Cut>> cuts_of(std::int64_t vocab) {
  const std::int64_t half = vocab / 2 + vocab % 2;
  const Cut left{{0, half, vocab}, half}, right{{half, vocab - half, vocab}, half + 1};
  return {{{VocabShard::whole(vocab), vocab + 2}},
          {left, right},
          {left, right, {{vocab + 1, 0, vocab}, 3}}};
}

struct LossAndGradient {
  Values loss;
  Values gradient;  ///< [T, V], without padding
};

/// Runs the sharded operators over all shards and reduces between them as ranks would. `mask` may
/// be empty: none.
LossAndGradient sharded(Context& ctx,
                        DType dtype,
                        const std::vector<Cut>& cuts,
                        std::int64_t vocab,
                        const Values& logits,
                        const Values& labels,
                        const Values& mask,
                        double scale) {
  const auto tokens = std::int64_t(labels.size());
  Guarded labels_tensor(DType::kI32, {tokens}, labels);
  Guarded mask_tensor(dtype, {std::int64_t(mask.size())}, mask);
  const ConstTensorView mask_view = mask.empty() ? ConstTensorView{} : ConstTensorView(mask_tensor);
  std::deque<Guarded> shards;
  Values maxima(labels.size(), -double(INFINITY)), sums(2 * labels.size());
  for (const auto& [shard, columns] : cuts) {
    Values part(std::size_t(tokens * columns), double(INFINITY));
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::copy_n(logits.begin() + t * vocab + (shard.count == 0 ? 0 : shard.first),
                  shard.count,
                  part.begin() + t * columns);
    }
    Guarded& tensor = shards.emplace_back(dtype, Shape{tokens, columns}, part);
    Guarded max(DType::kF64, {tokens});
    ops::cross_entropy_max(ctx, tensor, shard, max);
    for (std::size_t t = 0; t < maxima.size(); ++t)
      maxima[t] = std::max(maxima[t], max.values()[t]);
  }
  Guarded max(DType::kF64, {tokens}, maxima);
  for (std::size_t i = 0; i < cuts.size(); ++i) {
    Guarded part(DType::kF64, {2, tokens});
    ops::cross_entropy_sums(ctx, shards[i], cuts[i].shard, labels_tensor, mask_view, max, part);
    const Values values = part.values();
    for (std::size_t j = 0; j < sums.size(); ++j) sums[j] += values[j];
  }
  Guarded all_sums(DType::kF64, {2, tokens}, sums), loss(DType::kF64, {tokens});
  ops::cross_entropy_from_sums(ctx, all_sums, mask_view, loss);
  LossAndGradient result{loss.values(), Values(logits.size())};
  for (std::size_t i = 0; i < cuts.size(); ++i) {
    const auto& [shard, columns] = cuts[i];
    ops::cross_entropy_backward(
        ctx, shards[i], shard, labels_tensor, mask_view, max, all_sums, scale);
    const Values part = shards[i].values();
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t v = 0; v < columns; ++v) {
        const double value = part[std::size_t(t * columns + v)];
        if (v < shard.count) {
          result.gradient[std::size_t(t * vocab + shard.first + v)] = value;
        } else {
          CHECK(value == 0);
        }
      }
    }
  }
  return result;
}

LossAndGradient fused(Context& ctx,
                      DType dtype,
                      std::int64_t vocab,
                      const Values& logits,
                      const Values& labels,
                      const Values& mask,
                      double scale) {
  const auto tokens = std::int64_t(labels.size());
  Guarded tensor(dtype, {tokens, vocab}, logits), loss(DType::kF64, {tokens});
  Guarded mask_tensor(dtype, {std::int64_t(mask.size())}, mask);
  ops::cross_entropy_forward_backward(
      ctx,
      tensor,
      vocab,
      Guarded(DType::kI32, {tokens}, labels),
      mask.empty() ? ConstTensorView{} : ConstTensorView(mask_tensor),
      scale,
      loss);
  return {loss.values(), tensor.values()};
}

}  // namespace

TEST_CASE("cross_entropy: losses and gradients agree with the reference", "[any device]") {
  const std::int64_t shapes[][3] = {
      {0, 3, 4}, {1, 1, 1}, {3, 7, 7}, {5, 63, 128}, {2, 513, 513}, {65, 1000, 1024}};
  for_each_storage_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    for (const auto& [tokens, vocab, columns] : shapes) {
      for (const bool masked : {false, true}) {
        INFO("T " << tokens << " V " << vocab << " of " << columns << ", masked " << masked);
        Values logits = random_values(tokens * columns, 1);
        for (double& logit : logits) logit *= 10;
        logits = stored(dtype, logits);
        const Values labels = labels_of(tokens, vocab);
        const Values mask =
            masked ? stored(dtype, random_values(tokens, 6)) : Values(std::size_t(tokens), 1.0);
        constexpr double kScale = 0.125;
        Values losses, gradient(logits.size());
        for (std::size_t t = 0; t < labels.size(); ++t) {
          const double* row = logits.data() + t * std::size_t(columns);
          losses.push_back(
              mask[t] * reference::cross_entropy(row, std::size_t(vocab), std::size_t(labels[t])));
          const Values p = reference::softmax(row, std::size_t(vocab));
          for (std::size_t v = 0; v < p.size(); ++v) {
            gradient[t * std::size_t(columns) + v] =
                (p[v] - (double(v) == labels[t] ? 1 : 0)) * kScale * mask[t];
          }
        }
        Guarded logits_tensor(dtype, {tokens, columns}, logits);
        Guarded labels_tensor(DType::kI32, {tokens}, labels);
        Guarded mask_tensor(dtype, {tokens}, mask);
        Guarded loss(DType::kF64, {tokens});
        const ConstTensorView mask_view = masked ? ConstTensorView(mask_tensor) : ConstTensorView{};
        ops::cross_entropy_forward(ctx, logits_tensor, vocab, labels_tensor, mask_view, loss);
        check_close(loss.values(), losses, tolerance(master_of(dtype), 16));
        Guarded fused_loss(DType::kF64, {tokens});
        ops::cross_entropy_forward_backward(
            ctx, logits_tensor, vocab, labels_tensor, mask_view, kScale, fused_loss);
        check_close(fused_loss.values(), losses, tolerance(master_of(dtype), 16));
        check_close(logits_tensor.values(), gradient, tolerance(dtype, 16));
      }
    }
  });
}

TEST_CASE("cross_entropy: the gradient agrees with central differences", "[any device]") {
  OpContext ctx;
  Values logits = random_values(4 * 6, 1);
  const Values labels = labels_of(4, 5);
  Guarded labels_tensor(DType::kI32, {4}, labels);
  Guarded gradient(DType::kF64, {4, 6}, logits);
  Guarded loss(DType::kF64, {4});
  ops::cross_entropy_forward_backward(ctx, gradient, 5, labels_tensor, {}, 0.25, loss);
  check_gradient(logits, gradient.values(), [&] {
    Guarded now(DType::kF64, {4});
    ops::cross_entropy_forward(
        ctx, Guarded(DType::kF64, {4, 6}, logits), 5, labels_tensor, {}, now);
    return 0.25 * dot(now.values(), Values(4, 1.0));
  });
}

TEST_CASE(
    "cross_entropy: padded columns have no influence and exactly zero gradient, whatever they "
    "hold",
    "[any device]") {
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    OpContext ctx;
    Values first_loss, first_gradient;
    for (const double padding :
         {0.0, 1e30, double(std::numeric_limits<float>::infinity()), std::nan("")}) {
      Values logits = random_values(3 * 8, 1);
      for (std::size_t t = 0; t < 3; ++t) {
        for (std::size_t v = 5; v < 8; ++v) logits[t * 8 + v] = padding;
      }
      Guarded tensor(dtype, {3, 8}, logits);
      Guarded labels(DType::kI32, {3}, {0, 4, 2});
      Guarded loss(DType::kF64, {3});
      ops::cross_entropy_forward_backward(ctx, tensor, 5, labels, {}, 1.0, loss);
      const Values gradient = tensor.values();
      for (std::size_t t = 0; t < 3; ++t) {
        for (std::size_t v = 5; v < 8; ++v) CHECK(gradient[t * 8 + v] == 0);
      }
      if (first_loss.empty()) {
        first_loss = loss.values();
        first_gradient = gradient;
      }
      CHECK(loss.values() == first_loss);
      CHECK(gradient == first_gradient);
    }
  }
}

TEST_CASE(
    "cross_entropy: a masked token counts nothing, even with a label and logits that mean "
    "nothing",
    "[any device]") {
  OpContext ctx;
  Values logits = random_values(2 * 4, 1);
  logits[5] = std::nan("");
  Guarded tensor(DType::kF32, {2, 4}, logits);
  Guarded labels(DType::kI32, {2}, {1, -1});
  Guarded loss(DType::kF64, {2});
  if (test_device() == device::cpu()) {  // a kernel stops the device
    CHECK_THROWS_AS(ops::cross_entropy_forward(ctx, tensor, 4, labels, {}, loss), ShapeError);
  }
  ops::cross_entropy_forward_backward(
      ctx, tensor, 4, labels, Guarded(DType::kF32, {2}, {1, 0}), 1.0, loss);
  CHECK(loss.values()[1] == 0);
  for (std::size_t v = 4; v < 8; ++v) CHECK(tensor.values()[v] == 0);
}

TEST_CASE("cross_entropy: extreme logits stay finite", "[any device]") {
  OpContext ctx;
  Guarded logits(DType::kF32, {2, 3}, {1e30, -1e30, 0, -200, 0, 200});
  Guarded labels(DType::kI32, {2}, {0, 0});
  Guarded loss(DType::kF64, {2});
  ops::cross_entropy_forward_backward(ctx, logits, 3, labels, {}, 1.0, loss);
  CHECK(loss.values()[0] == 0);
  CHECK(loss.values()[1] == Approx(400));
  CHECK(logits.values() == Values{0, 0, 0, -1, 0, 1});
}

TEST_CASE("cross_entropy: shards of any cut give the loss and gradient of the whole",
          "[any device]") {
  const std::int64_t shapes[][2] = {{0, 3}, {1, 1}, {3, 7}, {2, 1025}, {65, 1000}};
  constexpr double kScale = 0.125;
  for_each_storage_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    for (const auto& [tokens, vocab] : shapes) {
      Values logits = random_values(tokens * vocab, 1);
      for (double& logit : logits) logit *= 10;
      logits = stored(dtype, logits);
      Values labels = labels_of(tokens, vocab);
      std::size_t next = 0;
      for (const std::vector<Cut>& cuts : cuts_of(vocab)) {
        for (const auto& [shard, columns] : cuts) {
          for (const std::int64_t edge : {shard.first, shard.first + shard.count - 1}) {
            if (shard.count > 0 && next < labels.size()) labels[next++] = double(edge);
          }
        }
      }
      for (const bool masked : {false, true}) {
        Values mask = masked ? stored(dtype, random_values(tokens, 6)) : Values{};
        if (masked && tokens > 2) mask[1] = 0;
        const LossAndGradient whole = fused(ctx, dtype, vocab, logits, labels, mask, kScale);
        Values losses, gradient;
        for (std::size_t t = 0; t < labels.size(); ++t) {
          const double* row = logits.data() + t * std::size_t(vocab);
          const double factor = masked ? mask[t] : 1;
          losses.push_back(
              factor * reference::cross_entropy(row, std::size_t(vocab), std::size_t(labels[t])));
          const Values p = reference::softmax(row, std::size_t(vocab));
          for (std::size_t v = 0; v < p.size(); ++v)
            gradient.push_back((p[v] - (double(v) == labels[t] ? 1 : 0)) * kScale * factor);
        }
        for (const std::vector<Cut>& cuts : cuts_of(vocab)) {
          INFO("T " << tokens << " V " << vocab << " in " << cuts.size() << ", masked " << masked);
          const LossAndGradient cut =
              sharded(ctx, dtype, cuts, vocab, logits, labels, mask, kScale);
          if (cuts.size() == 1) {
            CHECK(cut.loss == whole.loss);
            CHECK(cut.gradient == whole.gradient);
          }
          check_close(cut.loss, whole.loss, tolerance(DType::kF64, 16));
          check_close(cut.gradient, whole.gradient, tolerance(dtype, 1));
          check_close(cut.loss, losses, tolerance(master_of(dtype), 16));
          check_close(cut.gradient, gradient, tolerance(dtype, 16));
        }
      }
    }
  });
}

TEST_CASE("cross_entropy: NaN, infinite and masked tokens of shards count as in the whole",
          "[any device]") {
  constexpr std::int64_t kVocab = 8;
  const double infinity = INFINITY, nan = std::nan("");
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    OpContext ctx;
    // A NaN in the label's shard and in another, infinities, one token sound, the last masked.
    Values logits = stored(dtype, random_values(7 * kVocab, 1));
    logits[0 * kVocab + 1] = nan;
    logits[1 * kVocab + 6] = nan;
    logits[2 * kVocab + 6] = infinity;
    logits[3 * kVocab + 1] = -infinity;
    for (std::size_t v = 0; v < 4; ++v) logits[4 * kVocab + v] = -infinity;
    for (std::size_t v = 0; v < kVocab; ++v) logits[6 * kVocab + v] = nan;
    const Values labels{2, 2, 2, 1, 5, 0, -7}, mask{1, 1, 1, 1, 1, 1, 0};
    const LossAndGradient whole = fused(ctx, dtype, kVocab, logits, labels, mask, 1);
    for (const std::vector<Cut>& cuts : cuts_of(kVocab)) {
      const LossAndGradient cut = sharded(ctx, dtype, cuts, kVocab, logits, labels, mask, 1);
      for (std::size_t t = 0; t < 3; ++t)
        CHECK((std::isnan(cut.loss[t]) && std::isnan(whole.loss[t])));
      CHECK(cut.loss[3] == infinity);
      for (std::size_t t = 3; t < 7; ++t) {
        INFO("token " << t);
        CHECK((cut.loss[t] == whole.loss[t] ||
               std::abs(cut.loss[t] - whole.loss[t]) <= 1e-14 * std::abs(whole.loss[t])));
      }
      CHECK(cut.loss[6] == 0);
      for (std::size_t i = 0; i < whole.gradient.size(); ++i) {
        INFO("element " << i);
        CHECK(std::isnan(cut.gradient[i]) == std::isnan(whole.gradient[i]));
        if (i >= 6 * kVocab) CHECK(cut.gradient[i] == 0);
      }
    }
  }
}

TEST_CASE("cross_entropy: shards and labels that do not fit are refused") {
  OpContext ctx;
  Guarded logits(DType::kF32, {1, 4}, Values(4)), max(DType::kF64, {1}, {0});
  Guarded sums(DType::kF64, {2, 1}, {1, 0}), labels(DType::kI32, {1}, {9});
  const VocabShard wrong[] = {{0, 5, 10}, {8, 3, 10}, {-1, 2, 10}, {0, -1, 10}};
  for (const VocabShard& shard : wrong) {
    CHECK_THROWS_AS(ops::cross_entropy_max(ctx, logits, shard, max), ShapeError);
    CHECK_THROWS_AS(ops::cross_entropy_sums(ctx, logits, shard, labels, {}, max, sums), ShapeError);
  }
  const VocabShard fits{0, 4, 10}, smaller{0, 4, 9};
  CHECK_NOTHROW(ops::cross_entropy_sums(ctx, logits, fits, labels, {}, max, sums));
  CHECK_THROWS_AS(ops::cross_entropy_sums(ctx, logits, smaller, labels, {}, max, sums), ShapeError);
  CHECK_THROWS_AS(ops::cross_entropy_backward(ctx, logits, smaller, labels, {}, max, sums, 1.0),
                  ShapeError);
  CHECK_THROWS_AS(ops::cross_entropy_max(ctx, logits, fits, sums), ShapeError);
}

}  // namespace pecan::test
