#include "comm/window.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include <pecan/core/error.hpp>

#include "comm/reduce.hpp"
#include "comm/stream_copy.hpp"

namespace pecan::comm {
namespace {

constexpr std::size_t kLine = 64;

// Counters are shared by processes: a lock would be of one process alone.
using Counter = std::atomic_ref<std::uint64_t>;
static_assert(Counter::is_always_lock_free);

std::size_t num_chunks(std::size_t num_bytes, std::size_t chunk) {
  return (num_bytes + chunk - 1) / chunk;
}

/// The `chunk`-th part of `whole`; empty behind its end.
template <typename Byte>
std::span<Byte> part(std::span<Byte> whole, std::size_t chunk, std::size_t chunk_bytes) {
  const std::size_t begin = std::min(whole.size(), chunk * chunk_bytes);
  return whole.subspan(begin, std::min(chunk_bytes, whole.size() - begin));
}

}  // namespace

std::size_t Window::slot_size(int size, std::size_t slot_bytes) {
  return std::max(num_chunks(slot_bytes, kLine), std::size_t(size)) * kLine;
}

std::size_t Window::memory_bytes(int size, std::size_t slot_bytes) {
  const Part last = part_of(size - 1, size, slot_bytes);
  return last.begin + last.num_bytes;
}

Window::Part Window::part_of(int member, int size, std::size_t slot_bytes) {
  // Whole pages, so that the memory of a member can lie near it.
  constexpr std::size_t kPage = 4096;
  const std::size_t num_bytes =
      std::size_t(size) * sizeof(Channel) + std::size_t(kSlots) * slot_size(size, slot_bytes);
  const std::size_t pages = (num_bytes + kPage - 1) / kPage * kPage;
  return {std::size_t(member) * pages, pages};
}

Window::Window(std::span<std::byte> memory, int size, int rank, std::size_t slot_bytes)
    : memory_(memory.data()), size_(size), rank_(rank), slot_bytes_(slot_size(size, slot_bytes)) {
  const auto members = std::size_t(size);
  PECAN_EXPECTS(memory.size() >= memory_bytes(size, slot_bytes));
  PECAN_EXPECTS(std::size_t(kSlots) * slot_bytes_ <= UINT32_MAX);
  posted_.resize(members);
  taken_.resize(members);
  posted_in_.assign(kSlots, std::vector<std::uint64_t>(members));
}

Window::Channel& Window::channel(int from, int to) const {
  std::byte* const part = memory_ + part_of(from, size_, slot_bytes_).begin;
  return reinterpret_cast<Channel*>(part)[to];
}

std::byte* Window::slots_of(int member) const {
  return memory_ + part_of(member, size_, slot_bytes_).begin + std::size_t(size_) * sizeof(Channel);
}

bool Window::is_held(int to) const {
  const std::uint64_t count = posted_in_[num_written_ % kSlots][std::size_t(to)];
  // Acquire: what the other has read, it read before this member writes.
  return count > 0 && Counter(channel(rank_, to).taken).load(std::memory_order_acquire) < count;
}

std::vector<int> Window::holders_of_slot() const {
  std::vector<int> holders;
  for (int to = 0; to < size_; ++to) {
    if (is_held(to)) holders.push_back(to);
  }
  return holders;
}

std::optional<Window::Slot> Window::begin_slot() {
  std::vector<std::uint64_t>& posted = posted_in_[num_written_ % kSlots];
  for (int to = 0; to < size_; ++to) {
    if (is_held(to)) return {};
  }
  std::ranges::fill(posted, 0);
  const auto offset = std::uint32_t(num_written_ % kSlots * slot_bytes_);
  return Slot{offset, slots_of(rank_) + offset};
}

void Window::post(int to, const Entry& entry) {
  Channel& target = channel(rank_, to);
  // At most as many entries are under way as slots: the former one in this place lay in a slot that
  // was free before a later one could be written.
  std::uint64_t& count = posted_[std::size_t(to)];
  target.entries[count % kSlots] = entry;
  posted_in_[num_written_ % kSlots][std::size_t(to)] = ++count;
  // Release: the slot and the entry are written before the other sees that they are.
  Counter(target.posted).store(count, std::memory_order_release);
}

bool Window::has_next(int from) const {
  return Counter(channel(from, rank_).posted).load(std::memory_order_acquire) >
         taken_[std::size_t(from)];
}

const std::byte* Window::next_of(int from, std::uint64_t exchange, std::size_t num_bytes) const {
  if (!has_next(from)) return nullptr;
  const Entry& entry = channel(from, rank_).entries[taken_[std::size_t(from)] % kSlots];
  PECAN_VALIDATE(entry.exchange == exchange && entry.num_bytes == num_bytes,
                 CommError,
                 "member {} sent {} bytes in collective {} of the group where member {} expects {} "
                 "in collective {}: their counts differ",
                 from,
                 entry.num_bytes,
                 entry.exchange,
                 rank_,
                 num_bytes,
                 exchange);
  return slots_of(from) + entry.offset;
}

void Window::take(int from) {
  // Release: what was in the slot is read before the other sees that it may write.
  Counter(channel(from, rank_).taken).store(++taken_[std::size_t(from)], std::memory_order_release);
}

Exchange::Exchange(Window& window, ExchangeParts parts)
    : window_(window), parts_(std::move(parts)), number_(window.num_exchanges_++) {
  const auto others = std::int64_t(window.size_) - 1;
  num_gathered_.resize(std::size_t(window.size_));
  pieces_.resize(std::size_t(window.size_));
  lag_ = parts_.common_is_reduced ? 1 : 0;
  for (std::size_t to = 0; to < parts_.personal.size(); ++to) {
    if (int(to) == window.rank_) continue;
    const std::size_t num_bytes = parts_.personal[to].size();
    sent_bytes_ += std::int64_t(num_bytes);
    personal_chunks_ = std::max(
        personal_chunks_, num_chunks(num_bytes, chunk_bytes(ExchangeParts::Chunks::kPersonal)));
  }
  sent_bytes_ += others * std::int64_t(parts_.common.size());
  common_chunks_ = num_chunks(parts_.common.size(), chunk_bytes(parts_.common_chunks));
  if (parts_.reduction) {
    sum_chunks_ = num_chunks(parts_.reduction->own.size(), chunk_bytes(parts_.reduction->chunks));
  }
  std::size_t num_gathered_bytes = 0;
  for (std::size_t from = 0; from < parts_.gathered.size(); ++from) {
    if (int(from) == window.rank_) continue;
    num_gathered_bytes += parts_.gathered[from].size();
    gathered_chunks_ =
        std::max(gathered_chunks_,
                 num_chunks(parts_.gathered[from].size(), chunk_bytes(parts_.gathered_chunks)));
  }
  // What is gathered in the place of what was given is in the caches.
  gathers_past_caches_ = num_gathered_bytes >= kStreamedBytes && !parts_.common_is_reduced;
  window_.sending_.push_back(this);
  window_.receiving_.push_back(this);
}

Exchange::~Exchange() {
  std::erase(window_.sending_, this);
  std::erase(window_.receiving_, this);
}

std::size_t Exchange::chunk_bytes(ExchangeParts::Chunks chunks) const {
  const auto others = std::size_t(std::max(1, window_.size_ - 1));
  if (chunks == ExchangeParts::Chunks::kCommon) return window_.slot_bytes_;
  return window_.slot_bytes_ / others / kLine * kLine;
}

bool Exchange::advance() {
  bool moved = false;
  // One slot after the other of both sides: what was written last is still in the caches.
  for (int slot = 0; slot < Window::kSlots && !done(); ++slot) {
    bool now = false;
    if (!sent_ && window_.sending_.front() == this) now |= send_frame();
    if (!received_ && window_.receiving_.front() == this) now |= receive_turn();
    if (!now) break;
    moved = true;
  }
  return moved;
}

bool Exchange::send_frame() {
  if (send_turn_ >= std::max(personal_chunks_, common_chunks_ == 0 ? 0 : common_chunks_ + lag_)) {
    sent_ = true;
    window_.sending_.pop_front();
    return true;
  }
  bool moved = false;
  if (!personal_sent_) {
    moved = send_turn_ < personal_chunks_;
    if (moved && !send_personal(send_turn_)) return false;
    personal_sent_ = true;
  }
  const bool has_common = send_turn_ >= lag_ && send_turn_ - lag_ < common_chunks_;
  if (has_common && !send_common(send_turn_ - lag_)) return moved;
  personal_sent_ = false;
  ++send_turn_;
  return true;
}

bool Exchange::send_personal(std::size_t chunk) {
  const std::optional<Window::Slot> slot = window_.begin_slot();
  if (!slot) return false;
  const std::size_t chunk_size = chunk_bytes(ExchangeParts::Chunks::kPersonal);
  std::uint32_t used = 0;
  for (int distance = 1; distance < window_.size_; ++distance) {
    const int to = (window_.rank_ + distance) % window_.size_;
    const auto piece = part(parts_.personal[std::size_t(to)], chunk, chunk_size);
    if (piece.empty()) continue;
    std::memcpy(slot->data + used, piece.data(), piece.size());
    window_.post(to, {number_, slot->offset + used, std::uint32_t(piece.size())});
    used += std::uint32_t(chunk_size);
  }
  window_.finish_slot();
  return true;
}

bool Exchange::send_common(std::size_t chunk) {
  if (parts_.common_is_reduced && num_reduced_ <= chunk) return false;
  const std::optional<Window::Slot> slot = window_.begin_slot();
  if (!slot) return false;
  const auto piece = part(parts_.common, chunk, chunk_bytes(parts_.common_chunks));
  std::memcpy(slot->data, piece.data(), piece.size());
  for (int distance = 1; distance < window_.size_; ++distance) {
    const int to = (window_.rank_ + distance) % window_.size_;
    window_.post(to, {number_, slot->offset, std::uint32_t(piece.size())});
  }
  window_.finish_slot();
  return true;
}

bool Exchange::receive_turn() {
  if (receive_turn_ >= std::max(sum_chunks_, gathered_chunks_ == 0 ? 0 : gathered_chunks_ + lag_)) {
    received_ = true;
    window_.receiving_.pop_front();
    return true;
  }
  bool moved = false;
  if (!sum_received_) {
    moved = receive_turn_ < sum_chunks_;
    if (moved && !receive_sum(receive_turn_)) return false;
    sum_received_ = true;
  }
  if (receive_turn_ >= lag_ && receive_turn_ - lag_ < gathered_chunks_) {
    const Taken taken = receive_gathered(receive_turn_ - lag_);
    if (taken != Taken::kAll) return moved || taken == Taken::kSome;
  }
  sum_received_ = false;
  ++receive_turn_;
  return true;
}

bool Exchange::receive_sum(std::size_t chunk) {
  const ExchangeParts::Reduction& reduction = *parts_.reduction;
  // The sum may take the place of what this member gives to all.
  if (reduction.chunks == ExchangeParts::Chunks::kCommon && !sent_) return false;
  const std::size_t chunk_size = chunk_bytes(reduction.chunks);
  const auto own = part(reduction.own, chunk, chunk_size);
  for (int from = 0; from < window_.size_; ++from) {
    const std::byte*& piece = pieces_[std::size_t(from)];
    piece = from == window_.rank_ ? own.data() : window_.next_of(from, number_, own.size());
    if (piece == nullptr) return false;
  }
  reduce_in_order(reduction.dtype,
                  reduction.op,
                  pieces_,
                  reduction.output + chunk * chunk_size,
                  std::int64_t(own.size() / size_of(reduction.dtype)));
  for (int from = 0; from < window_.size_; ++from) {
    if (from != window_.rank_) window_.take(from);
  }
  num_reduced_ = chunk + 1;
  return true;
}

Exchange::Taken Exchange::receive_gathered(std::size_t chunk) {
  const std::size_t chunk_size = chunk_bytes(parts_.gathered_chunks);
  bool some = false, all = true;
  for (int distance = 1; distance < window_.size_; ++distance) {
    const int from = (window_.rank_ + distance) % window_.size_;
    std::size_t& count = num_gathered_[std::size_t(from)];
    const auto to = part(parts_.gathered[std::size_t(from)], chunk, chunk_size);
    if (count > chunk || to.empty()) continue;
    const std::byte* const data = window_.next_of(from, number_, to.size());
    if (data == nullptr) {
      all = false;
      continue;
    }
    if (gathers_past_caches_) {
      stream_copy({data, to.size()}, to);
    } else {
      std::memcpy(to.data(), data, to.size());
    }
    window_.take(from);
    count = chunk + 1;
    some = true;
  }
  return all ? Taken::kAll : some ? Taken::kSome : Taken::kNone;
}

std::vector<int> Exchange::missing_here() const {
  std::vector<int> members;
  const bool sums = !sum_received_ && receive_turn_ < sum_chunks_;
  for (int from = 0; from < window_.size_; ++from) {
    if (from == window_.rank_ || window_.has_next(from)) continue;
    bool awaited = sums;
    if (!sums && receive_turn_ >= lag_ && !parts_.gathered.empty()) {
      const std::size_t chunk = receive_turn_ - lag_;
      awaited =
          num_gathered_[std::size_t(from)] <= chunk &&
          chunk * chunk_bytes(parts_.gathered_chunks) < parts_.gathered[std::size_t(from)].size();
    }
    if (awaited) members.push_back(from);
  }
  return members;
}

std::vector<int> Exchange::missing() const {
  // An exchange in front holds up those behind it.
  if (received_) return {};
  return window_.receiving_.front()->missing_here();
}

std::vector<int> Exchange::not_taken() const {
  if (sent_) return {};
  return window_.holders_of_slot();
}

}  // namespace pecan::comm
