#include <pecan/device/limits.hpp>

#include "support/catch.hpp"

namespace pecan::device {

TEST_CASE("limits are measured for every type, and bf16 is multiplied as fast as fp32 at least",
          "[device]") {
  const MachineLimits limits = measure_limits(2);
  // Far below any machine that can run the rest, far above any that exists.
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    CHECK(limits.flops(dtype) > 1e6);
    CHECK(limits.flops(dtype) < 1e16);
  }
  CHECK(limits.flops(DType::kBF16) >= limits.flops(DType::kF32));
  CHECK(limits.flops(DType::kF64) < limits.flops(DType::kF32));
  CHECK(limits.memory_bytes > 1e6);
  CHECK(limits.memory_bytes < 1e14);
}

}  // namespace pecan::device
