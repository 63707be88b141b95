#include "comm/peer_operation.hpp"

#include <algorithm>
#include <bit>
#include <thread>
#include <utility>

#include <fmt/ranges.h>

#include <pecan/core/error.hpp>

namespace pecan::comm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

bool Family::progress() {
  bool moved = false;
  for (PeerOperation* operation : unfinished_) moved |= operation->advance();
  std::erase_if(unfinished_, [](const PeerOperation* operation) { return operation->over(); });
  return moved;
}

std::size_t scratch_size(std::size_t num_bytes) {
  return std::bit_ceil(std::max<std::size_t>(num_bytes, 4096));
}

device::Buffer Family::take_scratch(std::size_t num_bytes) {
  const std::size_t wanted = scratch_size(num_bytes);
  const auto found = std::ranges::find(scratch_, wanted, &device::Buffer::size);
  if (found == scratch_.end()) {
    scratch_bytes_ += wanted;
    return {device::cpu(), wanted};
  }
  device::Buffer buffer = std::move(*found);
  scratch_.erase(found);
  return buffer;
}

PeerOperation::PeerOperation(Peers& peers, std::string name, Tag tag, int message_tag)
    : peers_(peers), name_(std::move(name)), tag_(tag), message_tag_(message_tag) {
  ++peers_.traffic[std::size_t(tag.purpose)].calls;
  peers_.family->add(*this);
}

PeerOperation::~PeerOperation() {
  messages_.clear();
  exchange_.reset();
  for (device::Buffer& buffer : scratch_) peers_.family->return_scratch(std::move(buffer));
  peers_.family->remove(*this);
}

void PeerOperation::send(std::span<const std::byte> data, int to) {
  while (!data.empty()) {
    const auto part = data.first(std::min(data.size(), Transport::kMaxMessageBytes));
    messages_.push_back({peers_.transport->send(part, to, message_tag_), to, false});
    if (to != peers_.transport->rank()) {
      peers_.traffic[std::size_t(tag_.purpose)].sent_bytes += std::int64_t(part.size());
    }
    data = data.subspan(part.size());
  }
}

void PeerOperation::receive(std::span<std::byte> data, int from) {
  while (!data.empty()) {
    const auto part = data.first(std::min(data.size(), Transport::kMaxMessageBytes));
    messages_.push_back({peers_.transport->receive(part, from, message_tag_), from, true});
    data = data.subspan(part.size());
  }
}

void PeerOperation::exchange(ExchangeParts parts) {
  PECAN_EXPECTS(exchange_ == nullptr);
  exchange_ = std::make_unique<Exchange>(*peers_.window, std::move(parts));
  peers_.traffic[std::size_t(tag_.purpose)].sent_bytes += exchange_->sent_bytes();
}

std::byte* PeerOperation::scratch(std::size_t num_bytes) {
  return scratch_.emplace_back(peers_.family->take_scratch(num_bytes)).data();
}

bool PeerOperation::advance() {
  bool moved = false;
  try {
    while (!over()) {
      moved |= std::erase_if(messages_, [](const Message& m) { return m.request->test(); }) > 0;
      if (exchange_) moved |= exchange_->advance();
      if (!messages_.empty() || (exchange_ && !exchange_->done())) break;
      moved = true;
      if (next_step_ < steps_.size()) {
        steps_[next_step_++]();
      } else {
        done_ = true;
      }
    }
  } catch (const std::exception& error) {
    fail(std::current_exception(), error.what());
  }
  return moved;
}

bool PeerOperation::test() {
  if (!over()) {
    peers_.family->abort_flag->check();
    peers_.family->progress();
  }
  return conclude();
}

void PeerOperation::wait() {
  // Ranks may outnumber cores: give way at once, and sleep when it takes longer than a context
  // switch.
  constexpr int kYields = 500;
  constexpr std::chrono::microseconds kNap{50};
  const auto timeout = peers_.family->options.timeout;
  const auto begin = Clock::now();
  for (int fruitless = 0; !over(); ++fruitless) {
    peers_.family->abort_flag->check();
    if (peers_.family->progress()) {
      fruitless = 0;
    } else if (std::uncaught_exceptions() > exceptions_at_start_) {
      const std::string what =
          fmt::format("rank {} gave up {} because of an exception", world_rank(), name_);
      fail(std::make_exception_ptr(AbortedError(what)), what);
    } else if (timeout.count() > 0 && Clock::now() - begin > timeout) {
      const std::string what = describe_wait();
      fail(std::make_exception_ptr(CommError(what)), what);
    } else if (fruitless < kYields) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kNap);
    }
  }
  conclude();
}

int PeerOperation::world_rank() const {
  return peers_.world_ranks[std::size_t(peers_.transport->rank())];
}

std::string PeerOperation::peers_of(bool receives) const {
  std::vector<int> ranks;
  for (const Message& message : messages_) {
    if (message.is_receive == receives) {
      ranks.push_back(peers_.world_ranks[std::size_t(message.peer)]);
    }
  }
  if (exchange_) {
    for (const int member : receives ? exchange_->missing() : exchange_->not_taken()) {
      ranks.push_back(peers_.world_ranks[std::size_t(member)]);
    }
  }
  std::ranges::sort(ranks);
  ranks.erase(std::ranges::unique(ranks).begin(), ranks.end());
  return fmt::format("{}", fmt::join(ranks, ", "));
}

std::string PeerOperation::describe_wait() const {
  const std::string missing = peers_of(true), not_taken = peers_of(false);
  return fmt::format(
      "rank {} waited {:.3g} s in {} ({}{}, step {}): {}{}{}; see what was logged last there, or "
      "raise comm.timeout_s if such a wait is expected",
      world_rank(),
      std::chrono::duration<double>(peers_.family->options.timeout).count(),
      name_,
      name_of(tag_.purpose),
      tag_.layer == kNoLayer ? std::string() : fmt::format(", layer {}", tag_.layer),
      peers_.family->step,
      missing.empty() ? "" : "data is missing from rank " + missing,
      missing.empty() || not_taken.empty() ? "" : ", ",
      not_taken.empty() ? "" : "data was not taken by rank " + not_taken);
}

void PeerOperation::fail(std::exception_ptr error, const std::string& what) {
  error_ = std::move(error);
  messages_.clear();
  exchange_.reset();
  peers_.family->abort_flag->raise(what);
}

bool PeerOperation::conclude() {
  if (error_) std::rethrow_exception(error_);
  if (done_ && !std::exchange(counted_, true)) {
    peers_.traffic[std::size_t(tag_.purpose)].seconds += seconds_since(start_);
  }
  return done_;
}

}  // namespace pecan::comm
