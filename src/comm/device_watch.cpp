#include "comm/device_watch.hpp"

#include <algorithm>
#include <span>
#include <utility>

#include <fmt/ranges.h>

#include <pecan/core/error.hpp>
#include <pecan/core/log.hpp>

#include <pecan/device/context.hpp>

#include "comm/abort_flag.hpp"

namespace pecan::comm {
namespace {

using namespace std::chrono_literals;

/// In which those who are in trouble too answer, if they wait no shorter themselves.
constexpr std::chrono::milliseconds kRollCall = 10s;

/// As Communicator::failure().
std::optional<std::string> failure_of(const Lane& lane) {
  return lane.communicator == nullptr ? std::string() : lane.communicator->failure();
}

std::string place_of(const Flight& flight) {
  return fmt::format(
      "{} ({}{}, step {})",
      flight.name,
      name_of(flight.tag.purpose),
      flight.tag.layer == kNoLayer ? std::string() : fmt::format(", layer {}", flight.tag.layer),
      flight.step);
}

/// Ranks that had to give up tell all others where they are. Of those that say nothing the data is
/// missing. Lives until nobody waits for an answer any more: until the host's groups are aborted.
class RollCall {
 public:
  RollCall(Group& group, const Flight& flight) : flight_(flight) {
    own_ = {flight.group, flight.number, {}};
    const std::string name = place_of(flight);
    name.copy(own_.name, sizeof own_.name - 1);
    constexpr Tag kTag{Purpose::kSetup, kNoLayer};
    for (int rank = 0; rank < group.size(); ++rank) {
      if (rank == group.rank().value) continue;
      sent_.push_back(group.send(ctx_, bytes_of(own_), Rank{rank}, kTag));
    }
    answers_.resize(flight.peers.size());
    for (std::size_t i = 0; i < answers_.size(); ++i) {
      Answer& answer = answers_[i];
      answer.rank = flight.peers[i];
      answer.pending = group.receive(ctx_, bytes_of(answer.place), Rank{answer.rank}, kTag);
    }
  }

  /// Waits for answers, for `limit` at most; says who is missing, or where they are instead.
  [[nodiscard]] std::string who(std::chrono::milliseconds limit) {
    const auto end = std::chrono::steady_clock::now() + limit;
    while (!all_answered() && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(1ms);
    }
    std::vector<int> silent;
    std::vector<std::string> parts;
    for (const Answer& answer : answers_) {
      const bool is_there = flight_.number >= 0 && answer.place.group == flight_.group &&
                            answer.place.number >= flight_.number;
      if (!answer.is_here) {
        silent.push_back(answer.rank);
      } else if (!is_there) {
        parts.push_back(fmt::format("rank {} waits in {}", answer.rank, answer.place.name));
      }
    }
    if (!silent.empty()) {
      parts.insert(parts.begin(),
                   fmt::format("data is missing from rank {}", fmt::join(silent, ", ")));
    }
    if (parts.empty()) return "all of its ranks are there; NCCL_DEBUG=INFO says more";
    return fmt::format("{}", fmt::join(parts, ", "));
  }

 private:
  struct Place {
    std::uint64_t group = 0;
    std::int64_t number = -1;
    char name[112] = {};
  };
  struct Answer {
    int rank = 0;
    Place place;
    Pending pending;
    bool is_here = false;
  };
  static TensorView bytes_of(Place& place) {
    return view_of(std::span(reinterpret_cast<std::uint8_t*>(&place), sizeof place));
  }
  [[nodiscard]] bool all_answered() {
    bool all = true;
    for (Pending& one : sent_) (void)one.test();
    for (Answer& answer : answers_) {
      answer.is_here = answer.is_here || answer.pending.test();
      all = all && answer.is_here;
    }
    return all;
  }

