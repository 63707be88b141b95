#include "checkpoint/triple_buffer.hpp"

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::checkpoint;

namespace {

/// Everything that may happen to the buffers.
enum class Event {
  kBegin,
  kWhole,
  kWholeForStorage,
  kFailed,
  kPersist,
  kWritten,
  kCommitted,
  kLost
};
constexpr Event kEvents[] = {Event::kBegin,
                             Event::kWhole,
                             Event::kWholeForStorage,
                             Event::kFailed,
                             Event::kPersist,
                             Event::kWritten,
                             Event::kCommitted,
                             Event::kLost};

/// The buffers beside what a careful observer knows of their content, kept apart from them.
struct World {
  TripleBuffer buffers;
  /// By buffer: generation whose bytes are in it whole; 0: none.
  std::vector<std::int64_t> content;
  std::set<std::int64_t> in_storage;
  std::int64_t started = 0;
  std::int64_t newest_whole = 0;
  std::int64_t written = 0;  ///< generation whose checkpoint is being committed

  explicit World(int num_buffers) : buffers(num_buffers), content(TripleBuffer::kMaxBuffers, 0) {}

  [[nodiscard]] bool possible(Event event) const {
    switch (event) {
      case Event::kBegin:
        return !buffers.filling();
      case Event::kWhole:
      case Event::kWholeForStorage:
      case Event::kFailed:
        return buffers.filling().has_value();
      case Event::kPersist:
        return true;
      case Event::kWritten:
        return buffers.persisting().has_value() && written == 0;
      case Event::kCommitted:
      case Event::kLost:
        return written > 0;
    }
    return false;
  }

  /// What is wrong after the event; empty if nothing.
  std::string apply(Event event) {
    switch (event) {
      case Event::kBegin: {
        const std::optional<int> persisting = buffers.persisting();
        const std::optional<int> waiting = buffers.waiting();
        const TripleBuffer before = buffers;
        const auto begun = buffers.begin_snapshot();
        if (!begun) return {};
        const auto b = std::size_t(begun->buffer);
        const auto is_free = [&](int other) {
          return before[other].state == BufferState::kSnapshot && !before[other].waiting;
        };
        for (int other = 0; is_free(int(b)) && other < buffers.size(); ++other) {
          const std::int64_t inside = content[std::size_t(other)];
          if (is_free(other) && inside < content[b] && (inside == 0 || inside != newest_whole))
            return "overwrites what is newer than another free buffer's content";
        }
        if (persisting == begun->buffer) return "overwrites what is being written";
        if (begun->owes_storage != (waiting == begun->buffer)) return "owes storage wrongly";
        if (buffers.size() > 1 && newest_whole > 0 && content[b] == newest_whole)
          return "overwrites the newest whole generation";
        content[b] = 0;
        ++started;
        return {};
      }
      case Event::kWhole:
      case Event::kWholeForStorage: {
        const int b = *buffers.filling();
        buffers.end_snapshot(SnapshotEnd::kWhole,
                             event == Event::kWhole ? ForStorage::kNo : ForStorage::kYes);
        newest_whole = started;
        content[std::size_t(b)] = started;
        return {};
      }
      case Event::kFailed:
        buffers.end_snapshot(SnapshotEnd::kFailed, ForStorage::kNo);
        return {};
      case Event::kPersist: {
        const bool busy = buffers.persisting().has_value();
        const auto next = buffers.begin_persist();
        if (next && busy) return "writes two at a time";
        if (next && content[std::size_t(*next)] == 0) return "writes what is not whole";
        return {};
      }
      case Event::kWritten:
        written = content[std::size_t(*buffers.persisting())];
        buffers.end_persist();
        return {};
      case Event::kCommitted:
        in_storage.insert(written);
        buffers.committed(std::exchange(written, 0));
        return {};
      case Event::kLost:
        written = 0;
        return {};
    }
    return {};
  }

  [[nodiscard]] std::string broken() const {
    std::map<BufferState, int> count;
    bool holds_newest = newest_whole == 0;
    int waiting = 0;
    for (int b = 0; b < buffers.size(); ++b) {
      ++count[buffers[b].state];
      waiting += buffers[b].waiting ? 1 : 0;
      const std::int64_t inside = content[std::size_t(b)];
      holds_newest = holds_newest || inside == newest_whole;
      if (buffers[b].state == BufferState::kRecovery && !in_storage.contains(inside))
        return "RECOVERY is not in storage";
      if (buffers[b].waiting && inside == 0) return "what waits is not whole";
    }
    if (count[BufferState::kPersist] > 1) return "two PERSIST";
    if (count[BufferState::kRecovery] > 1) return "two RECOVERY";
    if (buffers.size() > 1 && count[BufferState::kSnapshot] < 1) return "no SNAPSHOT";
    if (waiting > 1) return "two waiting";
    if (buffers.size() > 1 && !holds_newest) return "the newest whole generation is gone";
    return {};
  }

