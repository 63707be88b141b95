#include <pecan/ops/adamw.hpp>

#include "ops/op_test.hpp"

namespace pecan::test {
namespace {

/// The published formula with bias-corrected moments, in double.
void reference_step(const ops::AdamWOptions& o, const Values& g, Values& p, Values& m, Values& v) {
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double gradient = o.grad_scale * g[i];
    p[i] -= o.lr * o.weight_decay * p[i];
    m[i] = o.beta1 * m[i] + (1 - o.beta1) * gradient;
    v[i] = o.beta2 * v[i] + (1 - o.beta2) * gradient * gradient;
    const double m_hat = m[i] / (1 - std::pow(o.beta1, double(o.update_count)));
    const double v_hat = v[i] / (1 - std::pow(o.beta2, double(o.update_count)));
    p[i] -= o.lr * m_hat / (std::sqrt(v_hat) + o.eps);
  }
}

}  // namespace

TEST_CASE("adamw: five updates agree with the published formula", "[any device]") {
  for_each_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    for (const std::int64_t count : {0, 1, 63, 129, 40000}) {
      INFO("elements " << count);
      Values p = random_values(count, 1), m(p.size()), v(p.size());
      Guarded p_tensor(dtype, {count}, p), m_tensor(dtype, {count}, m), v_tensor(dtype, {count}, v);
      for (std::int64_t update = 1; update <= 5; ++update) {
        const ops::AdamWOptions options{.lr = 1e-2,
                                        .beta1 = 0.9,
                                        .beta2 = 0.95,
                                        .eps = 1e-8,
                                        .weight_decay = 0.1,
                                        .grad_scale = 0.5,
                                        .update_count = update};
        const Values g = random_values(count, 10 + std::uint64_t(update));
        reference_step(options, g, p, m, v);
        ops::adamw_update(ctx, options, Guarded(dtype, {count}, g), p_tensor, m_tensor, v_tensor);
      }
      check_close(p_tensor.values(), p, tolerance(dtype, 16));
      check_close(m_tensor.values(), m, tolerance(dtype, 16));
      check_close(v_tensor.values(), v, tolerance(dtype, 16));
    }
  });
}

TEST_CASE("adamw: the first step is lr times the sign, decay is decoupled", "[any device]") {
  OpContext ctx;
  Guarded p(DType::kF64, {3}, {1, 1, 1}), m(DType::kF64, {3}, Values(3)),
      v(DType::kF64, {3}, Values(3));
  ops::adamw_update(ctx,
                    {.lr = 0.1, .eps = 0, .weight_decay = 0.5},
                    Guarded(DType::kF64, {3}, {2, -1e-5, 1e5}),
                    p,
                    m,
                    v);
  check_close(p.values(), {0.95 - 0.1, 0.95 + 0.1, 0.95 - 0.1}, tolerance(DType::kF64, 4));
}

TEST_CASE("adamw: any split of the span gives the same bits", "[any device]") {
  constexpr std::int64_t kCount = 50000;
  const ops::AdamWOptions options{
      .lr = 3e-4, .weight_decay = 0.01, .grad_scale = 0.37, .update_count = 7};
  const auto updated = [&](int threads, const std::vector<std::int64_t>& cuts) {
    OpContext ctx(threads);
    Guarded g(DType::kF32, {kCount}, random_values(kCount, 1)),
        p(DType::kF32, {kCount}, random_values(kCount, 2));
    Guarded m(DType::kF32, {kCount}, random_values(kCount, 3)),
        v(DType::kF32, {kCount}, Values(kCount, 0.5));
    std::int64_t begin = 0;
    for (const std::int64_t end : cuts) {
      const auto part = [&](Guarded& x) { return x.view().rows(begin, end - begin); };
      ops::adamw_update(ctx, options, part(g), part(p), part(m), part(v));
      begin = end;
    }
    return p.values();
  };
  const Values whole = updated(1, {kCount});
  CHECK(updated(2, {kCount}) == whole);
  CHECK(updated(1, {1, 3, 7, 20011, kCount}) == whole);
}

TEST_CASE("adamw: every device makes the bits of the CPU, and rounds them for the copy",
          "[any device]") {
  constexpr std::int64_t kCount = 5003;
  const ops::AdamWOptions options{
      .lr = 3e-4, .weight_decay = 0.01, .grad_scale = 0.37, .update_count = 7};
  const auto floats = [](std::uint64_t seed) {
    const Values values = random_values(kCount, seed);
    return std::vector<float>(values.begin(), values.end());
  };
  std::vector<float> g = floats(1), p = floats(2), m = floats(3), v(std::size_t(kCount), 0.5F);
  Guarded on_device[] = {Guarded(DType::kF32, {kCount}, Values(g.begin(), g.end())),
                         Guarded(DType::kF32, {kCount}, Values(p.begin(), p.end())),
                         Guarded(DType::kF32, {kCount}, Values(m.begin(), m.end())),
                         Guarded(DType::kF32, {kCount}, Values(v.begin(), v.end()))};
  Guarded rounded(DType::kBF16, {kCount});

  device::Stream at_once(device::cpu());
  device::Arena no_workspace;
  Context on_cpu{device::cpu(), at_once, no_workspace};
  ops::adamw_update(on_cpu,
                    options,
                    view_of(std::span(g)),
                    view_of(std::span(p)),
                    view_of(std::span(m)),
                    view_of(std::span(v)));
  OpContext ctx;
  ops::adamw_update(ctx, options, on_device[0], on_device[1], on_device[2], on_device[3], rounded);
  CHECK(on_device[1].values() == Values(p.begin(), p.end()));
  CHECK(on_device[2].values() == Values(m.begin(), m.end()));
  CHECK(on_device[3].values() == Values(v.begin(), v.end()));
  CHECK(rounded.values() == stored(DType::kBF16, Values(p.begin(), p.end())));
}

}  // namespace pecan::test
