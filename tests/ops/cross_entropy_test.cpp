#include <pecan/ops/cross_entropy.hpp>

#include "ops/op_test.hpp"
#include "ops/reference.hpp"

namespace pecan::test {
namespace {

Values labels_of(std::int64_t tokens, std::int64_t vocab) {
  Values labels = random_values(tokens, 5);
  for (double& label : labels) label = std::floor((label + 1) / 2 * double(vocab));
  return labels;
}

}  // namespace

TEST_CASE("cross_entropy: losses and gradients agree with the reference") {
  const std::int64_t shapes[][3] = {
      {0, 3, 4}, {1, 1, 1}, {3, 7, 7}, {5, 63, 128}, {2, 513, 513}, {65, 1000, 1024}};
  for_each_storage_kind([&](DType dtype, int threads) {
    CpuContext ctx(threads);
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

TEST_CASE("cross_entropy: the gradient agrees with central differences") {
  CpuContext ctx;
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
    "hold") {
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    CpuContext ctx;
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
    "nothing") {
  CpuContext ctx;
  Values logits = random_values(2 * 4, 1);
  logits[5] = std::nan("");
  Guarded tensor(DType::kF32, {2, 4}, logits);
  Guarded labels(DType::kI32, {2}, {1, -1});
  Guarded loss(DType::kF64, {2});
  CHECK_THROWS_AS(ops::cross_entropy_forward(ctx, tensor, 4, labels, {}, loss), ShapeError);
  ops::cross_entropy_forward_backward(
      ctx, tensor, 4, labels, Guarded(DType::kF32, {2}, {1, 0}), 1.0, loss);
  CHECK(loss.values()[1] == 0);
  for (std::size_t v = 4; v < 8; ++v) CHECK(tensor.values()[v] == 0);
}

TEST_CASE("cross_entropy: extreme logits stay finite") {
  CpuContext ctx;
  Guarded logits(DType::kF32, {2, 3}, {1e30, -1e30, 0, -200, 0, 200});
  Guarded labels(DType::kI32, {2}, {0, 0});
  Guarded loss(DType::kF64, {2});
  ops::cross_entropy_forward_backward(ctx, logits, 3, labels, {}, 1.0, loss);
  CHECK(loss.values()[0] == 0);
  CHECK(loss.values()[1] == Approx(400));
  CHECK(logits.values() == Values{0, 0, 0, -1, 0, 1});
}

}  // namespace pecan::test
