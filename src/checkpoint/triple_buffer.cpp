#include "checkpoint/triple_buffer.hpp"

#include <algorithm>

#include <pecan/core/error.hpp>

namespace pecan::checkpoint {

TripleBuffer::TripleBuffer(int num_buffers) : num_buffers_(num_buffers) {
  PECAN_EXPECTS(num_buffers == 1 || num_buffers == kMaxBuffers);
}

template <typename Predicate>
std::optional<int> TripleBuffer::find(Predicate predicate) const {
  for (int b = 0; b < num_buffers_; ++b) {
    if (predicate(buffers_[std::size_t(b)])) return b;
  }
  return {};
}

void TripleBuffer::adopt(const std::array<int, kMaxBuffers>& order) {
  PECAN_EXPECTS(num_generations_ == 0);
  for (std::size_t b = 0; b < order.size(); ++b) {
    buffers_[b].generation = order[b];
    buffers_[b].complete = order[b] > 0;
    num_generations_ = std::max<std::int64_t>(num_generations_, order[b]);
  }
}

std::optional<int> TripleBuffer::persisting() const {
  return find([](const Buffer& buffer) { return buffer.state == BufferState::kPersist; });
}

std::optional<int> TripleBuffer::waiting() const {
  return find([](const Buffer& buffer) { return buffer.waiting; });
}

std::optional<int> TripleBuffer::newest() const {
  std::optional<int> newest;
  for (int b = 0; b < num_buffers_; ++b) {
    const Buffer& buffer = buffers_[std::size_t(b)];
    if (!buffer.complete) continue;
    if (!newest || buffer.generation > buffers_[std::size_t(*newest)].generation) newest = b;
  }
  return newest;
}

bool TripleBuffer::idle() const {
  return !filling_ && !persisting() && !waiting();
}

std::optional<Begun> TripleBuffer::begin_snapshot() {
  if (filling_) return {};
  // With a single buffer nothing newer can come before it is overwritten: storage has it.
  const Buffer* kept = nullptr;
  if (const auto last = newest(); last && num_buffers_ > 1) kept = &buffers_[std::size_t(*last)];
  // The oldest content, so that the others hold what came last; a failed snapshot is none.
  const auto age = [](const Buffer& buffer) { return buffer.complete ? buffer.generation : 0; };
  std::optional<int> free;
  for (int b = 0; b < num_buffers_; ++b) {
    const Buffer& buffer = buffers_[std::size_t(b)];
    if (buffer.state != BufferState::kSnapshot || buffer.waiting || &buffer == kept) continue;
    if (!free || age(buffer) < age(buffers_[std::size_t(*free)])) free = b;
  }
  if (free) return take(*free);
  const auto in_storage = find([&](const Buffer& buffer) {
    return buffer.state == BufferState::kRecovery && &buffer != kept;
  });
  if (in_storage) return take(*in_storage);
  const auto replaced =
      find([&](const Buffer& buffer) { return buffer.waiting && kept && &buffer != kept; });
  if (replaced) return take(*replaced);
  return {};
}

Begun TripleBuffer::take(int buffer) {
  const Begun begun{buffer, buffers_[std::size_t(buffer)].waiting};
  buffers_[std::size_t(buffer)] = {BufferState::kSnapshot, ++num_generations_, false, false};
  filling_ = buffer;
  return begun;
}

void TripleBuffer::end_snapshot(SnapshotEnd end, ForStorage for_storage) {
  PECAN_EXPECTS(filling_.has_value());
  Buffer& buffer = buffers_[std::size_t(*filling_)];
  buffer.complete = end == SnapshotEnd::kWhole;
  if (for_storage == ForStorage::kYes) {
    for (Buffer& other : buffers_) other.waiting = false;  // this one is newer
    buffer.waiting = true;
  }
  filling_.reset();
}

std::optional<int> TripleBuffer::begin_persist() {
  const std::optional<int> next = waiting();
  if (!next || persisting()) return {};
  buffers_[std::size_t(*next)].state = BufferState::kPersist;
  buffers_[std::size_t(*next)].waiting = false;
  return next;
}

void TripleBuffer::end_persist() {
  const std::optional<int> written = persisting();
  PECAN_EXPECTS(written.has_value());
  buffers_[std::size_t(*written)].state = BufferState::kSnapshot;
}

void TripleBuffer::committed(std::int64_t generation) {
  for (Buffer& buffer : buffers_) {
    if (buffer.state == BufferState::kRecovery) buffer.state = BufferState::kSnapshot;
  }
  for (Buffer& buffer : buffers_) {
    // Only if it was not given up since: then storage alone has it.
    if (buffer.generation == generation && buffer.complete &&
        buffer.state == BufferState::kSnapshot)
      buffer.state = BufferState::kRecovery;
  }
}

}  // namespace pecan::checkpoint
