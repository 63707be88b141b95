#pragma once
/// The host copy of what this rank holds of one generation.

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/checkpoint/plan.hpp>

#include "checkpoint/buffer_memory.hpp"

namespace pecan::checkpoint {

/// One block of the plan and its place in the buffer.
struct SnapshotBlock {
  PlannedWrite write;
  std::size_t offset = 0;
  std::size_t num_bytes = 0;
};

/// One buffer: laid out and its `forward` items copied by the main thread, the rest copied by the
/// copier, read by the writer.
class Snapshot {
 public:
  /// `catalog` and `binding` outlive the object.
  Snapshot(const StateCatalog& catalog,
           const StateBinding& binding,
           std::unique_ptr<BufferMemory> memory)
      : catalog_(&catalog), binding_(&binding), memory_(std::move(memory)) {}
  /// Makes room for `num_bytes` in `num_blocks` blocks.
  void reserve(std::size_t num_bytes, std::size_t num_blocks);
  /// Gives each block that `rank` writes its place, and opens the memory for them. What is copied
  /// is the state as of now: main thread.
  void lay_out(const SavePlan& plan, Rank rank);
  /// Copies the laid-out items that are mutated in `phase`, and waits for the copies; returns the
  /// bytes.
  std::size_t copy(MutatedIn phase);
  /// Closes the memory over the copied blocks.
  Status seal(const Manifest& header);
  [[nodiscard]] const std::vector<SnapshotBlock>& blocks() const { return blocks_; }
  [[nodiscard]] std::span<const std::byte> bytes(const SnapshotBlock& block) const {
    return std::span<const std::byte>(bytes_).subspan(block.offset, block.num_bytes);
  }
  /// What an earlier process has left in it must not be used again.
  void invalidate() { memory_->begin(); }
  [[nodiscard]] const Segment* segment() const { return memory_->segment(); }
  void remove() { memory_->remove(); }

 private:
  const StateCatalog* catalog_;
  const StateBinding* binding_;
  std::unique_ptr<BufferMemory> memory_;
  std::span<std::byte> bytes_;
  std::vector<SnapshotBlock> blocks_;
  Rank rank_;
};

/// The blocks that `rank` writes by `plan`, each at a multiple of device::kBufferAlignment.
[[nodiscard]] std::vector<SnapshotBlock> lay_out(const StateCatalog& catalog,
                                                 const SavePlan& plan,
                                                 Rank rank);
/// Bytes that one block takes in a buffer, with what aligns the next.
[[nodiscard]] std::size_t snapshot_bytes(const StateCatalog& catalog, const PlannedWrite& write);
/// Bytes of a buffer with this layout.
[[nodiscard]] std::size_t layout_bytes(const std::vector<SnapshotBlock>& blocks);
/// A block's description in a shard or a segment, without its checksum.
[[nodiscard]] ShardBlock describe(const StateItem& item, int block, Step step);

}  // namespace pecan::checkpoint
