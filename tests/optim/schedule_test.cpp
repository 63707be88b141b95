#include <utility>

#include <pecan/optim/schedule.hpp>

#include "support/catch.hpp"

using namespace pecan;

TEST_CASE("warm-up is linear, cosine falls from lr to min_lr, then stays", "[optim]") {
  const config::OptimizerConfig config{.lr = 1.0,
                                       .min_lr = 0.1,
                                       .lr_warmup_iters = 10,
                                       .lr_warmup_init = 0.0,
                                       .lr_decay_iters = 110};
  CHECK(optim::learning_rate(config, 0) == 0.0);
  CHECK(optim::learning_rate(config, 5) == Approx(0.5));
  CHECK(optim::learning_rate(config, 10) == Approx(1.0));
  CHECK(optim::learning_rate(config, 35) == Approx(0.1 + 0.9 * (1 + 0.7071067811865476) / 2));
  CHECK(optim::learning_rate(config, 60) == Approx(0.55));
  CHECK(optim::learning_rate(config, 110) == Approx(0.1));
  CHECK(optim::learning_rate(config, 1000) == 0.1);
  for (int step = 10; step < 110; ++step) {
    REQUIRE(optim::learning_rate(config, step + 1) < optim::learning_rate(config, step));
  }
}

TEST_CASE("the other schedules follow their formulas, at the joins too", "[optim]") {
  using config::LrDecayStyle;
  using config::WsdDecayStyle;
  config::OptimizerConfig config{
      .lr = 1.0, .min_lr = 0.2, .lr_warmup_iters = 10, .lr_decay_iters = 110};
  const auto rate = [&](std::int64_t step) { return optim::learning_rate(config, step); };

  config.lr_decay_style = LrDecayStyle::kLinear;
  CHECK(rate(10) == 1.0);
  CHECK(rate(35) == Approx(0.8));
  CHECK(rate(60) == Approx(0.6));
  CHECK(rate(110) == Approx(0.2));
  CHECK(rate(111) == 0.2);

  config.lr_decay_style = LrDecayStyle::kInverseSquareRoot;
  CHECK(rate(5) == Approx(0.5));
  CHECK(rate(10) == 1.0);
  CHECK(rate(40) == Approx(0.5));
  CHECK(rate(90) == Approx(1.0 / 3));
  CHECK(rate(110) == Approx(0.30151134457776363));
  CHECK(rate(111) == 0.2);
  config.min_lr = 0.4;
  CHECK(rate(90) == 0.4);
  config.min_lr = 0.2;
  config.lr_warmup_iters = 0;  // counts as one step
  CHECK(rate(0) == 1.0);
  CHECK(rate(1) == 1.0);
  CHECK(rate(4) == Approx(0.5));
  config.lr_warmup_iters = 10;

  config.lr_decay_style = LrDecayStyle::kWsd;
  config.lr_wsd_decay_iters = 40;
  const std::pair<WsdDecayStyle, double> quarter_way[] = {
      {WsdDecayStyle::kLinear, 0.75},
      {WsdDecayStyle::kCosine, 0.8535533905932737},
      {WsdDecayStyle::kMinusSqrt, 0.5},
      {WsdDecayStyle::kExponential, 0.681792830507429}};
  for (const auto& [style, factor] : quarter_way) {
    config.lr_wsd_decay_style = style;
    CHECK(rate(10) == 1.0);
    CHECK(rate(11) == 1.0);
    CHECK(rate(70) == 1.0);
    CHECK(rate(80) == Approx(0.2 + 0.8 * factor));
    CHECK(rate(110) == Approx(0.2));
    CHECK(rate(200) == 0.2);
    for (int step = 70; step < 110; ++step) REQUIRE(rate(step + 1) < rate(step));
  }
}

TEST_CASE("a constant schedule is constant after its warm-up", "[optim]") {
  const config::OptimizerConfig config{
      .lr = 2.0, .lr_decay_style = config::LrDecayStyle::kConstant, .lr_warmup_iters = 4};
  CHECK(optim::learning_rate(config, 1) == Approx(0.5));
  CHECK(optim::learning_rate(config, 5) == 2.0);
  CHECK(optim::learning_rate(config, 500) == 2.0);
}

TEST_CASE("clipping scales only norms above the limit, and zero switches it off", "[optim]") {
  CHECK(optim::clip_factor(1.0, 0.5) == 1.0);
  CHECK(optim::clip_factor(1.0, 4.0) == Approx(0.25).epsilon(1e-6));
  CHECK(optim::clip_factor(0.0, 1e9) == 1.0);
}