  /// The state up to renaming of generations, so that the space is finite.
  [[nodiscard]] std::string key() const {
    std::vector<std::int64_t> generations;
    for (int b = 0; b < buffers.size(); ++b) generations.push_back(buffers[b].generation);
    std::vector<std::int64_t> order = generations;
    std::ranges::sort(order);
    std::string key =
        fmt::format("{} {}",
                    buffers.filling().value_or(-1),
                    written == 0 ? -1 : std::ranges::find(content, written) - content.begin());
    for (int b = 0; b < buffers.size(); ++b) {
      const auto place = std::ranges::lower_bound(order, generations[std::size_t(b)]);
      key += fmt::format("|{} {} {} {} {}",
                         int(buffers[b].state),
                         place - order.begin(),
                         buffers[b].complete,
                         buffers[b].waiting,
                         content[std::size_t(b)] == 0              ? 0
                         : content[std::size_t(b)] == newest_whole ? 2
                                                                   : 1);
    }
    return key;
  }
};

}  // namespace

TEST_CASE("every reachable state of the buffers keeps the invariants", "[triple_buffer]") {
  for (const int num_buffers : {1, 3}) {
    std::set<std::string> seen;
    std::deque<World> open{World(num_buffers)};
    seen.insert(open.front().key());
    int transitions = 0;
    while (!open.empty()) {
      const World from = open.front();
      open.pop_front();
      for (const Event event : kEvents) {
        if (!from.possible(event)) continue;
        World to = from;
        std::string wrong = to.apply(event);
        if (wrong.empty()) wrong = to.broken();
        if (!wrong.empty()) FAIL(wrong << " after event " << int(event) << " in " << from.key());
        ++transitions;
        if (seen.insert(to.key()).second) open.push_back(to);
      }
    }
    INFO(num_buffers << " buffers: " << seen.size() << " states, " << transitions);
    CHECK(transitions > (num_buffers == 1 ? 10 : 150));
  }
}

TEST_CASE("a snapshot that ends while another is written waits, and a later one replaces it",
          "[triple_buffer]") {
  TripleBuffer buffers(3);
  REQUIRE(buffers.begin_snapshot()->buffer == 0);
  buffers.end_snapshot(SnapshotEnd::kWhole, ForStorage::kYes);
  REQUIRE(buffers.begin_persist() == 0);
  REQUIRE(buffers.begin_snapshot()->buffer == 1);
  buffers.end_snapshot(SnapshotEnd::kWhole, ForStorage::kYes);
  CHECK(buffers.waiting() == 1);
  CHECK_FALSE(buffers.begin_persist());
  REQUIRE(buffers.begin_snapshot()->buffer == 2);  // not the one that waits: another is free
  buffers.end_snapshot(SnapshotEnd::kWhole, ForStorage::kYes);
  CHECK(buffers.waiting() == 2);
  buffers.end_persist();
  buffers.committed(1);
  CHECK(buffers[0].state == BufferState::kRecovery);
  CHECK(buffers.begin_persist() == 2);
  CHECK(buffers[1].state == BufferState::kSnapshot);  // replaced: never written
  buffers.end_persist();
  buffers.committed(3);
  CHECK(buffers[2].state == BufferState::kRecovery);
  CHECK(buffers[0].state == BufferState::kSnapshot);  // handed back
  CHECK(buffers.idle());
}

TEST_CASE("a snapshot that takes the place of a waiting one owes storage", "[triple_buffer]") {
  TripleBuffer buffers(3);
  static_cast<void>(buffers.begin_snapshot());
  buffers.end_snapshot(SnapshotEnd::kWhole, ForStorage::kYes);
  static_cast<void>(buffers.begin_persist());
  static_cast<void>(buffers.begin_snapshot());
  buffers.end_snapshot(SnapshotEnd::kWhole, ForStorage::kYes);  // waits
  static_cast<void>(buffers.begin_snapshot());
  buffers.end_snapshot(SnapshotEnd::kWhole, ForStorage::kNo);  // the newest, for memory alone
  const auto begun = buffers.begin_snapshot();
  REQUIRE(begun);
  CHECK(begun->buffer == 1);
  CHECK(begun->owes_storage);
}

TEST_CASE("with one buffer a snapshot needs the one before it written", "[triple_buffer]") {
  TripleBuffer buffers(1);
  REQUIRE(buffers.begin_snapshot());
  CHECK_FALSE(buffers.begin_snapshot());
  buffers.end_snapshot(SnapshotEnd::kWhole, ForStorage::kYes);
  CHECK_FALSE(buffers.begin_snapshot());
  REQUIRE(buffers.begin_persist());
  CHECK_FALSE(buffers.begin_snapshot());
  buffers.end_persist();
  CHECK(buffers.begin_snapshot());
  buffers.committed(1);  // no longer in memory: no buffer is the kRecovery one
  CHECK(buffers[0].state == BufferState::kSnapshot);
}
