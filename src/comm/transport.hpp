#pragma once
/// What a kind of group has to bring: bytes from one member to another.

#include <cstddef>
#include <memory>
#include <span>

namespace pecan::comm {

/// Point-to-point messages between the members of one group, from the one thread that owns this
/// member. Messages of equal (sender, receiver, tag) match in the order in which they were posted;
/// a message has the same size on both sides. A send may complete only when it is received: callers
/// must not rely on more.
class Transport {
 public:
  /// Largest message; what is larger is sent in pieces. (MPI counts in int.)
  static constexpr std::size_t kMaxMessageBytes = std::size_t{4} << 20;
  /// Tags are 0 .. kMaxTag, what every MPI has.
  static constexpr int kMaxTag = 32767;

  /// A message under way. Destroying it early cancels it as far as this member goes: its buffer is
  /// free again.
  class Request {
   public:
    Request() = default;
    virtual ~Request() = default;
    Request(const Request&) = delete;
    Request& operator=(const Request&) = delete;
    /// True when complete, and from then on; CommError where the sizes differ or the transport
    /// fails.
    virtual bool test() = 0;
  };

  Transport() = default;
  virtual ~Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;
  [[nodiscard]] virtual int size() const = 0;
  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual std::unique_ptr<Request> send(std::span<const std::byte> data,
                                                      int to,
                                                      int tag) = 0;
  [[nodiscard]] virtual std::unique_ptr<Request> receive(std::span<std::byte> data,
                                                         int from,
                                                         int tag) = 0;
  /// Whether all members can share memory as far as their places go. Collective over this group.
  [[nodiscard]] virtual bool is_on_one_node() = 0;
  /// Transport between `members` (this group's ranks, in the order of the new one), of which this
  /// is members[index]. Collective over this group, whose members fall into disjoint lists.
  [[nodiscard]] virtual std::unique_ptr<Transport> split(std::span<const int> members,
                                                         int index) = 0;
};

}  // namespace pecan::comm
