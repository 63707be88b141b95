#pragma once
/// The host copy of what this rank writes in one checkpoint.

#include <cstddef>
#include <span>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/device/device.hpp>

#include <pecan/checkpoint/plan.hpp>

namespace pecan::checkpoint {

/// One block of the plan and its place in the buffer.
struct SnapshotBlock {
  PlannedWrite write;
  std::size_t offset = 0;
  std::size_t num_bytes = 0;
};

/// One buffer, used by one save at a time: laid out and its `forward` items copied by the main
/// thread, the rest copied and read by the writer thread.
class Snapshot {
 public:
  /// `catalog` and `binding` outlive the object.
  Snapshot(const StateCatalog& catalog, const StateBinding& binding)
      : catalog_(catalog), binding_(binding) {}
  /// Bytes that `rank` needs for `plan`.
  [[nodiscard]] std::size_t size_for(const SavePlan& plan, Rank rank) const;
  /// Makes the buffer at least `num_bytes` large; its content is lost if it grows.
  void reserve(std::size_t num_bytes);
  /// Gives each block that `rank` writes its place.
  void lay_out(const SavePlan& plan, Rank rank);
  /// Copies the laid-out items that are mutated in `phase`.
  void copy(MutatedIn phase);
  [[nodiscard]] const std::vector<SnapshotBlock>& blocks() const { return blocks_; }
  [[nodiscard]] std::span<const std::byte> bytes(const SnapshotBlock& block) const {
    return buffer_.bytes().subspan(block.offset, block.num_bytes);
  }

 private:
  template <typename Visit>
  std::size_t walk(const SavePlan& plan, Rank rank, Visit visit) const;

  const StateCatalog& catalog_;
  const StateBinding& binding_;
  device::PinnedBuffer buffer_;
  std::vector<SnapshotBlock> blocks_;
};

}  // namespace pecan::checkpoint
