#pragma once
/// Collectives under way: what they wait for, what comes next, and who holds them up.

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/device/device.hpp>

#include <pecan/comm/group.hpp>

#include "comm/abort_flag.hpp"
#include "comm/shared_block.hpp"
#include "comm/transport.hpp"
#include "comm/window.hpp"

namespace pecan::comm {

class PeerOperation;

/// What one rank's first group and all its splits share: operations under way, scratch memory,
/// step, abort.
class Family {
 public:
  Family(std::shared_ptr<AbortFlag> flag, GroupOptions group_options)
      : abort_flag(std::move(flag)), options(std::move(group_options)) {}

  /// A collective or message begins.
  void begin(std::string_view operation, Tag tag) {
    ++num_begun_;
    if (options.observer) options.observer({num_begun_, operation, tag, step});
  }

  /// Advances every unfinished operation, so that waiting for one never holds up another. True if
  /// anything moved.
  bool progress();
  void add(PeerOperation& operation) { unfinished_.push_back(&operation); }
  void remove(PeerOperation& operation) { std::erase(unfinished_, &operation); }
  /// At least `num_bytes` of memory, used before where possible.
  [[nodiscard]] device::Buffer take_scratch(std::size_t num_bytes);
  void return_scratch(device::Buffer buffer) { scratch_.push_back(std::move(buffer)); }
  /// Counts memory that a group of this rank takes for good.
  void add_scratch(std::size_t num_bytes) { scratch_bytes_ += num_bytes; }
  [[nodiscard]] std::size_t scratch_bytes() const { return scratch_bytes_; }

  const std::shared_ptr<AbortFlag> abort_flag;  ///< shared with whom it ends: see AbortFlag
  const GroupOptions options;
  Step step;

 private:
  std::vector<PeerOperation*> unfinished_;
  std::vector<device::Buffer> scratch_;
  std::size_t scratch_bytes_ = 0;
  std::int64_t num_begun_ = 0;
};

/// Bytes that a request for scratch memory really takes: powers of two are few sizes, so that what
/// one collective gave back fits the next.
[[nodiscard]] std::size_t scratch_size(std::size_t num_bytes);

/// What an operation needs of its group.
struct Peers {
  std::unique_ptr<Transport> transport;
  std::shared_ptr<Family> family;  ///< shared by the groups that one was split from
  std::vector<int> world_ranks;    ///< of the members, for messages
  SharedBlock memory;              ///< of the window
  std::unique_ptr<Window> window;  ///< of members that share memory; else null
  std::array<Traffic, std::size_t(Purpose::kCount)> traffic{};
};

/// One collective: messages or an exchange through the window to wait for, then a step, which may
/// post more messages, and so on.
class PeerOperation final : public Pending::Operation {
 public:
  /// `peers` outlives the operation.
  PeerOperation(Peers& peers, std::string name, Tag tag, int message_tag);
  ~PeerOperation() override;
  PeerOperation(const PeerOperation&) = delete;
  PeerOperation& operator=(const PeerOperation&) = delete;
  bool test() override;
  /// In a destructor that runs because of an exception: gives up at once, since the peers may wait
  /// for what this rank will not do any more.
  void wait() override;

  void send(std::span<const std::byte> data, int to);
  void receive(std::span<std::byte> data, int from);
  /// Through the window, which there is; once.
  void exchange(ExchangeParts parts);
  /// Runs `step` when all that was posted before is complete.
  void then(std::function<void()> step) { steps_.push_back(std::move(step)); }
  /// 64-byte aligned memory that lasts until the operation is complete.
  [[nodiscard]] std::byte* scratch(std::size_t num_bytes);
  /// Goes on as far as possible without waiting; true if anything moved. An error is kept for
  /// test() and wait().
  bool advance();
  [[nodiscard]] bool over() const { return done_ || error_ != nullptr; }

 private:
  [[nodiscard]] int world_rank() const;
  struct Message {
    std::unique_ptr<Transport::Request> request;
    int peer;
    bool is_receive;
  };
  /// The peers for which one direction waits, as world ranks: "5, 6".
  [[nodiscard]] std::string peers_of(bool receives) const;
  [[nodiscard]] std::string describe_wait() const;
  /// Gives up, and ends the family, whose members would otherwise wait for this one.
  void fail(std::exception_ptr error, const std::string& what);
  /// True when complete, counting the time once; throws the error there is.
  bool conclude();

  Peers& peers_;
  std::string name_;
  Tag tag_;
  int message_tag_;
  int exceptions_at_start_ = std::uncaught_exceptions();
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::vector<Message> messages_;
  std::unique_ptr<Exchange> exchange_;
  std::vector<std::function<void()>> steps_;
  std::size_t next_step_ = 0;
  std::vector<device::Buffer> scratch_;
  bool done_ = false;
  bool counted_ = false;
  std::exception_ptr error_;
};

}  // namespace pecan::comm
