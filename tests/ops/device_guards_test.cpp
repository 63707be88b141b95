/// Indices that device code is given and no host looks at: it stops before it follows one outside.
/// Not for real devices, which a process that has used them cannot share with its child.

#include <cstring>
#include <functional>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pecan/core/error.hpp>

#include <pecan/ops/attention.hpp>
#include <pecan/ops/capacity.hpp>
#include <pecan/ops/cross_entropy.hpp>
#include <pecan/ops/default_vectors.hpp>
#include <pecan/ops/embedding.hpp>
#include <pecan/ops/permute.hpp>
#include <pecan/ops/rope.hpp>
#include <pecan/ops/router.hpp>

#include "ops/op_test.hpp"

namespace pecan::test {
namespace {

enum class Outcome : std::uint8_t { kDone, kTrapped, kOtherError, kDied };

/// In a child, since the device is lost after a trap.
Outcome outcome_of(const std::function<void(Context&)>& body) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    // The emulation reports the trap.
    dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);  // NOLINT: nothing to do without it
    Outcome outcome = Outcome::kDone;
    try {
      OpContext ctx;
      body(ctx);
      test_stream().synchronize();
    } catch (const DeviceError& error) {
      const bool trapped = std::strstr(error.what(), "launch failure") != nullptr;
      outcome = trapped ? Outcome::kTrapped : Outcome::kOtherError;
    } catch (...) {
      outcome = Outcome::kOtherError;
    }
    _exit(int(outcome));
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? Outcome(WEXITSTATUS(status)) : Outcome::kDied;
}

// Never destroyed: who reads a lost device ends the process, and the child ends without it.
Guarded& of(DType dtype, const Shape& shape, const Values& values) {
  return *new Guarded(dtype, shape, values);
}
Guarded& i32(const Shape& shape, const Values& values) {
  return of(DType::kI32, shape, values);
}
Guarded& zeros(const Shape& shape) {
  return of(DType::kI64, shape, Values(std::size_t(shape.num_elements())));
}
Guarded& f32(const Shape& shape) {
  return of(DType::kF32, shape, Values(std::size_t(shape.num_elements()), 0.5));
}
Guarded& f64(const Shape& shape) {
  return of(DType::kF64, shape, Values(std::size_t(shape.num_elements()), 0.5));
}

struct Guard {
  const char* name;
  double least, most;  ///< that are allowed
  std::function<void(Context&, double)> call;
};

const ops::VocabShard kShard = ops::VocabShard::whole(4);

