#include "checkpoint/snapshot.hpp"

#include <utility>

#include <pecan/core/hash.hpp>

#include "checkpoint/segment.hpp"

namespace pecan::checkpoint {
namespace {

std::size_t aligned(std::size_t num_bytes) {
  return (num_bytes + device::kBufferAlignment - 1) / device::kBufferAlignment *
         device::kBufferAlignment;
}

std::size_t payload_bytes(const StateCatalog& catalog, const PlannedWrite& write) {
  const StateItem& item = catalog.items[std::size_t(write.item.value)];
  const Block& block = item.blocks[std::size_t(write.block)].block;
  return std::size_t(block.extent.num_elements()) * size_of(item.dtype);
}

}  // namespace

std::vector<SnapshotBlock> lay_out(const StateCatalog& catalog, const SavePlan& plan, Rank rank) {
  std::vector<SnapshotBlock> blocks;
  std::size_t offset = 0;
  for (const PlannedWrite& write : plan.writes) {
    if (write.writer != rank) continue;
    const std::size_t num_bytes = payload_bytes(catalog, write);
    blocks.push_back({write, offset, num_bytes});
    offset += aligned(num_bytes);
  }
  return blocks;
}

std::size_t snapshot_bytes(const StateCatalog& catalog, const PlannedWrite& write) {
  return aligned(payload_bytes(catalog, write));
}

std::size_t layout_bytes(const std::vector<SnapshotBlock>& blocks) {
  return blocks.empty() ? 0 : blocks.back().offset + aligned(blocks.back().num_bytes);
}

ShardBlock describe(const StateItem& item, int block, Step step) {
  return {item.name,
          item.dataset,
          item.dtype,
          item.global_shape,
          item.blocks[std::size_t(block)].block,
          step,
          0};
}

void Snapshot::reserve(std::size_t num_bytes, std::size_t num_blocks) {
  bytes_ = memory_->reserve(num_bytes, num_blocks);
}

void Snapshot::lay_out(const SavePlan& plan, Rank rank) {
  memory_->begin();
  binding_->begin_copies();
  rank_ = rank;
  blocks_ = checkpoint::lay_out(*catalog_, plan, rank);
  reserve(layout_bytes(blocks_), blocks_.size());
}

std::size_t Snapshot::copy(MutatedIn phase) {
  std::size_t num_bytes = 0;
  for (const SnapshotBlock& block : blocks_) {
    const StateItem& item = catalog_->items[std::size_t(block.write.item.value)];
    if (item.mutated_in != phase) continue;
    binding_->copy_out(block.write.item,
                       item.blocks[std::size_t(block.write.block)].block,
                       bytes_.subspan(block.offset, block.num_bytes));
    num_bytes += block.num_bytes;
  }
  binding_->finish_copies();
  return num_bytes;
}

Status Snapshot::seal(const Manifest& header) {
  if (!memory_->outlives_process()) return {};
  RankIndex index{header.version, rank_, {memory_file(rank_, layout_bytes(blocks_))}, {}};
  for (const SnapshotBlock& part : blocks_) {
    const StateItem& item = catalog_->items[std::size_t(part.write.item.value)];
    ShardBlock block = describe(item, part.write.block, header.version.step);
    block.xxh3 = xxh3(bytes(part));
    index.blocks.push_back({0, item.unit, item.group, std::move(block)});
  }
  return memory_->seal(header, index);
}

}  // namespace pecan::checkpoint
