#include <cmath>
#include <vector>

#include <pecan/optim/adamw.hpp>

#include "support/catch.hpp"

using namespace pecan;

TEST_CASE("updates follow AdamW's formula, decay by spec, and each unit by its own count",
          "[optim]") {
  const std::vector<parallel::ParamSpec> specs{
      {.name = "norm", .shape = Shape{3}, .padded_rows = 3},
      {.name = "matrix",
       .shape = Shape{2, 2},
       .padded_rows = 2,
       .decay = parallel::WeightDecay::kDecoupled},
      {.name = "expert",
       .shape = Shape{2, 2},
       .padded_rows = 2,
       .layer = LayerId{0},
       .expert = ExpertId{0},
       .decay = parallel::WeightDecay::kDecoupled}};
  parallel::ParamSet params(device::cpu(), specs, 1, {}, Rank{0}, DType::kF64);
  optim::AdamW optimizer(device::cpu(), params);
  REQUIRE(optimizer.units().size() == 2);
  // An expert that recovery brought back stale by 5 updates.
  optimizer.units()[0].count = 7;
  optimizer.units()[1].count = 2;

  device::Stream stream{device::cpu()};
  device::Arena workspace;
  Context ctx{device::cpu(), stream, workspace, 1};
  const config::OptimizerConfig config{
      .weight_decay = 0.1, .adam_beta1 = 0.9, .adam_beta2 = 0.95, .adam_eps = 1e-8};
  const double lr = 0.01, clip = 0.5;
  std::vector<std::vector<double>> p, m, v;
  for (const parallel::Param& param : params.params()) {
    const std::size_t count = std::size_t(param.spec.shape.num_elements());
    p.emplace_back(count);
    m.emplace_back(count, 0.0);
    v.emplace_back(count, 0.0);
    for (std::size_t i = 0; i < count; ++i) {
      p.back()[i] = param.weight.row_major().as<double>()[i] = 0.3 + double(i);
    }
  }
  for (int step = 0; step < 4; ++step) {
    for (std::size_t n = 0; n < p.size(); ++n) {
      const parallel::Param& param = params.params()[n];
      const double count = double((param.spec.is_expert() ? 2 : 7) + step + 1);
      const double decay = param.spec.name == "norm" ? 0.0 : config.weight_decay;
      for (std::size_t i = 0; i < p[n].size(); ++i) {
        const double g = std::sin(double(i) + step + double(n));
        param.grad.row_major().as<double>()[i] = g;
        m[n][i] = 0.9 * m[n][i] + 0.1 * clip * g;
        v[n][i] = 0.95 * v[n][i] + 0.05 * clip * clip * g * g;
        const double m_hat = m[n][i] / (1 - std::pow(0.9, count));
        const double v_hat = v[n][i] / (1 - std::pow(0.95, count));
        p[n][i] = p[n][i] * (1 - lr * decay) - lr * m_hat / (std::sqrt(v_hat) + 1e-8);
      }
    }
    optimizer.update(ctx, config, lr, clip);
  }
  for (std::size_t n = 0; n < p.size(); ++n) {
    for (std::size_t i = 0; i < p[n].size(); ++i) {
      CHECK(params.params()[n].weight.row_major().as<double>()[i] ==
            Approx(p[n][i]).epsilon(1e-13));
      CHECK(optimizer.exp_avg(params.params()[n]).row_major().as<double>()[i] ==
            Approx(m[n][i]).epsilon(1e-13));
    }
  }
  CHECK(optimizer.units()[0].count == 11);
  CHECK(optimizer.units()[1].count == 6);
}
