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
