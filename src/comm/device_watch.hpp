#pragma once
/// Collectives under way between devices, which nobody waits for on the host: a thread looks after
/// them, ends those that take too long, and finds out who is missing.

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <pecan/device/communicator.hpp>
#include <pecan/device/device.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::comm {

/// One collective, or one message, from its call until its end on the device.
struct Flight {
  explicit Flight(device::Device device) : ready(device), end(device) {}
  device::Event ready;  ///< the stream that it was called on has come to it
  device::Event end;    ///< recorded once it is issued
  std::string name;     ///< "all_reduce #3"
  Tag tag;
  Step step;
  std::uint64_t group = 0;   ///< the same on all members
  std::int64_t number = -1;  ///< of the collective in its group; of a message -1
  std::vector<int> peers;    ///< world ranks without which it does not end
  std::chrono::steady_clock::time_point begun;
  // The rest belongs to the watch, or is read by the thread that made it.
  bool issued = false;
  std::optional<std::chrono::steady_clock::time_point> waits_since;
};

/// Flights, which are made once and used again: their events are the device's. Thread-safe.
class FlightPool : public std::enable_shared_from_this<FlightPool> {
 public:
  explicit FlightPool(device::Device device) : device_(device) {}
  /// Shared by the Pending that a caller holds and the watch; whoever is last gives it back.
  [[nodiscard]] std::shared_ptr<Flight> take();

 private:
  const device::Device device_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Flight>> unused_;
};

/// What a group does on its stream, in order.
struct Lane {
  device::Communicator* communicator = nullptr;  ///< none in a group of one
  std::deque<std::shared_ptr<Flight>> flights;   ///< belongs to the watch
};

/// Of one rank, for the groups of one family. Functions without a word on threads are for the
/// rank's own thread.
class DeviceWatch {
 public:
  /// `host`, over all ranks of the job, is told of an end, and gives a group for calling the roll.
  /// Collective over it.
  DeviceWatch(Group& host, const GroupOptions& options);
  ~DeviceWatch();
  DeviceWatch(const DeviceWatch&) = delete;
  DeviceWatch& operator=(const DeviceWatch&) = delete;

  /// `lane` stays in place until it is removed.
  void add(Lane& lane);
  void remove(Lane& lane);
  /// `flight` begins.
  void begin(Lane& lane, const std::shared_ptr<Flight>& flight);
  /// Its end was recorded.
  void note_issued(Flight& flight);
  /// It could not be issued.
  void drop(Lane& lane, const Flight& flight);
  /// Of `flight`, whose end has come: throws as check() does where an error has brought it.
  void check_over(Lane& lane, const Flight& flight);
  /// Returns when everything on `lane` is over, or throws as check() does.
  void drain(Lane& lane);

  /// Ends all flights of the family for what went wrong on `lane`, where one at least is under way:
  /// in the first that is not known to be over. The first to say so counts.
  void fail(const Lane& lane, const std::string& what);
  /// Ends all flights, from any thread.
  void abort(const std::string& reason);
  /// CommError where flights were ended: the first time naming who was missing, which takes until
  /// they have answered, or a while.
  void check();

 private:
  using Clock = std::chrono::steady_clock;
  struct Failure {
    std::string what;                ///< to be completed where there is a flight
    std::shared_ptr<Flight> flight;  ///< that did not end; null after abort()
  };
  void watch();
  /// Needs the lock.
  static void drop_complete(Lane& lane);
  /// Whether something is wrong with what is under way on `lane`.
  [[nodiscard]] std::optional<Failure> inspect(Lane& lane);
  [[nodiscard]] Failure stuck(const std::shared_ptr<Flight>& flight) const;
  [[nodiscard]] Failure given_up(const std::shared_ptr<Flight>& flight,
                                 const std::string& why) const;
  /// The first failure stays. Needs the lock.
  void end_all(Failure failure);
  /// Throws what check() does, once it is raised.
  [[noreturn]] void conclude();

  Group& host_;
  const std::unique_ptr<Group> roll_;
  const std::chrono::milliseconds timeout_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Lane*> lanes_;
  std::optional<Failure> failure_;
  std::optional<std::string> conclusion_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace pecan::comm
