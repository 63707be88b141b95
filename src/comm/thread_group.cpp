#include <algorithm>
#include <atomic>
#include <compare>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <pecan/core/error.hpp>

#include <pecan/comm/group.hpp>

#include "comm/peer_group.hpp"

namespace pecan::comm {
namespace {

/// Which messages match.
struct ChannelKey {
  int context, from, to, tag;
  auto operator<=>(const ChannelKey&) const = default;
};

class ThreadWorld;

/// A send or a receive that waits for its counterpart; whichever comes second copies the bytes.
class ThreadRequest final : public Transport::Request {
 public:
  ThreadRequest(std::shared_ptr<ThreadWorld> world,
                ChannelKey key,
                std::span<const std::byte> sent);
  ThreadRequest(std::shared_ptr<ThreadWorld> world, ChannelKey key, std::span<std::byte> received);
  ~ThreadRequest() override;
  bool test() override;

 private:
  friend class ThreadWorld;
  const std::shared_ptr<ThreadWorld> world_;  // shared by all members, their groups and messages
  const ChannelKey key_;
  const std::span<const std::byte> sent_;
  const std::span<std::byte> received_;
  const bool is_send_;
  std::string error_;  // constant once done_
  std::atomic<bool> done_ = false;
};

/// Where the messages of all members meet.
class ThreadWorld {
 public:
  /// Completes `request` and its counterpart, or lets it wait.
  void post(ThreadRequest& request) {
    const std::lock_guard lock(mutex_);
    auto& waiting = waiting_[request.key_];
    if (waiting.empty() || waiting.front()->is_send_ == request.is_send_) {
      waiting.push_back(&request);
      return;
    }
    ThreadRequest& other = *waiting.front();
    waiting.pop_front();
    if (waiting.empty()) waiting_.erase(request.key_);
    // Under the lock, so that neither member can take its memory away meanwhile.
    const auto& [sender, receiver] =
        request.is_send_ ? std::tie(request, other) : std::tie(other, request);
    if (sender.sent_.size() == receiver.received_.size()) {
      std::memcpy(receiver.received_.data(), sender.sent_.data(), sender.sent_.size());
    } else {
      sender.error_ = receiver.error_ =
          fmt::format("member {} sent {} bytes where member {} expects {}: their counts differ",
                      request.key_.from,
                      sender.sent_.size(),
                      request.key_.to,
                      receiver.received_.size());
    }
    sender.done_ = true;
    receiver.done_ = true;
  }

  void cancel(ThreadRequest& request) {
    const std::lock_guard lock(mutex_);
    const auto found = waiting_.find(request.key_);
    if (found == waiting_.end()) return;
    std::erase(found->second, &request);
    if (found->second.empty()) waiting_.erase(found);
  }

  /// Number of the group that begins with `first_member` in the `split_number`-th split of group
  /// `parent`.
  int context_of(int parent, int split_number, int first_member) {
    const std::lock_guard lock(mutex_);
    const auto next = int(contexts_.size()) + 1;
    return contexts_.try_emplace({parent, split_number, first_member}, next).first->second;
  }

 private:
  std::mutex mutex_;
  std::map<ChannelKey, std::deque<ThreadRequest*>> waiting_;  // each all sends or all receives
  std::map<std::tuple<int, int, int>, int> contexts_;
};

ThreadRequest::ThreadRequest(std::shared_ptr<ThreadWorld> world,
                             ChannelKey key,
                             std::span<const std::byte> sent)
    : world_(std::move(world)), key_(key), sent_(sent), is_send_(true) {
  world_->post(*this);
}

ThreadRequest::ThreadRequest(std::shared_ptr<ThreadWorld> world,
                             ChannelKey key,
                             std::span<std::byte> received)
    : world_(std::move(world)), key_(key), received_(received), is_send_(false) {
  world_->post(*this);
}

ThreadRequest::~ThreadRequest() {
  if (!done_) world_->cancel(*this);
}

bool ThreadRequest::test() {
  if (!done_) return false;
  PECAN_VALIDATE(error_.empty(), CommError, "{}", error_);
  return true;
}

class ThreadTransport final : public Transport {
 public:
  ThreadTransport(std::shared_ptr<ThreadWorld> world, int context, int size, int rank)
      : world_(std::move(world)), context_(context), size_(size), rank_(rank) {}
  [[nodiscard]] int size() const override { return size_; }
  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] std::unique_ptr<Request> send(std::span<const std::byte> data,
                                              int to,
                                              int tag) override {
    return std::make_unique<ThreadRequest>(world_, ChannelKey{context_, rank_, to, tag}, data);
  }
  [[nodiscard]] std::unique_ptr<Request> receive(std::span<std::byte> data,
                                                 int from,
                                                 int tag) override {
    return std::make_unique<ThreadRequest>(world_, ChannelKey{context_, from, rank_, tag}, data);
  }
  [[nodiscard]] bool is_on_one_node() override { return true; }
  [[nodiscard]] std::unique_ptr<Transport> split(std::span<const int> members, int index) override {
    const int context = world_->context_of(context_, num_splits_++, members.front());
    return std::make_unique<ThreadTransport>(world_, context, int(members.size()), index);
  }

 private:
  std::shared_ptr<ThreadWorld> world_;
  int context_, size_, rank_;
  int num_splits_ = 0;
};

}  // namespace

std::unique_ptr<Group> make_self_group(GroupOptions options) {
  return std::make_unique<PeerGroup>(
      std::make_unique<ThreadTransport>(std::make_shared<ThreadWorld>(), 0, 1, 0),
      std::make_shared<AbortFlag>(),
      options);
}

void run_thread_group(int size, const std::function<void(Group&)>& body, GroupOptions options) {
  PECAN_VALIDATE(size >= 1, ShapeError, "a group of {} members cannot be made: it needs one", size);
  const auto world = std::make_shared<ThreadWorld>();
  const auto abort_flag = std::make_shared<AbortFlag>();
  struct Outcome {
    std::exception_ptr cause;        // thrown by the body itself
    std::exception_ptr consequence;  // of another member's abort
  };
  std::vector<Outcome> outcomes;
  outcomes.resize(std::size_t(size));
  const auto run_member = [&](int rank) {
    Outcome& outcome = outcomes[std::size_t(rank)];
    try {
      PeerGroup group(std::make_unique<ThreadTransport>(world, 0, size, rank), abort_flag, options);
      group.open_window();
      body(group);
    } catch (const AbortedError&) {
      outcome.consequence = std::current_exception();
    } catch (const std::exception& error) {
      outcome.cause = std::current_exception();
      abort_flag->raise(fmt::format("rank {} failed: {}", rank, error.what()));
    } catch (...) {
      outcome.cause = std::current_exception();
      abort_flag->raise(fmt::format("rank {} failed", rank));
    }
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back(run_member, rank);
  for (std::thread& thread : threads) thread.join();
  for (const auto which : {&Outcome::cause, &Outcome::consequence}) {
    for (const Outcome& outcome : outcomes) {
      if (outcome.*which) std::rethrow_exception(outcome.*which);
    }
  }
}

}  // namespace pecan::comm
