#include "ops/checks.hpp"

#include <pecan/ops/elementwise.hpp>

#include "ops/op_test.hpp"

namespace pecan::test {

TEST_CASE("checks: messages name the operator, the tensor and what it has") {
  OpContext ctx;
  Guarded a(DType::kF32, {2, 3}, Values(6)), b(DType::kF32, {3, 2}, Values(6));
  try {
    ops::add(ctx, a, b, a);
    FAIL("no error");
  } catch (const ShapeError& error) {
    const std::string message = error.what();
    CHECK(message.find("add: b is f32 [3, 2]") != std::string::npos);
    CHECK(message.find("f32 [2, 3]") != std::string::npos);
  }
}

TEST_CASE("checks: overlap is found to the byte") {
  Guarded x(DType::kF32, {10}, Values(10));
  const ops::detail::Checks check("op");
  const TensorView all = x.view();
  CHECK_THROWS_AS(check.disjoint("a", all.rows(0, 5), "b", all.rows(4, 2)), ShapeError);
  CHECK_NOTHROW(check.disjoint("a", all.rows(0, 5), "b", all.rows(5, 5)));
  CHECK_NOTHROW(check.disjoint("a", all.rows(0, 10), "b", all.rows(4, 0)));
  CHECK_NOTHROW(check.same_or_disjoint("a", all, "b", all));
  CHECK_THROWS_AS(check.same_or_disjoint("a", all.rows(0, 5), "b", all.rows(0, 4)), ShapeError);
}

TEST_CASE("checks: integer tensors and foreign devices are refused") {
  OpContext cpu;
  Guarded whole(DType::kI32, {2}, Values(2));
  CHECK_THROWS_AS(ops::scale(cpu, 2, whole), ShapeError);
  device::Stream stream(device::cpu());
  device::Arena arena;
  Context cuda{{device::DeviceKind::kCuda, 0}, stream, arena, 1};
  Guarded x(DType::kF32, {2}, Values(2));
  CHECK_THROWS_AS(ops::scale(cuda, 2, x), NotConfigured);
}

}  // namespace pecan::test