const Guard kGuards[] = {
    {"token of embedding_forward",
     0,
     3,
     [](Context& ctx, double id) {
       ops::embedding_forward(ctx, i32({2}, {0, id}), f32({4, 3}).storage(), kShard, f32({2, 3}));
     }},
    {"token of embedding_backward",
     0,
     3,
     [](Context& ctx, double id) {
       ops::embedding_backward(ctx, f32({2, 3}), i32({2}, {0, id}), kShard, f32({4, 3}).storage());
     }},
    {"label of cross_entropy_forward",
     0,
     3,
     [](Context& ctx, double id) {
       ops::cross_entropy_forward(ctx, f32({2, 4}), 4, i32({2}, {0, id}), {}, f64({2}));
     }},
    {"label of cross_entropy_sums",
     0,
     3,
     [](Context& ctx, double id) {
       ops::cross_entropy_sums(
           ctx, f32({2, 4}), kShard, i32({2}, {0, id}), {}, f64({2}), f64({2, 2}));
     }},
    {"label of cross_entropy_backward",
     0,
     3,
     [](Context& ctx, double id) {
       ops::cross_entropy_backward(
           ctx, f32({2, 4}), kShard, i32({2}, {0, id}), {}, f64({2}), f64({2, 2}), 1);
     }},
    {"expert of permute_plan",
     -1,
     3,
     [](Context& ctx, double id) {
       ops::permute_plan(
           ctx, i32({2, 1}, {0, id}), zeros({4}), i32({2}, {0, 0}), i32({2, 1}, {0, 0}));
     }},
    {"slot of permute_forward",
     0,
     1,
     [](Context& ctx, double slot) {
       ops::permute_forward(ctx, f32({2, 3}), i32({2}, {0, slot}), f32({2, 3}));
     }},
    {"position of permute_backward",
     -1,
     1,
     [](Context& ctx, double position) {
       ops::permute_backward(
           ctx, f32({2, 3}), i32({2, 1}, {0, position}), f32({2, 3}), ops::Accumulate::kOverwrite);
     }},
    {"position of unpermute_backward",
     -1,
     1,
     [](Context& ctx, double position) {
       ops::unpermute_backward(ctx,
                               f32({2, 3}),
                               f32({2, 3}),
                               i32({2, 1}, {0, position}),
                               f32({2, 1}),
                               f32({2, 3}),
                               f32({2, 1}));
     }},
    {"position of rope_forward",
     0,
     3,
     [](Context& ctx, double position) {
       ops::rope_forward(ctx, f32({4, 6}), i32({2}, {0, position}), f32({2, 1, 6}));
     }},
    {"expert of router_counts",
     0,
     3,
     [](Context& ctx, double id) {
       ops::router_counts(ctx,
                          {},
                          f32({2, 4}),
                          f32({2, 4}),
                          i32({2, 1}, {0, id}),
                          {.tokens_per_group = 2},
                          zeros({1, 4}));
     }},
    {"expert of router_backward",
     0,
     3,
     [](Context& ctx, double id) {
       ops::router_backward(ctx,
                            {},
                            f32({2, 4}),
                            f32({2, 4}),
                            i32({2, 1}, {0, id}),
                            f32({2, 1}),
                            f32({2, 1}),
                            zeros({1, 4}),
                            {.tokens_per_group = 2},
                            1,
                            0,
                            f32({2, 4}));
     }},
    {"expert of drop_over_capacity",
     0,
     3,
     [](Context& ctx, double id) {
       (void)ops::drop_over_capacity(ctx,
                                     ops::DropPolicy::kProbs,
                                     1,
                                     i32({2, 1}, {0, id}),
                                     f32({2, 1}),
                                     zeros({4}),
                                     i32({2, 1}, {0, 0}));
     }},
    {"start of a document of attention_forward",
     0,
     1,
     [](Context& ctx, double start) {
       ops::attention_forward(ctx,
                              {1, 2, 1, 1, 4},
                              i32({2}, {0, start}),
                              f32({2, 1, 4}),
                              f32({2, 1, 4}),
                              f32({2, 1, 4}),
                              f32({2, 1, 4}),
                              f32({1, 1, 2}));
     }},
    // Of seven rows of expert 0 the search for its end looks at the fourth, and the sum at the
    // third.
    {"slot in the search of expert_output_sums",
     0,
     6,
     [](Context& ctx, double slot) {
       ops::expert_output_sums(ctx,
                               f32({7, 3}),
                               i32({7}, {0, 1, 2, slot, 4, 5, 6}),
                               i32({7, 1}, Values(7)),
                               f32({7, 1}),
                               f32({2, 4}),
                               ops::Accumulate::kOverwrite);
     }},
    {"slot in the sum of expert_output_sums",
     0,
     6,
     [](Context& ctx, double slot) {
       ops::expert_output_sums(ctx,
                               f32({7, 3}),
                               i32({7}, {0, 1, slot, 3, 4, 5, 6}),
                               i32({7, 1}, Values(7)),
                               f32({7, 1}),
                               f32({2, 4}),
                               ops::Accumulate::kOverwrite);
     }},
};

}  // namespace

TEST_CASE("device guards: indices outside stop the device", "[.device guards]") {
  REQUIRE(test_device() != device::cpu());
  for (const Guard& guard : kGuards) {
    INFO(guard.name);
    for (const double allowed : {guard.least, guard.most})
      CHECK(outcome_of([&](Context& ctx) { guard.call(ctx, allowed); }) == Outcome::kDone);
    for (const double outside : {guard.least - 1, guard.most + 1})
      CHECK(outcome_of([&](Context& ctx) { guard.call(ctx, outside); }) == Outcome::kTrapped);
  }
}

}  // namespace pecan::test
