#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include <pecan/core/error.hpp>

#include <pecan/device/context.hpp>
#include <pecan/device/device.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::device {
namespace {

bool all_zero(const Buffer& buffer) {
  return std::all_of(
      buffer.bytes().begin(), buffer.bytes().end(), [](std::byte b) { return b == std::byte{0}; });
}

TEST_CASE("a buffer is aligned, zeroed and of its size", "[device]") {
  for (const std::size_t num_bytes : {0, 1, 63, 64, 65, 100'000}) {
    const Buffer buffer(cpu(), num_bytes);
    CHECK(buffer.size() == num_bytes);
    CHECK((buffer.data() == nullptr) == (num_bytes == 0));
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % kBufferAlignment == 0);
    CHECK(all_zero(buffer));
  }
  CHECK(PinnedBuffer(7).size() == 7);
}

TEST_CASE("a buffer moves and leaves nothing behind", "[device]") {
  Buffer a(cpu(), 8);
  a.data()[3] = std::byte{42};
  std::byte* const memory = a.data();

  Buffer b(std::move(a));
  CHECK(a.data() == nullptr);  // NOLINT: empty after a move is the contract
  CHECK(a.size() == 0);
  CHECK(b.data() == memory);

  Buffer c(cpu(), 16);
  c = std::move(b);
  CHECK(c.data() == memory);
  CHECK(c.size() == 8);
  CHECK(b.data() == nullptr);  // NOLINT
  CHECK(b.size() == 0);        // NOLINT

  Buffer& self = c;
  c = std::move(self);
  CHECK(c.data() == memory);
  CHECK(c.size() == 8);
  CHECK(c.data()[3] == std::byte{42});
  a = std::move(b);  // both empty: destroyed twice over without harm
  CHECK(a.size() == 0);
}

TEST_CASE("a buffer that cannot be made names its size", "[device]") {
  CHECK_THROWS_AS(Buffer(Device{DeviceKind::kCuda, 1}, 64), DeviceError);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they end the process instead
  constexpr std::size_t kTooMuch = std::numeric_limits<std::ptrdiff_t>::max() / 2;
  CHECK_THROWS_WITH(Buffer(cpu(), kTooMuch), Catch::Contains(std::to_string(kTooMuch)));
  CHECK_THROWS_AS(Buffer(cpu(), kTooMuch), DeviceError);
#endif
}

TEST_CASE("a CPU stream has done everything when asked", "[device]") {
  Stream stream(cpu());
  Arena arena;
  const Context ctx{cpu(), stream, arena, 1};
  const Event event = ctx.stream.record();
  CHECK(event.complete());
  ctx.stream.wait(event);
  ctx.stream.synchronize();
  CHECK(ctx.stream.device() == cpu());
}

}  // namespace
}  // namespace pecan::device
