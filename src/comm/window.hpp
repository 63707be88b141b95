#pragma once
/// Collectives of members that share memory: each copies what it gives into slots of its own, from
/// which the others read, copy or sum.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include <pecan/core/tensor.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::comm {

class Window;

/// What one member gives to an exchange and takes from it. Data goes through the slots in chunks of
/// a size that both sides know; a sum's chunks come from all members side by side.
struct ExchangeParts {
  enum class Chunks : std::uint8_t {
    kPersonal,  ///< one slot holds a chunk for each other member
    kCommon,    ///< one slot is a chunk, for all
  };
  struct Reduction {
    std::span<const std::byte> own;  ///< as long as what each other member gives
    std::byte* output;               ///< may be own
    DType dtype;
    ReduceOp op;
    Chunks chunks;
  };

  std::vector<std::span<const std::byte>> personal;  ///< for each member, or none; own one unused
  std::span<const std::byte> common;                 ///< for all others
  Chunks common_chunks = Chunks::kCommon;
  std::optional<Reduction> reduction;
  /// Goes into common, chunk by chunk: each is sent when it is reduced.
  bool common_is_reduced = false;
  std::vector<std::span<std::byte>> gathered;  ///< from each member, or none; own one unused
  Chunks gathered_chunks = Chunks::kCommon;
};

/// One collective through a window, of which it is a member's part. The buffers stay untouched
/// until it is done.
class Exchange {
 public:
  /// Exchanges of one window are made by all members in the same order.
  Exchange(Window& window, ExchangeParts parts);
  /// Of an unfinished one: the window is of no use any more.
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  /// Goes on without waiting, by at most the slots of a member; true if anything moved. CommError
  /// where the counts of two members differ.
  bool advance();
  [[nodiscard]] bool done() const { return sent_ && received_; }
  /// Bytes of all that is given to others, each counted for each taker.
  [[nodiscard]] std::int64_t sent_bytes() const { return sent_bytes_; }
  /// Members of which data is awaited.
  [[nodiscard]] std::vector<int> missing() const;
  /// Members that keep the slots occupied which this member needs.
  [[nodiscard]] std::vector<int> not_taken() const;

 private:
  [[nodiscard]] std::size_t chunk_bytes(ExchangeParts::Chunks chunks) const;
  bool send_frame();
  bool send_personal(std::size_t chunk);
  bool send_common(std::size_t chunk);
  bool receive_turn();
  bool receive_sum(std::size_t chunk);
  enum class Taken : std::uint8_t { kNone, kSome, kAll };
  Taken receive_gathered(std::size_t chunk);
  [[nodiscard]] std::vector<int> missing_here() const;

  Window& window_;
  const ExchangeParts parts_;
  const std::uint64_t number_;
  std::int64_t sent_bytes_ = 0;
  // A turn of either side is chunk `turn` of what is personal (of the sum), then chunk turn - lag_
  // of what is common (gathered).
  std::size_t lag_ = 0;
  std::size_t personal_chunks_ = 0, common_chunks_ = 0, sum_chunks_ = 0, gathered_chunks_ = 0;
  std::size_t send_turn_ = 0, receive_turn_ = 0;
  bool gathers_past_caches_ = false;
  bool personal_sent_ = false, sum_received_ = false;  // of this turn
  std::size_t num_reduced_ = 0;
  std::vector<std::size_t> num_gathered_;  // chunks of each member
  std::vector<const std::byte*> pieces_;   // of one chunk of the sum
  bool sent_ = false, received_ = false;
};

/// The slots of all members in memory that they share, and this member's place in them.
///
/// A member writes a chunk into its next slot and posts it to each member that it is for; a slot is
/// written again when all of these have taken it. Posting and taking are counters, each stored by
/// one member alone: posted with release after the slot is written, and read with acquire before it
/// is read; taken with release after it was read, and read with acquire before it is written again.
///
/// Exchanges send in the order in which they were made, and receive in this order. So, and because
/// the turns of an exchange have one order for all, the first chunk of all that is not taken can
/// always be written and taken: few slots suffice for whatever is under way.
class Window {
 public:
  static constexpr int kSlots = 4;  ///< of each member

  /// Bytes of the memory that `size` members share.
  [[nodiscard]] static std::size_t memory_bytes(int size, std::size_t slot_bytes);
  /// The part of it that a member writes most of.
  struct Part {
    std::size_t begin, num_bytes;
  };
  [[nodiscard]] static Part part_of(int member, int size, std::size_t slot_bytes);

  /// `memory` is zeroed before the first member makes its Window, and outlives it. Slots have at
  /// least `slot_bytes`, and 64 bytes for each member.
  Window(std::span<std::byte> memory, int size, int rank, std::size_t slot_bytes);

  [[nodiscard]] int size() const { return size_; }
  [[nodiscard]] int rank() const { return rank_; }

 private:
  friend class Exchange;
  struct Entry {
    std::uint64_t exchange;
    std::uint32_t offset;  ///< in the member's slots
    std::uint32_t num_bytes;
  };
  /// From one member to one other. Counters and entries of the two sides share no cache line.
  struct Channel {
    alignas(64) std::uint64_t posted;
    Entry entries[kSlots];
    alignas(64) std::uint64_t taken;
  };
  struct Slot {
    std::uint32_t offset;
    std::byte* data;
  };

  [[nodiscard]] static std::size_t slot_size(int size, std::size_t slot_bytes);
  [[nodiscard]] Channel& channel(int from, int to) const;
  [[nodiscard]] std::byte* slots_of(int member) const;
  /// The next slot to write, unless somebody still has to take what is in it.
  [[nodiscard]] std::optional<Slot> begin_slot();
  /// Whether `to` has to take what is in the next slot to write.
  [[nodiscard]] bool is_held(int to) const;
  [[nodiscard]] std::vector<int> holders_of_slot() const;
  void post(int to, const Entry& entry);
  /// All of the slot is posted.
  void finish_slot() { ++num_written_; }
  /// What `from` has posted next, or null; CommError unless it is of `exchange` and as long.
  [[nodiscard]] const std::byte* next_of(int from,
                                         std::uint64_t exchange,
                                         std::size_t num_bytes) const;
  [[nodiscard]] bool has_next(int from) const;
  void take(int from);

  std::byte* const memory_;
  const int size_, rank_;
  const std::size_t slot_bytes_;
  std::uint64_t num_exchanges_ = 0;
  std::uint64_t num_written_ = 0;                      // slots
  std::vector<std::uint64_t> posted_, taken_;          // to and of each member
  std::vector<std::vector<std::uint64_t>> posted_in_;  // each slot to each member, counted; 0: not
  std::deque<Exchange*> sending_, receiving_;          // unfinished ones, in order
};

}  // namespace pecan::comm
