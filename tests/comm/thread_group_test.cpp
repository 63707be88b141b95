#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <pecan/core/error.hpp>

#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

#include "comm/conformance.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::comm {
namespace {

using namespace std::chrono_literals;
constexpr Tag kTag{Purpose::kTest, kNoLayer};

/// A context and some values of one member.
struct Member {
  device::Stream stream{device::cpu()};
  device::Arena arena;
  Context ctx{device::cpu(), stream, arena};
  std::vector<float> values = std::vector<float>(3000, 1.0F);
  [[nodiscard]] TensorView view() { return view_of(std::span(values)); }
};

/// Text of the error that `body` throws on each rank; empty where it throws none.
std::vector<std::string> errors_of(int size,
                                   GroupOptions options,
                                   const std::function<void(Group&, Member&)>& body) {
  std::vector<std::string> errors(static_cast<std::size_t>(size));
  run_thread_group(
      size,
      [&](Group& group) {
        Member member;
        try {
          body(group, member);
        } catch (const CommError& error) {
          errors[std::size_t(group.rank().value)] = error.what();
        }
      },
      options);
  return errors;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("a group of one conforms", "[comm]") {
  const auto group = make_self_group();
  CHECK(group->size() == 1);
  CHECK(group->rank() == Rank{0});
  CHECK(test::check_conformance(*group).failures == std::vector<std::string>{});
}

TEST_CASE("a profiled group conforms, and tells each collective and what it sent", "[comm]") {
  constexpr int kSize = 4;
  std::vector<test::Conformance> plain(kSize), profiled(kSize);
  std::vector<std::int64_t> sent(kSize), told(kSize), flights(kSize), calls(kSize), begun(kSize);
  const GroupOptions options{.timeout = 30s};
  run_thread_group(
      kSize,
      [&](Group& group) {
        plain[std::size_t(group.rank().value)] = test::check_conformance(group);
      },
      options);
  std::vector<std::unique_ptr<Profiler>> profilers(kSize);
  for (auto& profiler : profilers) profiler = std::make_unique<Profiler>(std::size_t{1} << 14);
  const auto watch = [&](Group& group) {
    const auto rank = std::size_t(group.rank().value);
    profilers[rank]->start();
    ProfileTrack* track = profilers[rank]->track(ProfileThread::kMain);
    const std::unique_ptr<Group> watched = make_profiled_group(group);
    {
      const ProfileSpan step(track, {.kind = SpanKind::kStep, .name = "step"});
      profiled[rank] = test::check_conformance(*watched, track);
    }
    sent[rank] = watched->traffic(Purpose::kTest).sent_bytes;
    calls[rank] = watched->traffic(Purpose::kTest).calls;
    for (const ProfileRow& row : profilers[rank]->rows(ProfileThread::kMain)) {
      if (row.kind != SpanKind::kCollective) continue;
      flights[rank] += row.flight_ns > 0 ? 1 : 0;
      begun[rank] += row.calls;
      told[rank] += row.bytes;
    }
  };
  run_thread_group(kSize, watch, options);
  for (std::size_t rank = 0; rank < kSize; ++rank) {
    CHECK(profiled[rank].failures == std::vector<std::string>{});
    CHECK(profiled[rank].digest == plain[rank].digest);
    CHECK(flights[rank] >= 7);  // kinds of collectives and messages
    CHECK(sent[rank] > 0);
    CHECK(told[rank] >= sent[rank]);  // groups that are split off count on their own
    CHECK(begun[rank] >= calls[rank]);
  }
}

TEST_CASE("Thread groups of every size conform, with the same bits each time", "[comm]") {
  for (int size = 1; size <= 8; ++size) {
    CAPTURE(size);
    const auto run = [&] {
      std::vector<test::Conformance> results(static_cast<std::size_t>(size));
      run_thread_group(size,
                       [&](Group& group) {
                         results[std::size_t(group.rank().value)] = test::check_conformance(group);
                       },
                       {.timeout = 30s});
      return results;
    };
    const auto results = run();
    for (const auto& result : results) CHECK(result.failures == std::vector<std::string>{});
    if (size != 4) continue;
    const auto again = run();
    for (std::size_t rank = 0; rank < results.size(); ++rank) {
      CHECK(results[rank].digest == again[rank].digest);
    }
  }
}

TEST_CASE("a time-out says who waited, in what, and for whom", "[comm]") {
  const auto errors = errors_of(4, {.timeout = 600ms}, [](Group& group, Member& member) {
    group.set_step(Step{120});
    const auto half = group.split(group.rank().value / 2, 0);
    half->all_reduce(member.ctx, member.view(), ReduceOp::kSum, kTag).wait();
    if (group.rank().value == 3) return;
    half->all_reduce(member.ctx, member.view(), ReduceOp::kSum, {Purpose::kDispatch, LayerId{7}})
        .wait();
    std::this_thread::sleep_for(300ms);
    group.all_reduce(member.ctx, member.view(), ReduceOp::kSum, kTag).wait();
  });
  CAPTURE(errors);
  CHECK(errors[3].empty());
  CHECK(contains(errors[2],
                 "rank 2 waited 0.6 s in all_reduce #1 (dispatch, layer 7, step 120): data is "
                 "missing from rank 3, data was not taken by rank 3"));
  // The others were woken, or noticed by themselves in the world's all_reduce, where both are
  // missing.
  for (const int rank : {0, 1}) {
    CHECK(contains(errors[std::size_t(rank)], "rank 3"));
  }
}

TEST_CASE("an abort wakes every member and ends the family", "[comm]") {
  const auto start = std::chrono::steady_clock::now();
  const auto errors = errors_of(4, {.timeout = 60s}, [](Group& group, Member& member) {
    const auto half = group.split(group.rank().value % 2, 0);
    if (group.rank().value == 0) {
      std::this_thread::sleep_for(50ms);
      half->abort("the disk is gone");
    } else if (group.rank().value == 1) {
      int never = 0;
      group.receive(member.ctx, view_of(std::span(&never, 1)), Rank{0}, kTag).wait();
    } else {
      half->all_reduce(member.ctx, member.view(), ReduceOp::kSum, kTag).wait();
      group.all_reduce(member.ctx, member.view(), ReduceOp::kSum, kTag).wait();
    }
    group.broadcast(member.ctx, member.view(), Rank{0}, kTag).wait();
  });
  CAPTURE(errors);
  for (const std::string& error : errors) CHECK(contains(error, "the disk is gone"));
  CHECK(std::chrono::steady_clock::now() - start < 10s);
}

TEST_CASE("a member that throws ends the others, and its error is the one reported", "[comm]") {
  for (const int thrower : {0, 2}) {
    CHECK_THROWS_WITH(
        run_thread_group(3,
                         [&](Group& group) {
                           Member member;
                           if (group.rank().value == thrower) throw DataError("no such file");
                           group.all_reduce(member.ctx, member.view(), ReduceOp::kSum, kTag).wait();
                         }),
        "no such file");
  }
}

TEST_CASE("a member that throws with a collective under way does not wait for it", "[comm]") {
  // Rank 1 would send only after it received, which rank 0 will never send.
  const auto start = std::chrono::steady_clock::now();
  CHECK_THROWS_WITH(
      run_thread_group(2,
                       [](Group& group) {
                         Member member;
                         const Rank other{1 - group.rank().value};
                         const Pending pending =
                             group.receive(member.ctx, member.view(), other, kTag);
                         if (other == Rank{1}) throw DataError("no such file");
                         Pending(group.receive(member.ctx, member.view(), other, kTag)).wait();
                       }),
      "no such file");
  CHECK(std::chrono::steady_clock::now() - start < 10s);
}

TEST_CASE("counts that differ between two members are found", "[comm]") {
  const auto errors = errors_of(2, {.timeout = 20s}, [](Group& group, Member& member) {
    if (group.rank().value == 0) {
      group.send(member.ctx, member.view(), Rank{1}, kTag).wait();
    } else {
      group.receive(member.ctx, member.view().rows(0, 2999), Rank{0}, kTag).wait();
    }
  });
  CHECK(std::any_of(errors.begin(), errors.end(), [](const std::string& error) {
    return contains(error, "member 0 sent 12000 bytes where member 1 expects 11996");
  }));
}

TEST_CASE("a send is not complete before it is received", "[comm]") {
  const auto errors = errors_of(2, {.timeout = 100ms}, [](Group& group, Member& member) {
    const Rank other{1 - group.rank().value};
    group.send(member.ctx, member.view(), other, kTag).wait();
    group.receive(member.ctx, member.view(), other, kTag).wait();
  });
  for (const std::string& error : errors) CHECK(contains(error, "was not taken by rank"));
}

TEST_CASE("a Thread group needs a member", "[comm]") {
  CHECK_THROWS_AS(run_thread_group(0, [](Group&) {}), ShapeError);
}

TEST_CASE("an observer is told of every collective and message before it begins", "[comm]") {
  std::vector<std::string> notes;
  GroupOptions options;
  options.observer = [&](const CollectiveNote& note) {
    notes.push_back(fmt::format("{} {} {} {} {}",
                                note.sequence,
                                note.operation,
                                name_of(note.tag.purpose),
                                note.tag.layer,
                                note.step));
  };
  const auto group = make_self_group(options);
  Member member;
  group->set_step(Step{4});
  group->all_reduce(member.ctx, member.view(), ReduceOp::kSum, {Purpose::kGradients}).wait();
  const auto part = group->split(0, 0);
  part->set_step(Step{5});
  part->broadcast(member.ctx, member.view(), Rank{0}, {Purpose::kDispatch, LayerId{3}}).wait();
  std::vector<float> received(3000);
  Pending receive =
      group->receive(member.ctx, view_of(std::span(received)), Rank{0}, {Purpose::kTest});
  Pending send = group->send(member.ctx, member.view(), Rank{0}, {Purpose::kTest});
  receive.wait();
  send.wait();
  CHECK(notes == std::vector<std::string>{"1 all_reduce gradients -1 4",
                                          "2 all_gather_v setup -1 4",
                                          "3 broadcast dispatch 3 5",
                                          "4 receive test -1 5",
                                          "5 send test -1 5"});
}

}  // namespace
}  // namespace pecan::comm
