#include "streams.hpp"

#include <algorithm>
#include <deque>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "checker.hpp"
#include "pageable.hpp"
#include "report.hpp"
#include "settings.hpp"

namespace pecan::emulation {
namespace {

struct Streams {
  std::map<cudaStream_t, std::unique_ptr<Stream>> by_handle;
  std::vector<const Stream*> by_id = {nullptr};  ///< 0 is the host
  Clock host;
  Clock destroyed;  ///< what was issued on streams that are gone
  std::uint32_t num_host_operations = 0;
  std::uint32_t host_operation = 0;
  std::deque<Operation> operations;
};

// Never destroyed: programs free device memory in destructors of static objects.
Streams& streams() {
  static auto* all = new Streams;
  return *all;
}

thread_local std::uint32_t acting_operation = 0;

Stream& add_stream(cudaStream_t handle, bool waits_for_default) {
  auto& slot = streams().by_handle[handle];
  slot = std::make_unique<Stream>();
  slot->id = static_cast<std::uint32_t>(streams().by_id.size());
  streams().by_id.push_back(slot.get());
  slot->waits_for_default = waits_for_default;
  return *slot;
}

std::uint32_t add_operation(std::uint32_t stream,
                            std::uint32_t number,
                            const char* name,
                            const void* kernel) {
  if (!is_checking()) return 0;
  streams().operations.push_back({stream, number, name, kernel});
  return static_cast<std::uint32_t>(streams().operations.size());
}

void begin_host_operation() {
  Streams& all = streams();
  all.host.set(0, ++all.num_host_operations);
  all.host_operation = add_operation(0, all.num_host_operations, "the host", nullptr);
}

void append_unfinished(PendingList& list, const PendingList& others) {
  for (const auto& work : others) {
    if (!work->is_finished()) list.push_back(work);
  }
}

}  // namespace

std::recursive_mutex& device_mutex() {
  static auto* mutex = new std::recursive_mutex;
  return *mutex;
}

void Clock::join(const Clock& other) {
  if (counts_.size() < other.counts_.size()) counts_.resize(other.counts_.size());
  for (std::size_t stream = 0; stream < other.counts_.size(); ++stream) {
    counts_[stream] = std::max(counts_[stream], other.counts_[stream]);
  }
}

void PendingWork::finish() {
  const std::scoped_lock lock(mutex_);
  is_finished_ = true;
  finished_.notify_all();
}

void PendingWork::wait() {
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [this] { return is_finished_; });
}

bool PendingWork::is_finished() {
  const std::scoped_lock lock(mutex_);
  return is_finished_;
}

Stream* find_stream(cudaStream_t handle) {
  if (handle == cudaStreamLegacy) handle = nullptr;
  const auto found = streams().by_handle.find(handle);
  if (found != streams().by_handle.end()) return found->second.get();
  return handle == nullptr ? &add_stream(nullptr, true) : nullptr;
}

cudaStream_t create_stream(int device, bool waits_for_default) {
  // Only its address counts, and must not be used again while anything may remember it.
  static auto* handles = new std::deque<char>;
  auto* handle = reinterpret_cast<cudaStream_t>(&handles->emplace_back());
  add_stream(handle, waits_for_default).device = device;
  return handle;
}

void destroy_stream(cudaStream_t handle) {
  streams().by_handle.erase(handle);
}

void wait_for_pending(cudaStream_t handle) {
  PendingList pending;
  {
    const std::scoped_lock lock(device_mutex());
    Stream* stream = find_stream(handle);
    if (stream == nullptr) return;
    pending = stream->pending;
    Stream* default_stream = find_stream(nullptr);
    if (stream == default_stream) {
      for (const auto& [_, other] : streams().by_handle) {
        if (other->waits_for_default) append_unfinished(pending, other->pending);
      }
    } else if (stream->waits_for_default) {
      append_unfinished(pending, default_stream->pending);
    }
  }
  for (const auto& work : pending) work->wait();
}

void wait_for_all_pending(int device) {
  PendingList pending;
  {
    const std::scoped_lock lock(device_mutex());
    for (const auto& [_, stream] : streams().by_handle) {
      if (stream->device == device) append_unfinished(pending, stream->pending);
    }
  }
  for (const auto& work : pending) work->wait();
}

std::uint32_t begin_operation(Stream& stream, const char* name, const void* kernel) {
  Streams& all = streams();
  stream.num_not_ready = settings().num_not_ready;
  std::erase_if(stream.pending, [](const auto& work) { return work->is_finished(); });
  stream.clock.join(all.host);
  Stream* default_stream = find_stream(nullptr);
  if (&stream == default_stream) {
    for (const auto& [_, other] : all.by_handle) {
      if (other->waits_for_default) stream.clock.join(other->clock);
    }
  } else if (stream.waits_for_default) {
    stream.clock.join(default_stream->clock);
  }
  stream.clock.set(stream.id, ++stream.num_operations);
  const std::uint32_t id = add_operation(stream.id, stream.num_operations, name, kernel);
  begin_host_operation();
  return id;
}

std::uint32_t host_operation() {
  if (acting_operation != 0) return acting_operation;
  if (streams().host_operation == 0) begin_host_operation();
  return streams().host_operation;
}

const Operation& operation(std::uint32_t id) {
  return streams().operations[id - 1];
}

std::string describe_operation(std::uint32_t id) {
  const Operation& described = operation(id);
  if (described.stream == 0) return described.name;
  return fmt::format("{} (stream {})",
                     described.kernel == nullptr ? std::string(described.name)
                                                 : "kernel " + kernel_name(described.kernel),
                     described.stream);
}

bool happened_before(std::uint32_t earlier, std::uint32_t later) {
  const Operation& before = operation(earlier);
  const std::uint32_t stream = operation(later).stream;
  if (before.stream == stream) return true;
  const Clock& now = stream == 0 ? streams().host : streams().by_id[stream]->clock;
  return now.of(before.stream) >= before.number;
}

void host_waited_for(const Clock& clock) {
  end_reading(clock);
  streams().host.join(clock);
  begin_host_operation();
}

Clock issued_so_far() {
  Clock clock = streams().destroyed;
  for (const auto& [_, stream] : streams().by_handle) clock.join(stream->clock);
  return clock;
}

ActAs::ActAs(std::uint32_t operation) {
  acting_operation = operation;
}
ActAs::~ActAs() {
  acting_operation = 0;
}

}  // namespace pecan::emulation
