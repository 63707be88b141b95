#include <algorithm>
#include <string>
#include <thread>
#include <utility>

#include <malloc.h>

#include <pecan/core/profile.hpp>

#include "support/catch.hpp"
#include "support/memory_file_system.hpp"

namespace pecan {
namespace {

SpanLabel label(SpanKind kind, std::string_view name) {
  return {.kind = kind, .name = name};
}

void spin(std::int64_t ns) {
  const std::int64_t end = ProfileTrack::now() + ns;
  while (ProfileTrack::now() < end) {
  }
}

const ProfileRow& row(const std::vector<ProfileRow>& rows, std::string_view name) {
  const auto found = std::ranges::find(rows, name, &ProfileRow::name);
  REQUIRE(found != rows.end());
  return *found;
}

std::string trace_of(const Profiler& profiler) {
  test::MemoryFileSystem fs;
  REQUIRE(fs.create_directories("run/profile").ok());
  const ProfileFacts facts{.rank = Rank{3}, .first_step = Step{5}, .last_step = Step{6}};
  REQUIRE(profiler.write_trace(fs, "run/profile/trace.json", facts).ok());
  CHECK_FALSE(fs.exists("run/profile/trace.json.tmp"));
  Result<std::string> text = read_text(fs, "run/profile/trace.json");
  REQUIRE(text.ok());
  return std::move(text).value();
}

std::size_t count(const std::string& text, std::string_view part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++found;
  return found;
}

}  // namespace

TEST_CASE("the times of a step's spans, each without those inside, are the step's", "[profile]") {
  Profiler profiler;
  ProfileTrack* track = profiler.track(ProfileThread::kMain);
  profiler.start();
  for (int step = 0; step < 3; ++step) {
    const ProfileSpan whole(track, label(SpanKind::kStep, "step"));
    const ProfileSpan forward(track, label(SpanKind::kPhase, "forward"));
    for (int call = 0; call < 2; ++call) {
      const ProfileSpan timed(track, label(SpanKind::kOperator, "product"), [] {
        return Work{.flops = 7, .bytes = 5};
      });
      spin(20'000);
    }
  }
  {
    const ProfileSpan evaluation(track, label(SpanKind::kPhase, "evaluate"));
    const ProfileSpan timed(track, label(SpanKind::kOperator, "product"));
  }
  profiler.stop();
  const std::vector<ProfileRow> rows = profiler.rows(ProfileThread::kMain);
  CHECK(rows.size() == 3);  // what lies outside of steps is not summed up
  std::int64_t self_ns = 0;
  for (const ProfileRow& each : rows) self_ns += each.self_ns;
  CHECK(self_ns == row(rows, "step").total_ns);
  CHECK(row(rows, "product").self_ns == row(rows, "product").total_ns);
  CHECK(row(rows, "product").self_ns >= 6 * 20'000);
  CHECK(row(rows, "forward").total_ns ==
        row(rows, "forward").self_ns + row(rows, "product").total_ns);
  CHECK(row(rows, "step").calls == 3);
  CHECK(row(rows, "product").calls == 6);
  CHECK(row(rows, "product").flops() == 42);
  CHECK(row(rows, "product").bytes == 30);
}

TEST_CASE("a span holds what its thread has to wait for", "[profile]") {
  Profiler profiler;
  ProfileTrack* track = profiler.track(ProfileThread::kMain);
  // What a device does beside the thread, which it is waited for.
  std::int64_t under_way_ns = 0;
  track->settle_with([&] { spin(std::exchange(under_way_ns, 0)); });
  profiler.start();
  {
    const ProfileSpan step(track, label(SpanKind::kStep, "step"));
    under_way_ns = 50'000'000;  // of nobody, before the operator
    {
      const ProfileSpan timed(track, label(SpanKind::kOperator, "product"));
      under_way_ns = 2'000'000;
    }
    { const ProfileSpan begins(track, label(SpanKind::kCollective, "all_reduce")); }
    under_way_ns = 3'000'000;
    track->flew(label(SpanKind::kInFlight, "all_reduce"), ProfileTrack::now(), {});
    CHECK(under_way_ns == 0);
  }
  profiler.stop();
  const std::vector<ProfileRow> rows = profiler.rows(ProfileThread::kMain);
  CHECK(row(rows, "product").self_ns >= 2'000'000);
  CHECK(row(rows, "step").self_ns >= 53'000'000);
  CHECK(row(rows, "all_reduce").flight_ns >= 3'000'000);
}

TEST_CASE("only what lies between start and stop is recorded, and what is cut is said",
          "[profile]") {
  Profiler profiler(2);
  ProfileTrack* track = profiler.track(ProfileThread::kMain);
  const auto step = [&] { const ProfileSpan timed(track, label(SpanKind::kStep, "step")); };
  step();
  CHECK(profiler.rows(ProfileThread::kMain).empty());
  profiler.start();
  for (int i = 0; i < 5; ++i) step();
  ProfileTrack* writer = profiler.track(ProfileThread::kWriter);
  writer->begin(label(SpanKind::kSave, "persist"));
  profiler.stop();
  writer->end();
  step();
  CHECK(row(profiler.rows(ProfileThread::kMain), "step").calls == 5);
  CHECK(profiler.num_cut() == 3);
  const std::string text = trace_of(profiler);
  CHECK(count(text, R"("name":"step","pid":3)") == 2);
  CHECK(count(text, "3 later spans found no room") == 1);
  CHECK(count(text, R"("name":"persist","pid":3,"tid":2)") == 1);
  CHECK(count(text, R"("unfinished":true)") == 1);
  CHECK(count(text, R"("cut_spans":3)") == 1);
}

TEST_CASE("recording allocates nothing", "[profile]") {
  Profiler profiler(1000);
  ProfileTrack* track = profiler.track(ProfileThread::kMain);
  profiler.start();
  const std::size_t before = mallinfo2().uordblks;
  for (int i = 0; i < 1000; ++i) {
    const ProfileSpan step(track, label(SpanKind::kStep, "step"));
    const ProfileSpan timed(track, label(SpanKind::kOperator, "product"));
    track->flew(label(SpanKind::kInFlight, "all_reduce"), ProfileTrack::now(), {});
  }
  CHECK(mallinfo2().uordblks == before);
  profiler.stop();
  CHECK(profiler.num_cut() == 2000);
}

TEST_CASE("threads record on their own tracks while another one reads", "[profile]") {
  Profiler profiler;
  profiler.start();
  std::jthread saving([&] {
    for (int i = 0; i < 1000; ++i) {
      ProfileSpan timed(profiler.track(ProfileThread::kWriter), label(SpanKind::kSave, "persist"));
      timed.moved(2);
    }
  });
  for (int i = 0; i < 100; ++i) (void)profiler.rows(ProfileThread::kWriter);
  saving.join();
  profiler.stop();
  const ProfileRow saved = row(profiler.rows(ProfileThread::kWriter), "persist");
  CHECK(saved.calls == 1000);
  CHECK(saved.bytes == 2000);
}

}  // namespace pecan
