#pragma once
/// Which of the snapshot buffers is free, being written to storage, or whole in storage. Pure.

#include <array>
#include <cstdint>
#include <optional>

#include <pecan/checkpoint/select.hpp>

namespace pecan::checkpoint {

enum class BufferState : std::uint8_t {
  kSnapshot,  ///< free, being filled, or filled and not (yet) for storage
  kPersist,   ///< being written to storage
  kRecovery   ///< whole in storage
};

/// What one buffer holds.
struct Buffer {
  BufferState state = BufferState::kSnapshot;
  std::int64_t generation = 0;  ///< number of the snapshot in it, from 1; 0: nothing
  bool complete = false;        ///< on all ranks
  bool waiting = false;         ///< complete, and for storage when the one before it is written
  bool operator==(const Buffer&) const = default;
};

enum class SnapshotEnd : std::uint8_t { kWhole, kFailed };

/// A snapshot begins.
struct Begun {
  int buffer = 0;
  bool owes_storage = false;  ///< it took the place of a waiting one and must be for storage
};

/// Cycle of up to three buffers. Every rank makes the same calls, on decisions that all share.
/// Invariants: at most one kPersist and one kRecovery; what is in kRecovery is whole in storage; the
/// newest complete generation is never overwritten before a newer one is complete, so that with
/// three buffers memory always holds one.
/// Source: MoC section 5.1 (triple buffer). Differs from the paper: a waiting snapshot is replaced
/// only where neither a free buffer nor the one in kRecovery, which storage has too, can be taken;
/// with one buffer a snapshot is taken only when the one before is in storage.
class TripleBuffer {
 public:
  static constexpr int kMaxBuffers = 3;
  /// `num_buffers`: 1 (storage only) or 3.
  explicit TripleBuffer(int num_buffers);

  /// A buffer for the next snapshot; none if each holds what must not be lost or is in use.
  [[nodiscard]] std::optional<Begun> begin_snapshot();
  /// The snapshot under way is on all ranks (kWhole), or failed on some. `for_storage`: it waits for
  /// its turn; with a failed one, so that what has begun to be written is given up in the usual way.
  void end_snapshot(SnapshotEnd end, ForStorage for_storage);
  /// The waiting buffer becomes kPersist, if none is; which one.
  std::optional<int> begin_persist();
  /// The kPersist buffer has been read; it may be filled again.
  void end_persist();
  /// The generation is whole in storage: its buffer, if it still holds it, is now the kRecovery one.
  void committed(std::int64_t generation);

  /// What an earlier start has left, by buffer in the order of time (1 oldest; 0: nothing): whole
  /// generations, that of the recovery the newest. Before all else.
  void adopt(const std::array<int, kMaxBuffers>& order);
  /// All buffers may be used from now on (they are too small for a full checkpoint, of which the
  /// first must be in storage before).
  void use_all() { num_buffers_ = kMaxBuffers; }
  /// Nothing is written and nothing waits for it; no snapshot is under way.
  [[nodiscard]] bool idle() const;
  [[nodiscard]] std::optional<int> filling() const { return filling_; }
  [[nodiscard]] std::optional<int> persisting() const;
  [[nodiscard]] std::optional<int> waiting() const;
  /// Buffer of the newest generation that is complete.
  [[nodiscard]] std::optional<int> newest() const;
  [[nodiscard]] int size() const { return num_buffers_; }
  [[nodiscard]] const Buffer& operator[](int buffer) const {
    return buffers_[std::size_t(buffer)];
  }
  bool operator==(const TripleBuffer&) const = default;

 private:
  template <typename Predicate>
  [[nodiscard]] std::optional<int> find(Predicate predicate) const;
  Begun take(int buffer);

  int num_buffers_;
  std::array<Buffer, kMaxBuffers> buffers_{};
  std::optional<int> filling_;
  std::int64_t num_generations_ = 0;
};

}  // namespace pecan::checkpoint
