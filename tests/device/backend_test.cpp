#include <cstring>
#include <numeric>
#include <vector>

#include <pecan/core/error.hpp>

#include <pecan/device/arena.hpp>
#include <pecan/device/backend.hpp>
#include <pecan/device/device.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"
#include "support/test_device.hpp"

namespace pecan::test {
namespace {

using device::Buffer;
using device::Event;
using device::HostRegistration;
using device::PinnedBuffer;
using device::Stream;

std::vector<std::int32_t> numbers(std::size_t count, std::int32_t first) {
  std::vector<std::int32_t> values(count);
  std::iota(values.begin(), values.end(), first);
  return values;
}

TensorView view_in(const Buffer& buffer) {
  return {buffer.data(), DType::kI32, Shape{std::int64_t(buffer.size() / 4)}};
}

TEST_CASE("bytes come back from a device as they were sent", "[any device]") {
  Stream stream(test_device());
  for (const std::size_t count : {0, 1, 63, 1000, 100'003}) {
    const std::vector<std::int32_t> sent = numbers(count, -7);
    std::vector<std::int32_t> received(count, 0);
    const Buffer buffer(test_device(), count * 4);
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % device::kBufferAlignment == 0);
    device::upload(stream, const_view_of(std::span(sent)), view_in(buffer));
    device::download(stream, view_in(buffer), view_of(std::span(received)));
    stream.synchronize();
    CHECK(received == sent);
  }
  std::vector<std::int32_t> two(2);
  const Buffer buffer(test_device(), 12);
  CHECK_THROWS_AS(device::upload(stream, view_of(std::span(two)), view_in(buffer)), ShapeError);
  CHECK_THROWS_AS(device::download(stream, view_in(buffer), view_of(std::span(two))), ShapeError);
}

TEST_CASE("memory that is not registered has been read when an upload returns", "[any device]") {
  Stream stream(test_device());
  std::vector<std::int32_t> sent = numbers(100'003, 3), received(sent.size());
  const std::vector<std::int32_t> first = sent;
  const Buffer buffer(test_device(), sent.size() * 4);
  device::upload(stream, view_of(std::span(sent)), view_in(buffer));
  std::fill(sent.begin(), sent.end(), 0);
  device::download(stream, view_in(buffer), view_of(std::span(received)));
  stream.synchronize();
  CHECK(received == first);
}

TEST_CASE("a stream that waits for an event sees what was done before it", "[any device]") {
  Stream first(test_device()), second(test_device());
  const Buffer buffer(test_device(), 4000);
  PinnedBuffer sent(test_device(), 4000), received(test_device(), 4000);
  const std::vector<std::int32_t> values = numbers(1000, 5);
  std::memcpy(sent.data(), values.data(), 4000);
  device::upload(first, view_in(sent), view_in(buffer));
  Event uploaded = first.record();
  second.wait(uploaded);
  device::download(second, view_in(buffer), view_in(received));
  Event downloaded(test_device());
  CHECK(downloaded.complete());  // not recorded yet
  second.record(downloaded);
  downloaded.wait();
  CHECK(downloaded.complete());
  CHECK(uploaded.complete());
  CHECK(std::memcmp(received.data(), values.data(), 4000) == 0);
}

TEST_CASE("handles move, and are empty after it", "[any device]") {
  Stream stream(test_device());
  void* const handle = stream.handle();
  Stream moved(std::move(stream));
  CHECK(moved.handle() == handle);
  CHECK(stream.handle() == nullptr);  // NOLINT: empty after a move is the contract
  Stream& self = moved;
  moved = std::move(self);
  CHECK(moved.handle() == handle);
  CHECK(moved.device() == test_device());

  Event event = moved.record();
  Event other(test_device());
  other = std::move(event);
  other.wait();
  CHECK(event.complete());  // NOLINT
  moved.wait(event);        // NOLINT: an empty event is complete

  Buffer a(test_device(), 8);
  std::byte* const memory = a.data();
  Buffer b;
  b = std::move(a);
  CHECK(b.data() == memory);
  CHECK(a.data() == nullptr);  // NOLINT
  a = std::move(b);
  CHECK(a.data() == memory);
}

TEST_CASE("host memory of somebody else is registered while it is wanted", "[any device]") {
  std::vector<std::int32_t> memory = numbers(5000, 1);
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(memory));
  Stream stream(test_device());
  const Buffer buffer(test_device(), bytes.size());
  {
    HostRegistration registration(test_device(), bytes);
    HostRegistration kept(std::move(registration));
    device::upload(stream, view_of(std::span(memory)), view_in(buffer));
    stream.synchronize();
  }
  // Given back: it may be registered again.
  const HostRegistration again(test_device(), bytes);
  std::fill(memory.begin(), memory.end(), 0);
  device::download(stream, view_in(buffer), view_of(std::span(memory)));
  stream.synchronize();
  CHECK(memory == numbers(5000, 1));
}

TEST_CASE("a pinned buffer is unlocked before it is freed, also by assignment", "[any device]") {
  // More than the host's allocator keeps when it is freed: the emulation sees that it is gone.
  constexpr std::size_t kLarge = std::size_t(8) << 20;
  PinnedBuffer buffer(test_device(), kLarge);
  buffer = PinnedBuffer(test_device(), 64);
  CHECK(buffer.size() == 64);
  PinnedBuffer& self = buffer;
  buffer = std::move(self);
  Stream stream(test_device());
  const Buffer there(test_device(), 64);
  std::memset(buffer.data(), 3, 64);
  device::upload(stream, view_in(buffer), view_in(there));
  std::vector<std::int32_t> received(16);
  device::download(stream, view_in(there), view_of(std::span(received)));
  stream.synchronize();
  CHECK(received == std::vector<std::int32_t>(16, 0x03030303));
}

TEST_CASE("an arena makes one allocation, whatever is taken from it", "[any device]") {
  device::Backend* const backend = test_device().backend;
  const auto made = [&] { return backend == nullptr ? 0 : backend->num_allocations(); };
  const std::int64_t before = made();
  device::Arena arena(test_device(), 1 << 16);
  CHECK(made() == before + (backend == nullptr ? 0 : 1));
  for (int i = 0; i < 100; ++i) {
    const device::ArenaScope scope(arena);
    CHECK(arena.allocate(DType::kF32, {100, 100}).data != nullptr);
  }
  CHECK(made() == before + (backend == nullptr ? 0 : 1));
}

TEST_CASE("what a device cannot do is said with figures", "[any device]") {
  device::Backend* const backend = test_device().backend;
  if (backend == nullptr) return;
  constexpr std::size_t kTooMuch = std::size_t(1) << 46;
  CHECK_THROWS_WITH(Buffer(test_device(), kTooMuch), Catch::Contains(std::to_string(kTooMuch)));
  const Buffer fits(test_device(), 64);  // the failure leaves nothing behind
  CHECK(fits.data() != nullptr);
  CHECK_FALSE(device::open_cuda(99).ok());
  const device::DeviceProperties properties = backend->properties(0);
  CHECK(properties.compute_major >= 8);
  CHECK(properties.multiprocessors > 0);
  CHECK(properties.shared_bytes >= 48 << 10);
}

TEST_CASE("without a CUDA driver the library says so", "[.real library]") {
  const Result<device::Device> opened = device::open_cuda(0);
  if (opened.ok()) return;  // there is one
  CHECK_THAT(opened.status().message, Catch::Contains("there is no CUDA driver on this machine"));
}

TEST_CASE("a library that is not there is named, with what to do", "[.no library]") {
  const Result<device::Device> opened = device::open_cuda(0);
  REQUIRE_FALSE(opened.ok());
  CHECK_THAT(opened.status().message, Catch::Contains("/nowhere/libpecan_cuda.so"));
  CHECK_THAT(opened.status().message, Catch::Contains("PECAN_CUDA_LIBRARY"));
}

}  // namespace
}  // namespace pecan::test
