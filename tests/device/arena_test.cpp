#include <cstdint>
#include <cstring>

#include <pecan/core/error.hpp>

#include <pecan/device/arena.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::device {
namespace {

/// Allocations of a made-up forward pass; the same calls plan and run.
void forward(Arena& arena, bool write) {
  const auto take = [&](DType dtype, const Shape& shape) {
    const TensorView view = arena.allocate(dtype, shape);
    if (write && view.num_bytes() > 0) std::memset(view.data, 0x5a, view.num_bytes());
  };
  const ArenaScope whole(arena);
  take(DType::kF32, {3, 5});
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    const ArenaScope scope(arena);
    take(DType::kU8, {1 + layer});
    take(DType::kF64, {17, 2, 2, 2});
    take(DType::kBF16, {0, 4});
    take(DType::kI64, {});
  }
  take(DType::kI32, {31});
}

TEST_CASE("an arena planned by the calls that run is exactly large enough", "[device]") {
  Arena plan;
  forward(plan, false);
  CHECK(plan.measuring());
  CHECK(plan.used() == 0);
  // 64 (3x5 f32) + the largest layer: 64 + 17 * 8 * 8 + 64.
  CHECK(plan.high_water() == 64 + 64 + 1088 + 64);

  Arena arena(cpu(), plan.high_water());
  forward(arena, true);
  CHECK_FALSE(arena.measuring());
  CHECK(arena.high_water() == plan.high_water());
  CHECK(arena.high_water() == arena.capacity());

  Arena tight(cpu(), plan.high_water() - 1);
  CHECK_THROWS_AS(forward(tight, true), InternalError);
}

TEST_CASE("arena views are aligned, apart, and null where only measured", "[device]") {
  Arena arena(cpu(), 256);
  const TensorView a = arena.allocate(DType::kU8, {65});
  const TensorView b = arena.allocate(DType::kF32, {2});
  CHECK(reinterpret_cast<std::uintptr_t>(a.data) % 64 == 0);
  CHECK(b.data == a.data + 128);
  CHECK(arena.used() == 192);
  const std::size_t mark = arena.mark();
  CHECK(arena.allocate(DType::kF32, {5, 0}).num_bytes() == 0);
  CHECK(arena.used() == mark);
  arena.release(0);
  CHECK(arena.allocate(DType::kF32, {1}).data == a.data);

  Arena plan;
  CHECK(plan.allocate(DType::kF32, {9}).data == nullptr);
  CHECK(plan.used() == 64);
}

TEST_CASE("an arena that overflows names what it has and what is needed", "[device]") {
  Arena arena(cpu(), 128);
  (void)arena.allocate(DType::kF32, {4});
  CHECK_THROWS_WITH(arena.allocate(DType::kF32, {5, 5}),
                    Catch::Contains("128 bytes") && Catch::Contains("f32 [5, 5]") &&
                        Catch::Contains("192 are needed"));
  CHECK(arena.used() == 64);
  CHECK(arena.high_water() == 64);
  (void)arena.allocate(DType::kF32, {16});
  CHECK(arena.used() == 128);
}

}  // namespace
}  // namespace pecan::device
