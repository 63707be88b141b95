#include "comm/peer_group.hpp"

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include <pecan/core/error.hpp>

#include <pecan/device/context.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::comm {
namespace {

using Counts = std::vector<std::int64_t>;
constexpr Tag kTag{Purpose::kTest, kNoLayer};

TEST_CASE("arguments that do not fit are refused before anything is sent", "[comm]") {
  const auto group = make_self_group();
  device::Stream stream(device::cpu());
  device::Arena arena;
  Context ctx{device::cpu(), stream, arena};
  std::vector<float> a(4), b(4);
  const TensorView x = view_of(std::span(a)), y = view_of(std::span(b));
  const Counts four{4}, three{3}, two_members{2, 2}, negative{-4};
  std::vector<std::int32_t> c(4);
  const TensorView ints = view_of(std::span(c));
  const TensorView nowhere{nullptr, DType::kF32, {4}};
  const TensorView bytes{x.data, DType::kU8, {16}};

  CHECK_THROWS_WITH((void)group->all_gather_v(ctx, x, two_members, y, kTag),
                    Catch::Contains("2 counts for 1 members"));
  CHECK_THROWS_AS((void)group->all_gather_v(ctx, x, three, y, kTag), ShapeError);
  CHECK_THROWS_AS((void)group->all_gather_v(ctx, x.rows(0, 3), four, y, kTag), ShapeError);
  CHECK_THROWS_AS((void)group->all_gather_v(ctx, x, four, ints, kTag), ShapeError);
  CHECK_THROWS_AS(
      (void)group->reduce_scatter_v(ctx, x.rows(0, 3), three, x.rows(1, 3), ReduceOp::kSum, kTag),
      ShapeError);
  CHECK_THROWS_AS((void)group->reduce_scatter_v(ctx, x, three, y, ReduceOp::kSum, kTag),
                  ShapeError);
  CHECK_THROWS_AS((void)group->reduce_scatter_v(ctx, x, four, y.rows(0, 3), ReduceOp::kSum, kTag),
                  ShapeError);
  CHECK_THROWS_AS((void)group->all_to_all_v(ctx, x, four, x, four, kTag), ShapeError);
  CHECK_THROWS_AS((void)group->all_to_all_v(ctx, x, four, y.rows(0, 3), three, kTag), ShapeError);
  CHECK_THROWS_WITH((void)group->all_to_all_v(ctx, x, negative, y, four, kTag),
                    Catch::Contains("-4"));
  CHECK_THROWS_AS((void)group->all_reduce(ctx, bytes, ReduceOp::kSum, kTag), ShapeError);
  CHECK_THROWS_WITH((void)group->all_reduce(ctx, nowhere, ReduceOp::kSum, kTag),
                    Catch::Contains("measuring"));
  CHECK_THROWS_WITH((void)group->broadcast(ctx, x, Rank{1}, kTag), Catch::Contains("rank 1"));
  CHECK_THROWS_AS((void)group->send(ctx, x, Rank{-1}, kTag), ShapeError);
  CHECK_THROWS_AS((void)group->receive(ctx, x, Rank{1}, kTag), ShapeError);
  Context on_gpu{device::Device{device::DeviceKind::kCuda, 0}, stream, arena};
  CHECK_THROWS_AS((void)group->broadcast(on_gpu, x, Rank{0}, kTag), NotConfigured);
  CHECK(group->traffic(Purpose::kTest).calls == 0);
  group->all_gather_v(ctx, x, four, x, kTag).wait();
  CHECK(group->traffic(Purpose::kTest).calls == 1);
}

TEST_CASE("bf16 is moved as it is", "[comm]") {
  const auto group = make_self_group();
  device::Stream stream(device::cpu());
  device::Arena arena;
  Context ctx{device::cpu(), stream, arena};
  std::vector<std::uint16_t> from = {0x3f80, 0x7fc1}, to(2);
  const Counts two{2};
  const ConstTensorView input(reinterpret_cast<const std::byte*>(from.data()), DType::kBF16, {2});
  const TensorView output{reinterpret_cast<std::byte*>(to.data()), DType::kBF16, {2}};
  group->all_to_all_v(ctx, input, two, output, two, kTag).wait();
  CHECK(to == from);
}

TEST_CASE("an all_reduce takes the scratch memory that the plan says", "[comm]") {
  for (const int size : {1, 2, 3, 4}) {
    for (const std::int64_t count : {1, 500, 1024, 4099, 100'003}) {
      CAPTURE(size, count);
      std::mutex mutex;
      std::size_t most = 0;
      run_thread_group(size, [&](Group& group) {
        device::Stream stream{device::cpu()};
        device::Arena workspace;
        Context ctx{device::cpu(), stream, workspace};
        std::vector<float> values(std::size_t(count), 1.0F);
        for (int repeat = 0; repeat < 2; ++repeat) {
          group.all_reduce(ctx, view_of(std::span(values)), ReduceOp::kSum, {Purpose::kTest})
              .wait();
        }
        const std::lock_guard lock(mutex);
        most = std::max(most, group.scratch_bytes());
      });
      CHECK(most == plan_all_reduce_scratch(count, DType::kF32, size));
    }
  }
}

TEST_CASE("scratch memory is used again", "[comm]") {
  Family family(std::make_shared<AbortFlag>(), {});
  device::Buffer first = family.take_scratch(5000);
  CHECK(first.size() >= 5000);
  const std::byte* const memory = first.data();
  device::Buffer other = family.take_scratch(5000);
  CHECK(other.data() != memory);
  family.return_scratch(std::move(first));
  CHECK(family.take_scratch(100).data() != memory);
  CHECK(family.take_scratch(8000).data() == memory);
}

}  // namespace
}  // namespace pecan::comm
