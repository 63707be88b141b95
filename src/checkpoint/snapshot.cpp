#include "checkpoint/snapshot.hpp"

namespace pecan::checkpoint {

template <typename Visit>
std::size_t Snapshot::walk(const SavePlan& plan, Rank rank, Visit visit) const {
  std::size_t offset = 0;
  for (const PlannedWrite& write : plan.writes) {
    if (write.writer != rank) continue;
    const StateItem& item = catalog_.items[std::size_t(write.item.value)];
    const Block& block = item.blocks[std::size_t(write.block)].block;
    const std::size_t num_bytes = std::size_t(block.extent.num_elements()) * size_of(item.dtype);
    visit(SnapshotBlock{write, offset, num_bytes});
    offset += (num_bytes + device::kBufferAlignment - 1) / device::kBufferAlignment *
              device::kBufferAlignment;
  }
  return offset;
}

std::size_t Snapshot::size_for(const SavePlan& plan, Rank rank) const {
  return walk(plan, rank, [](const SnapshotBlock&) {});
}

void Snapshot::reserve(std::size_t num_bytes) {
  if (num_bytes > buffer_.size()) buffer_ = device::PinnedBuffer(num_bytes);
}

void Snapshot::lay_out(const SavePlan& plan, Rank rank) {
  blocks_.clear();
  reserve(walk(plan, rank, [&](const SnapshotBlock& block) { blocks_.push_back(block); }));
}

void Snapshot::copy(MutatedIn phase) {
  for (const SnapshotBlock& block : blocks_) {
    const StateItem& item = catalog_.items[std::size_t(block.write.item.value)];
    if (item.mutated_in != phase) continue;
    binding_.copy_out(block.write.item,
                      item.blocks[std::size_t(block.write.block)].block,
                      buffer_.bytes().subspan(block.offset, block.num_bytes));
  }
}

}  // namespace pecan::checkpoint
