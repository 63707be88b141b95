#include <pecan/ops/kernel_plan.hpp>
#include <pecan/ops/reduce.hpp>

#include "ops/op_test.hpp"

namespace pecan::test {

TEST_CASE("reduce: sums, counts and maxima, equal for any number of threads", "[any device]") {
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    for (const std::int64_t count : {0, 1, 63, 4095, 4096, 4097, 1050000}) {
      INFO(name_of(dtype) << ", elements " << count);
      Values x = random_values(count, 1);
      double sum = 0, squares = 0, largest = 0;
      for (const double value : x) {
        sum += value;
        squares += value * value;
        largest = std::max(largest, std::abs(value));
      }
      Guarded tensor(dtype, {count}, x);
      OpContext one(1);
      const double observed_sum = ops::sum(one, tensor);
      const double observed_squares = ops::sum_of_squares(one, tensor);
      CHECK(observed_sum == Approx(sum).epsilon(1e-11).margin(1e-9));
      CHECK(observed_squares == Approx(squares).epsilon(1e-12));
      CHECK(ops::max_abs(one, tensor) == largest);
      CHECK(ops::count_non_finite(one, tensor) == 0);
      for (const int threads : {2, 3}) {
        OpContext ctx(threads);
        CHECK(ops::sum(ctx, tensor) == observed_sum);
        CHECK(ops::sum_of_squares(ctx, tensor) == observed_squares);
        CHECK(ops::max_abs(ctx, tensor) == largest);
      }
    }
  }
}

TEST_CASE(
    "reduce: f32 squares beyond the range of f32 are summed, non-finite values found wherever they "
    "stand",
    "[any device]") {
  OpContext ctx;
  CHECK(ops::sum_of_squares(ctx, Guarded(DType::kF32, {2}, {3e30, 4e30})) == Approx(2.5e61));
  Values x(10000, -1.0);
  x[0] = std::nan("");
  x[4096] = double(INFINITY);
  x[9999] = -double(INFINITY);
  Guarded tensor(DType::kF32, {10000}, x);
  CHECK(ops::count_non_finite(ctx, tensor) == 3);
  CHECK(ops::count_non_finite(ctx, Guarded(DType::kBF16, {10000}, x)) == 3);
  CHECK(std::isnan(ops::sum_of_squares(ctx, tensor)));
  CHECK(std::isinf(ops::max_abs(ctx, tensor)));
  Guarded sums(DType::kF64, {3});
  ops::sum_of_squares(ctx, Guarded(DType::kF32, {2}, {3, 4}), sums.view().rows(0, 1));
  ops::sum_of_squares(ctx, Guarded(DType::kF32, {0}), sums.view().rows(1, 1));
  ops::sum_of_squares(ctx, Guarded(DType::kF64, {1}, {-2}), sums.view().rows(2, 1));
  CHECK(sums.values() == Values{25, 0, 4});
}

TEST_CASE("reduce: as many parts as there can be fit into what is planned for a device",
          "[any device]") {
  device::Stream stream(device::cpu());
  device::Arena measured;
  Context plan{device::cpu(), stream, measured, 1};
  ops::plan_kernels(plan, {}, DType::kF32);
  device::Arena workspace(test_device(), measured.high_water());
  Context ctx{test_device(), test_stream(), workspace, 1};
  // A part has 4096 elements at least.
  const std::int64_t count = ops::kMaxReduceParts * 4096 + 1;
  Guarded x(DType::kF32, {count}, Values(std::size_t(count), 1.0));
  CHECK(ops::sum(ctx, x) == double(count));
}

}  // namespace pecan::test
