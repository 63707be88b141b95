#pragma once
/// Messages from device to device, between the processes of one job; made by a Backend.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace pecan::device {

/// Names a communicator that is to be made to all of its members.
struct CommunicatorId {
  std::array<std::byte, 128> bytes{};
};

/// One of several messages that go at once.
struct DeviceMessage {
  enum class Direction : std::uint8_t { kSend, kReceive };
  Direction direction = Direction::kSend;
  int peer = 0;
  std::byte* memory = nullptr;  ///< of the communicator's device; a send only reads it
  std::size_t num_bytes = 0;
};

/// One member's end of a communicator. A failed call throws CommError in the library's own words.
/// All calls come from one thread, but for failure() and abort(). Destroying it waits a little for
/// what was enqueued, then gives it up.
class Communicator {
 public:
  Communicator() = default;
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  /// Whether all members have come; before that nothing else may be asked of it. Does not block.
  [[nodiscard]] virtual bool ready() = 0;
  /// Enqueues `messages` on `stream`, a handle of Stream: none of them waits for another. Those
  /// from one member to another match in the order of calls, with equal sizes. May block until
  /// members have met for the first time, and ends with CommError on abort().
  virtual void exchange(void* stream, std::span<const DeviceMessage> messages) = 0;
  /// Empty while all is well, nothing where that cannot be told since an exchange() goes on; from
  /// any thread, without waiting.
  [[nodiscard]] virtual std::optional<std::string> failure() = 0;
  /// Ends what was enqueued as it stands: streams go on, and what they find in memory is of no use.
  /// From any thread, in bounded time.
  virtual void abort() noexcept = 0;
};

}  // namespace pecan::device