  const Flight& flight_;
  device::Stream stream_{device::cpu()};
  device::Arena no_workspace_;
  Context ctx_{device::cpu(), stream_, no_workspace_};
  Place own_;
  std::vector<Answer> answers_;
  std::vector<Pending> sent_;
};

}  // namespace

std::shared_ptr<Flight> FlightPool::take() {
  std::unique_ptr<Flight> flight;
  {
    const std::scoped_lock lock(mutex_);
    if (!unused_.empty()) {
      flight = std::move(unused_.back());
      unused_.pop_back();
    }
  }
  if (flight == nullptr) flight = std::make_unique<Flight>(device_);
  flight->peers.clear();
  flight->number = -1;
  flight->issued = false;
  flight->waits_since.reset();
  return {flight.release(), [pool = shared_from_this()](Flight* given) {
            std::unique_ptr<Flight> back(given);
            const std::scoped_lock lock(pool->mutex_);
            pool->unused_.push_back(std::move(back));
          }};
}

DeviceWatch::DeviceWatch(Group& host, const GroupOptions& options)
    : host_(host),
      roll_(host.split(0, host.rank().value)),
      timeout_(options.timeout),
      thread_([this] { watch(); }) {}

DeviceWatch::~DeviceWatch() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void DeviceWatch::add(Lane& lane) {
  const std::scoped_lock lock(mutex_);
  lanes_.push_back(&lane);
}

void DeviceWatch::remove(Lane& lane) {
  const std::scoped_lock lock(mutex_);
  std::erase(lanes_, &lane);
}

void DeviceWatch::begin(Lane& lane, const std::shared_ptr<Flight>& flight) {
  const std::scoped_lock lock(mutex_);
  drop_complete(lane);
  flight->begun = Clock::now();
  lane.flights.push_back(flight);
}

void DeviceWatch::drop_complete(Lane& lane) {
  while (!lane.flights.empty() && lane.flights.front()->issued &&
         lane.flights.front()->end.complete()) {
    // Streams go on after an error too. Where nobody can tell, a later look will.
    if (failure_of(lane) != "") return;
    lane.flights.pop_front();
  }
}

void DeviceWatch::note_issued(Flight& flight) {
  const std::scoped_lock lock(mutex_);
  flight.issued = true;
}

void DeviceWatch::drop(Lane& lane, const Flight& flight) {
  const std::scoped_lock lock(mutex_);
  std::erase_if(lane.flights, [&](const auto& f) { return f.get() == &flight; });
}

void DeviceWatch::check_over(Lane& lane, const Flight& flight) {
  {
    const std::scoped_lock lock(mutex_);
    drop_complete(lane);
    const std::string failure = failure_of(lane).value_or("");
    const auto is_it = [&](const auto& other) { return other.get() == &flight; };
    // Where it is left though it has ended, that was no end of its own.
    if (!failure.empty() && std::ranges::any_of(lane.flights, is_it)) {
      end_all(given_up(lane.flights.front(), "NCCL says: " + failure));
    }
  }
  check();
}

void DeviceWatch::drain(Lane& lane) {
  constexpr std::chrono::microseconds kNap{50};
  while (true) {
    check();
    {
      const std::scoped_lock lock(mutex_);
      drop_complete(lane);
      if (lane.flights.empty()) return;
    }
    std::this_thread::sleep_for(kNap);
  }
}

void DeviceWatch::watch() {
  // Seldom enough that nobody notices, and often enough that a time-out is on time.
  const auto interval = timeout_.count() == 0
                            ? 1000ms
                            : std::clamp<std::chrono::milliseconds>(timeout_ / 20, 5ms, 1s);
  std::unique_lock lock(mutex_);
  while (!stopping_ && !failure_) {
    changed_.wait_for(lock, interval, [this] { return stopping_; });
    if (stopping_ || failure_) break;
    for (Lane* lane : lanes_) {
      if (std::optional<Failure> found = inspect(*lane)) {
        end_all(*std::move(found));
        break;
      }
    }
  }
  if (stopping_) return;
  // The rank's own thread says who was missing, unless it waits for something else.
  if (changed_.wait_for(
          lock, kRollCall + 2s, [this] { return stopping_ || conclusion_.has_value(); })) {
    return;
  }
  host_.abort(failure_->what);
}

std::optional<DeviceWatch::Failure> DeviceWatch::inspect(Lane& lane) {
  try {
    drop_complete(lane);
    if (lane.flights.empty()) return {};
    const std::shared_ptr<Flight>& flight = lane.flights.front();
    const auto now = Clock::now();
    // Its time begins when it is its turn on the device.
    if (flight->issued && !flight->waits_since && flight->ready.complete()) {
      flight->waits_since = now;
    }
    const auto since = flight->issued ? flight->waits_since.value_or(now) : flight->begun;
    if (timeout_.count() > 0 && now - since > timeout_) return stuck(flight);
    const std::string failure = failure_of(lane).value_or("");
    if (failure.empty()) return {};
    return given_up(flight, "NCCL says: " + failure);
  } catch (const std::exception& error) {
    return Failure{error.what(), nullptr};
  }
}

DeviceWatch::Failure DeviceWatch::stuck(const std::shared_ptr<Flight>& flight) const {
  return {fmt::format("rank {} waited {:.3g} s in {}",
                      host_.rank(),
                      std::chrono::duration<double>(timeout_).count(),
                      place_of(*flight)),
          flight};
}

DeviceWatch::Failure DeviceWatch::given_up(const std::shared_ptr<Flight>& flight,
                                           const std::string& why) const {
  return {fmt::format("rank {} gave up {}, since {}", host_.rank(), place_of(*flight), why),
          flight};
}

void DeviceWatch::end_all(Failure failure) {
  if (failure_) return;
  failure_ = std::move(failure);
  // At once: one may be behind another on the device.
  std::vector<std::thread> aborts;
  for (const Lane* lane : lanes_) {
    if (lane->communicator == nullptr) continue;
    aborts.emplace_back([communicator = lane->communicator] { communicator->abort(); });
  }
  for (std::thread& thread : aborts) thread.join();
  changed_.notify_all();
}

void DeviceWatch::fail(const Lane& lane, const std::string& what) {
  const std::scoped_lock lock(mutex_);
  end_all(given_up(lane.flights.front(), what));
}

void DeviceWatch::abort(const std::string& reason) {
  {
    const std::scoped_lock lock(mutex_);
    end_all({reason, nullptr});
  }
  host_.abort(reason);
}

void DeviceWatch::check() {
  {
    const std::scoped_lock lock(mutex_);
    if (!failure_) return;
    if (conclusion_) {
      throw AbortedError(fmt::format("communication was aborted: {}", *conclusion_));
    }
  }
  conclude();
}

void DeviceWatch::conclude() {
  // Nobody changes it any more.
  const Failure& failure = *failure_;
  const auto note = [&](const std::string& text) {
    {
      const std::scoped_lock lock(mutex_);
      conclusion_ = text;
    }
    changed_.notify_all();
    host_.abort(text);
  };
  if (failure.flight == nullptr) {
    note(failure.what);
    throw AbortedError(fmt::format("communication was aborted: {}", failure.what));
  }
  try {
    RollCall roll(*roll_, *failure.flight);
    const std::string text = fmt::format(
        "{}: {}; see what was logged last there, or raise comm.timeout_s if such a "
        "wait is expected",
        failure.what,
        roll.who(timeout_.count() == 0 ? kRollCall : std::min(timeout_, kRollCall)));
    note(text);
    throw CommError(text);
  } catch (const AbortedError& error) {
    note(error.what());  // somebody else knew first
    throw;
  }
}

}  // namespace pecan::comm
