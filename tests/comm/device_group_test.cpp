/// Device groups over Thread groups, each rank with a device of its own; run where a library of
/// CUDA kernels is named (tests/kernels).

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <pecan/core/error.hpp>

#include <pecan/device/backend.hpp>
#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

#include "comm/conformance.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::comm {
namespace {

using namespace std::chrono_literals;
constexpr Tag kTag{Purpose::kTest, kNoLayer};

device::Device device_of(const Group& group) {
  const Result<device::Device> opened = device::open_cuda(group.rank().value);
  if (!opened.ok()) throw DeviceError(opened.status().message);
  return opened.value();
}

TEST_CASE("device groups of every size conform, with the bits of the host's", "[.device group]") {
  for (const int size : {1, 2, 3, 4}) {
    CAPTURE(size);
    std::vector<test::Conformance> on_host(static_cast<std::size_t>(size)), on_device(on_host);
    GroupOptions options{.timeout = 30s};
    if (size == 3) options.device_scratch_bytes = 1;  // many parts
    run_thread_group(
        size,
        [&](Group& host) {
          const auto rank = std::size_t(host.rank().value);
          on_host[rank] = test::check_conformance(host);
          const auto group = make_device_group(host, device_of(host), options);
          on_device[rank] = test::check_conformance(*group, nullptr, device_of(host));
        },
        options);
    for (std::size_t rank = 0; rank < on_host.size(); ++rank) {
      CHECK(on_device[rank].failures == std::vector<std::string>{});
      CHECK(on_device[rank].digest == on_host[rank].digest);
    }
  }
}

/// What one rank has on its device.
struct Member {
  explicit Member(device::Device where)
      : device(where), stream(where), memory(where, 3 * kCount * sizeof(float)) {
    const std::vector<float> ones(3 * kCount, 1.0F);
    device::upload(stream, const_view_of(std::span(ones)), all());
  }
  static constexpr std::int64_t kCount = 3000;
  device::Device device;
  device::Stream stream;
  device::Arena no_workspace;
  Context ctx{device, stream, no_workspace};
  device::Buffer memory;
  [[nodiscard]] TensorView all() const { return {memory.data(), DType::kF32, Shape{3 * kCount}}; }
  [[nodiscard]] TensorView view(int part = 0) const { return all().rows(part * kCount, kCount); }
  /// The first element of a part, when the stream has come to it.
  [[nodiscard]] float first(int part = 0) {
    float value = 0;
    device::download(stream, view(part).rows(0, 1), view_of(std::span(&value, 1)));
    stream.synchronize();
    return value;
  }
};

/// A message on the host, by which members of a test wait for each other.
void tell(Group& host, Rank to) {
  std::int32_t word = 1;
  device::Stream stream(device::cpu());
  device::Arena none;
  Context ctx{device::cpu(), stream, none};
  host.send(ctx, view_of(std::span(&word, 1)), to, kTag).wait();
}
void hear(Group& host, Rank from) {
  std::int32_t word = 0;
  device::Stream stream(device::cpu());
  device::Arena none;
  Context ctx{device::cpu(), stream, none};
  host.receive(ctx, view_of(std::span(&word, 1)), from, kTag).wait();
}

/// Text of the error that `body` throws on each rank; empty where it throws none.
std::vector<std::string> errors_of(
    int size,
    const GroupOptions& options,
    const std::function<void(Group& host, Group& group, Member& member)>& body) {
  std::vector<std::string> errors(static_cast<std::size_t>(size));
  run_thread_group(size,
                   [&](Group& host) {
                     Member member(device_of(host));
                     try {
                       const auto group = make_device_group(host, member.device, options);
                       body(host, *group, member);
                     } catch (const CommError& error) {
                       errors[std::size_t(host.rank().value)] = error.what();
                     }
                   },
                   {.timeout = 30s});
  return errors;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void expect_silence(const std::vector<std::string>& errors) {
  for (const std::string& error : errors) CHECK(error == "");
}

TEST_CASE("waiting for a collective on the device does not block the host", "[.device group]") {
  expect_silence(errors_of(2, {.timeout = 30s}, [](Group& host, Group& group, Member& member) {
    const Rank other{1 - host.rank().value};
    // From locked memory: then nothing but the stream knows when it is there.
    const device::PinnedBuffer pinned(member.device, Member::kCount * sizeof(float));
    const TensorView twos{pinned.data(), DType::kF32, Shape{Member::kCount}};
    if (host.rank() == Rank{1}) {
      Pending pending = group.broadcast(member.ctx, member.view(), Rank{0}, kTag);
      if (pending.test()) throw CommError("complete before it was sent");
      pending.wait();
      tell(host, other);
    } else {
      hear(host, other);
      std::ranges::fill(twos.as<float>(), 2.0F);
      device::upload(member.stream, twos, member.view());
      group.broadcast(member.ctx, member.view(), Rank{0}, kTag).wait();
    }
    if (member.first() != 2.0F) throw CommError("the stream did not wait");
  }));
}

TEST_CASE("messages wait for what their streams did before, and streams for them",
          "[.device group]") {
  expect_silence(errors_of(2, {.timeout = 30s}, [](Group& host, Group& group, Member& member) {
    const device::PinnedBuffer pinned(member.device, Member::kCount * sizeof(float));
    const TensorView values{pinned.data(), DType::kF32, Shape{Member::kCount}};
    std::ranges::fill(values.as<float>(), host.rank() == Rank{0} ? 2.0F : 3.0F);
    // On the one rank what is sent is written, on the other what is received still written and
    // read.
    device::upload(member.stream, values, member.view());
    if (host.rank() == Rank{0}) {
      group.send(member.ctx, member.view(), Rank{1}, kTag).wait();
      device::upload(member.stream, values, member.view());
    } else {
      device::download(member.stream, member.view(), values);
      group.receive(member.ctx, member.view(), Rank{0}, kTag).wait();
    }
    if (member.first() != 2.0F) throw CommError("a message did not wait, or was not waited for");
  }));
}

TEST_CASE("half of a message to itself waits for the other one, past a collective",
          "[.device group]") {
  expect_silence(errors_of(1, {.timeout = 30s}, [](Group&, Group& group, Member& member) {
    const std::vector<float> twos(Member::kCount, 2.0F);
    device::upload(member.stream, const_view_of(std::span(twos)), member.view());
    Pending sent = group.send(member.ctx, member.view(), Rank{0}, kTag);
    group.all_reduce(member.ctx, member.view(2), ReduceOp::kSum, kTag).wait();
    group.receive(member.ctx, member.view(1), Rank{0}, kTag).wait();
    sent.wait();
    if (member.first(1) != 2.0F) throw CommError("the message is another one");
  }));
}

TEST_CASE("whoever waits in one group has issued its messages of all groups", "[.device group]") {
  expect_silence(errors_of(2, {.timeout = 10s}, [](Group& host, Group& group, Member& member) {
    const auto twin = group.split(0, host.rank().value);
    if (host.rank() == Rank{0}) {
      Pending sent = twin->send(member.ctx, member.view(), Rank{1}, kTag);
      group.receive(member.ctx, member.view(1), Rank{1}, kTag).wait();
      member.stream.synchronize();
      sent.wait();
    } else {
      twin->receive(member.ctx, member.view(), Rank{0}, kTag).wait();
      member.stream.synchronize();
      group.send(member.ctx, member.view(1), Rank{0}, kTag).wait();
    }
  }));
}

TEST_CASE("messages and collectives go in the order in which they were begun", "[.device group]") {
  // A broadcast is a message too: the members must agree on which comes first.
  expect_silence(errors_of(2, {.timeout = 5s}, [](Group& host, Group& group, Member& member) {
    const std::vector<float> numbers(Member::kCount, float(host.rank().value + 2));
    device::upload(member.stream, const_view_of(std::span(numbers)), member.view());
    const TensorView part = member.view(1).rows(0, 100);
    if (host.rank() == Rank{0}) {
      Pending message = group.send(member.ctx, member.view().rows(0, 100), Rank{1}, kTag);
      group.broadcast(member.ctx, member.view(2), Rank{0}, kTag).wait();
      message.wait();
    } else {
      group.receive(member.ctx, part, Rank{0}, kTag).wait();
      group.broadcast(member.ctx, member.view(2), Rank{0}, kTag).wait();
      if (member.first(1) != 2.0F) throw CommError("the message is another one");
    }
    if (member.first(2) != 1.0F) throw CommError("the broadcast is another message");
  }));
}

TEST_CASE("a collective of one group goes on beside one of another", "[.device group]") {
  expect_silence(errors_of(3, {.timeout = 30s}, [](Group& host, Group& group, Member& member) {
    const int rank = host.rank().value;
    const auto pair = group.split(rank / 2, 0);
    if (rank == 2) {
      hear(host, Rank{0});
      hear(host, Rank{1});
      group.broadcast(member.ctx, member.view(), Rank{2}, kTag).wait();
      return;
    }
    Pending late = group.broadcast(member.ctx, member.view(), Rank{2}, kTag);
    Pending soon = pair->broadcast(member.ctx, member.view(1), Rank{0}, kTag);
    while (!soon.test()) std::this_thread::yield();
    if (late.test()) throw CommError("complete before it was sent");
    tell(host, Rank{2});
    late.wait();
  }));
}

TEST_CASE("collectives make no allocation, and count what they send", "[.device group]") {
  constexpr std::int64_t kBytes = Member::kCount * std::int64_t(sizeof(float));
  expect_silence(errors_of(3, {.timeout = 30s}, [](Group& host, Group& group, Member& member) {
    const std::vector<std::int64_t> counts(3, Member::kCount / 3);
    const auto wait = [&] {  // none is made while others still begin
      if (host.rank() == Rank{0}) {
        for (const int rank : {1, 2}) hear(host, Rank{rank});
        for (const int rank : {1, 2}) tell(host, Rank{rank});
      } else {
        tell(host, Rank{0});
        hear(host, Rank{0});
      }
    };
    wait();
    const std::int64_t before = member.device.backend->num_allocations();
    const std::int64_t sent = group.traffic(Purpose::kTest).sent_bytes;
    wait();
    for (int round = 0; round < 100; ++round) {
      group.all_reduce(member.ctx, member.view(), ReduceOp::kMax, kTag).wait();
      group.all_gather_v(member.ctx, member.view(1).rows(0, counts[0]), counts, member.view(), kTag)
          .wait();
    }
    member.stream.synchronize();
    wait();
    if (member.device.backend->num_allocations() != before) throw CommError("an allocation");
    if (group.traffic(Purpose::kTest).sent_bytes - sent < 100 * (kBytes / 3 * 4 + kBytes / 3 * 2)) {
      throw CommError("bytes were not counted");
    }
    const std::size_t scratch = group.scratch_bytes() - host.scratch_bytes();
    if (scratch != plan_device_scratch_bytes(3)) throw CommError("scratch is not as planned");
  }));
}

TEST_CASE("a time-out on the device says who waited, in what, and for whom", "[.device group]") {
  const auto errors = errors_of(4, {.timeout = 1s}, [](Group& host, Group& group, Member& member) {
    group.set_step(Step{120});
    const int rank = host.rank().value;
    const auto half = group.split(rank / 2, 0);
    half->all_reduce(member.ctx, member.view(), ReduceOp::kSum, kTag).wait();
    if (rank == 3) {
      std::this_thread::sleep_for(4s);
      group.broadcast(member.ctx, member.view(), Rank{0}, kTag).wait();
      return;
    }
    half->all_reduce(member.ctx, member.view(), ReduceOp::kSum, {Purpose::kDispatch, LayerId{7}})
        .wait();
    member.stream.synchronize();
    group.broadcast(member.ctx, member.view(), Rank{3}, kTag).wait();
    member.stream.synchronize();
    group.broadcast(member.ctx, member.view(), Rank{3}, kTag).wait();
  });
  CAPTURE(errors);
  bool is_named = false;
  for (const std::string& error : errors) {
    CHECK(error != "");
    is_named = is_named || ((contains(error, "(dispatch, layer 7, step 120)") ||
                             contains(error, "(test, step 120)")) &&
                            contains(error, "data is missing from rank 3"));
  }
  CHECK(is_named);
}

TEST_CASE("who waits in another group is said to be there, not in the own collective",
          "[.device group]") {
  // Both are the second of their group, so that the groups have to be told apart.
  const auto errors = errors_of(3, {.timeout = 3s}, [](Group& host, Group& group, Member& member) {
    const int rank = host.rank().value;
    const auto pair = group.split(rank == 1 ? 1 : 0, 0);
    Group& entered = rank == 2 ? *pair : group;
    const Tag tag{rank == 2 ? Purpose::kDispatch : Purpose::kGradients, LayerId{7}};
    entered.all_reduce(member.ctx, member.view(), ReduceOp::kSum, tag).wait();
    member.stream.synchronize();
    entered.all_reduce(member.ctx, member.view(), ReduceOp::kSum, tag).wait();
  });
  CAPTURE(errors);
  bool is_named = false;
  for (const std::string& error : errors) {
    CHECK(error != "");
    CHECK(!contains(error, "all of its ranks are there"));
    is_named = is_named || contains(error, "rank 2 waits in all_reduce #1 (dispatch, layer 7") ||
               contains(error, "rank 0 waits in all_reduce #1 (gradients, layer 7");
  }
  CHECK(is_named);
}

TEST_CASE("an abort ends what is under way on all devices", "[.device group]") {
  const auto start = std::chrono::steady_clock::now();
  const auto errors = errors_of(3, {.timeout = 30s}, [](Group& host, Group& group, Member& member) {
    if (host.rank() == Rank{0}) {
      std::this_thread::sleep_for(50ms);
      group.abort("the disk is gone");
    } else {
      group.broadcast(member.ctx, member.view(), Rank{0}, kTag).wait();
      member.stream.synchronize();  // its end, not its content
    }
    group.broadcast(member.ctx, member.view(), Rank{0}, kTag).wait();
  });
  for (const std::string& error : errors) CHECK_THAT(error, Catch::Contains("the disk is gone"));
  CHECK(std::chrono::steady_clock::now() - start < 20s);
}

TEST_CASE("an abort ends what is under way on the host too", "[.device group]") {
  const auto errors = errors_of(2, {.timeout = 30s}, [](Group& host, Group& group, Member&) {
    if (host.rank() == Rank{0}) group.abort("the disk is gone");
    hear(host, Rank{1 - host.rank().value});
  });
  for (const std::string& error : errors) CHECK_THAT(error, Catch::Contains("the disk is gone"));
}

TEST_CASE("whoever waits for, or asks after, what an abort has ended is told of it",
          "[.device group]") {
  const auto errors = errors_of(2, {.timeout = 30s}, [](Group& host, Group& group, Member& member) {
    const Rank other{1 - host.rank().value};
    Pending never = group.receive(member.ctx, member.view(), other, kTag);
    if (host.rank() == Rank{0}) {
      hear(host, other);
      group.abort("the disk is gone");
      never.wait();
    } else {
      (void)never.test();  // it is issued
      tell(host, other);
      while (!never.test()) std::this_thread::yield();
    }
  });
  for (const std::string& error : errors) CHECK_THAT(error, Catch::Contains("the disk is gone"));
}

TEST_CASE("an error of NCCL is noticed by whoever waits for something else on the host",
          "[.device group]") {
  // Rank 0's end of a communicator goes without a word on the host, and rank 1 ends all of its own.
  // Either says so, after the 12 s in which its own thread might say more.
  const auto errors = errors_of(2, {.timeout = 60s}, [](Group& host, Group& group, Member& member) {
    auto twin = group.split(0, host.rank().value);
    twin->all_reduce(member.ctx, member.view(), ReduceOp::kSum, kTag).wait();
    member.stream.synchronize();
    if (host.rank() == Rank{0}) {
      hear(host, Rank{1});
      try {
        const auto gone = std::move(twin);
        gone->receive(member.ctx, member.view(), Rank{1}, kTag).wait();
        throw DataError("no such file");
      } catch (const DataError&) {
        hear(host, Rank{1});
      }
    } else {
      twin->receive(member.ctx, member.view(), Rank{0}, kTag).wait();
      tell(host, Rank{0});
      hear(host, Rank{0});
    }
  });
  for (const std::string& error : errors) {
    CHECK_THAT(error, Catch::Contains("gave up") && Catch::Contains("since NCCL says"));
  }
}

TEST_CASE("a member that throws with a message under way ends the group", "[.device group]") {
  const auto errors = errors_of(2, {.timeout = 30s}, [](Group& host, Group& group, Member& member) {
    if (host.rank() == Rank{0}) {
      try {
        const Pending pending = group.receive(member.ctx, member.view(), Rank{1}, kTag);
        throw DataError("no such file");
      } catch (const DataError&) {
        group.broadcast(member.ctx, member.view(), Rank{0}, kTag).wait();
      }
    }
    hear(host, Rank{0});
  });
  for (const std::string& error : errors) {
    CHECK_THAT(error, Catch::Contains("rank 0 gave up receive because of an exception"));
  }
}

TEST_CASE("a member that throws with a collective on its stream ends the group at once",
          "[.device group]") {
  // Nobody holds a Pending any more. A group that waited would say that it was not idle in time.
  CHECK_THROWS_AS(errors_of(2,
                            {.timeout = 10s},
                            [](Group& host, Group& group, Member& member) {
                              if (host.rank() == Rank{0}) {
                                group.broadcast(member.ctx, member.view(), Rank{1}, kTag).wait();
                                throw DataError("no such file");
                              }
                              hear(host, Rank{0});
                            }),
                  DataError);
}

TEST_CASE("a group that ends before its stream is done waits, and says who is missing",
          "[.device group]") {
  const pecan::test::ExpectLog log;
  (void)errors_of(2, {.timeout = 3s}, [](Group& host, Group& group, Member& member) {
    if (host.rank() == Rank{0}) {
      group.broadcast(member.ctx, member.view(), Rank{1}, kTag).wait();
    } else {
      hear(host, Rank{0});
    }
  });
  CHECK(log.contains("data is missing from rank 1"));
}

TEST_CASE("what a device group cannot do is refused", "[.device group]") {
  expect_silence(errors_of(1, {.timeout = 30s}, [](Group& host, Group& group, Member& member) {
    const auto refused = [](const auto& action, const std::string& why) {
      std::string said = "nothing";
      try {
        action();
      } catch (const Error& error) {
        said = error.what();
      }
      if (!contains(said, why)) throw CommError(fmt::format("not '{}' but: {}", why, said));
    };
    refused([&] { (void)host.all_reduce(member.ctx, member.view(), ReduceOp::kSum, kTag); },
            "moves host memory alone");
    refused([&] { (void)make_device_group(host, device::cpu()); }, "needs a CUDA device");
    device::Stream stream(device::open_cuda(1).value());
    Context elsewhere{stream.device(), stream, member.no_workspace};
    refused([&] { (void)group.all_reduce(elsewhere, member.view(), ReduceOp::kSum, kTag); },
            "all_reduce on CUDA device 1 by a group of device 0");
    Pending half = group.send(member.ctx, member.view(), Rank{0}, kTag);
    refused([&] { half.wait(); }, "whose other half was not begun");
    const std::vector<std::int64_t> counts = {1, 1};
    refused(
        [&] { (void)group.all_gather_v(member.ctx, member.view(), counts, member.view(1), kTag); },
        "was given 2 counts for 1 members");
  }));
}

TEST_CASE("an observer is told of collectives on device and host", "[.device group]") {
  std::vector<std::string> notes;
  GroupOptions options;
  options.observer = [&](const CollectiveNote& note) {
    notes.push_back(
        fmt::format("{} {} {}", note.sequence, note.operation, name_of(note.tag.purpose)));
  };
  const auto host = make_self_group();
  Member member(device_of(*host));
  const auto group = make_device_group(*host, member.device, options);
  group->all_reduce(member.ctx, member.view(), ReduceOp::kSum, {Purpose::kGradients}).wait();
  device::Stream stream(device::cpu());
  Context ctx{device::cpu(), stream, member.no_workspace};
  float one = 1;
  group->all_reduce(ctx, view_of(std::span(&one, 1)), ReduceOp::kSum, {Purpose::kLoss}).wait();
  CHECK(notes == std::vector<std::string>{"1 all_reduce gradients", "2 all_reduce loss"});
}

/// Where the environment says that one call of NCCL fails.
TEST_CASE("a communicator that cannot be made is refused on all ranks", "[.no communicator]") {
  std::vector<std::string> errors(2);
  run_thread_group(2,
                   [&](Group& host) {
                     try {
                       (void)make_device_group(host, device_of(host), {.timeout = 200ms});
                     } catch (const CommError& error) {
                       errors[std::size_t(host.rank().value)] = error.what();
                     }
                   },
                   {.timeout = 30s});
  for (const std::string& error : errors) {
    CHECK_THAT(error, Catch::Contains("cannot reach the devices of the others"));
  }
}

}  // namespace
}  // namespace pecan::comm
