#pragma once
/// Order among the host and the streams. Work runs at once, when it is issued; what it may rely on
/// is told by vector clocks: each stream counts its operations, and knows how much of every other
/// stream happened before its own last one. The host is stream 0; all of its threads are one.

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

namespace pecan::emulation {

/// Held by whoever runs device code or changes the state of streams, events and memory.
std::recursive_mutex& device_mutex();

/// For each stream, how many of its operations happened before.
class Clock {
 public:
  [[nodiscard]] std::uint32_t of(std::uint32_t stream) const {
    return stream < counts_.size() ? counts_[stream] : 0;
  }
  void set(std::uint32_t stream, std::uint32_t count) {
    if (counts_.size() <= stream) counts_.resize(stream + 1);
    counts_[stream] = count;
  }
  void join(const Clock& other);

 private:
  std::vector<std::uint32_t> counts_;
};

/// The device that this thread has chosen.
int chosen_device();

/// Work that goes on after it was issued: collectives with other processes.
class PendingWork {
 public:
  void finish();
  void wait();
  [[nodiscard]] bool is_finished();

 private:
  std::mutex mutex_;
  std::condition_variable finished_;
  bool is_finished_ = false;
};
using PendingList = std::vector<std::shared_ptr<PendingWork>>;

struct Stream {
  std::uint32_t id = 0;
  int device = 0;
  bool waits_for_default = true;  ///< made without cudaStreamNonBlocking
  std::uint32_t num_operations = 0;
  Clock clock;
  PendingList pending;
  int num_not_ready = 0;  ///< queries that will still say cudaErrorNotReady
};

struct Event {
  bool has_timing = true;
  bool is_recorded = false;
  Clock clock;
  PendingList pending;
  int num_not_ready = 0;
  std::chrono::steady_clock::time_point time;
};

/// What the checker remembers of an operation.
struct Operation {
  std::uint32_t stream = 0;
  std::uint32_t number = 0;
  const char* name = "";
  const void* kernel = nullptr;
};

/// The stream behind a handle, or nullptr if there is none. Needs the device's mutex.
Stream* find_stream(cudaStream_t handle);
cudaStream_t create_stream(int device, bool waits_for_default);
void destroy_stream(cudaStream_t handle);
/// Blocks until nothing that other processes take part in is pending there. Not under the mutex.
void wait_for_pending(cudaStream_t handle);
/// The same for all streams of a device.
void wait_for_all_pending(int device);

/// A new operation at the end of the stream; the ones after it on the host are not ordered with
/// it. 0 where nothing is checked.
std::uint32_t begin_operation(Stream& stream, const char* name, const void* kernel = nullptr);
/// The operation to which what the host does now belongs.
std::uint32_t host_operation();
const Operation& operation(std::uint32_t id);
/// "kernel NAME (stream S)" or the like.
std::string describe_operation(std::uint32_t id);
/// Whether `earlier` happened before `later`, which must be the newest of its stream.
bool happened_before(std::uint32_t earlier, std::uint32_t later);
/// The host has waited for what the clock counts.
void host_waited_for(const Clock& clock);
/// Everything that was issued so far, on every stream.
Clock issued_so_far();

/// While it lives, what this thread does counts as the operation of a stream (host functions).
class ActAs {
 public:
  explicit ActAs(std::uint32_t operation);
  ~ActAs();
  ActAs(const ActAs&) = delete;
  ActAs& operator=(const ActAs&) = delete;
};

}  // namespace pecan::emulation
