#include "checkpoint/load.hpp"

#include <algorithm>
#include <memory>
#include <utility>

#include <pecan/checkpoint/shard.hpp>

#include "checkpoint/block_copy.hpp"

namespace pecan::checkpoint {

/// The shard that was read last: blocks of one file come in a row.
struct Loader::Reader {
  Reader(FileSystem& fs, const std::string& file)
      : path(file), shard(fs, file), opened(shard.open()) {}
  std::string path;
  ShardReader shard;
  Status opened;
};

Loader::Loader(FileSystem& fs,
               const std::string& root,
               const StateCatalog& catalog,
               const std::vector<StoredCheckpoint>& checkpoints,
               const MemorySources& memory,
               const Nodes& nodes,
               Rank rank)
    : fs_(fs), root_(root), catalog_(catalog), rank_(rank), memory_(memory), node_(nodes.of(rank)) {
  for (const StoredCheckpoint& checkpoint : checkpoints) {
    checkpoint_of_[checkpoint.manifest.version] = &checkpoint;
    auto& blocks = blocks_of_[checkpoint.manifest.version];
    for (const BlockEntry& entry : checkpoint.manifest.blocks) {
      blocks[entry.block.item + "/" + entry.block.dataset].push_back(&entry);
    }
  }
  for (std::size_t i = 0; i < catalog.items.size(); ++i) {
    items_of_[{catalog.items[i].unit, catalog.items[i].group}].emplace_back(std::int32_t(i));
  }
}

Loader::~Loader() = default;

std::vector<Failure> Loader::load(std::span<const UnitRestore> restores,
                                  const Received& received,
                                  StateBinding& binding) {
  std::vector<Failure> failures;
  for (const UnitRestore& restore : restores) {
    if (restore.tier == Tier::kInitial) continue;  // in place
    failed_piece_.reset();
    const Status status = load_group(restore, received, binding);
    if (status.ok()) continue;
    failures.push_back({restore.unit,
                        restore.group,
                        restore.version,
                        restore.tier,
                        status.message,
                        failed_piece_});
  }
  return failures;
}

Status Loader::load_group(const UnitRestore& restore,
                          const Received& received,
                          StateBinding& binding) {
  for (const ItemIndex index : items_of_.at({restore.unit, restore.group})) {
    for (const StateBlock& part : catalog_.items[std::size_t(index.value)].blocks) {
      if (std::ranges::count(part.holders, rank_) == 0) continue;
      if (Status status = load_block(restore, index, part.block, received, binding); !status.ok())
        return status;
    }
  }
  return {};
}

std::vector<Loader::StoredBlock> Loader::stored_blocks(const UnitRestore& from,
                                                       const StateItem& item) const {
  std::vector<StoredBlock> blocks;
  if (from.tier == Tier::kMemory) {
    for (const MemoryPiece piece : memory_.pieces(from.version, item.path(), node_))
      blocks.push_back({&memory_.block(piece), {}, piece});
    return blocks;
  }
  const StoredCheckpoint& checkpoint = *checkpoint_of_.at(from.version);
  const auto& of_version = blocks_of_.at(from.version);
  const auto found = of_version.find(item.path());
  if (found == of_version.end()) return blocks;
  for (const BlockEntry* entry : found->second) {
    blocks.push_back({&entry->block,
                      fmt::format("{}/{}/{}",
                                  root_,
                                  checkpoint.directory,
                                  checkpoint.manifest.files[std::size_t(entry->file)].name)});
  }
  return blocks;
}

Status Loader::read(const StoredBlock& stored,
                    const Received& received,
                    std::span<std::byte> destination) {
  if (stored.piece) {
    const auto sent = received.bytes.find(*stored.piece);
    if (sent != received.bytes.end()) {
      std::ranges::copy(sent->second, destination.begin());
      return {};
    }
    const auto failed = received.failed.find(*stored.piece);
    Status status = failed != received.failed.end()
                        ? Status::failure(StatusCode::kCorrupt, failed->second)
                        : memory_.read(*stored.piece, destination);
    if (!status.ok()) failed_piece_ = stored.piece;
    return status;
  }
  if (!reader_ || reader_->path != stored.file) {
    // The former shard closes before the next opens: few files are open at a time.
    reader_.reset();
    reader_ = std::make_unique<Reader>(fs_, stored.file);
  }
  if (!reader_->opened.ok()) return reader_->opened;
  return reader_->shard.read(*stored.block, destination);
}

Status Loader::load_block(const UnitRestore& from,
                          ItemIndex index,
                          const Block& block,
                          const Received& received,
                          StateBinding& binding) {
  const StateItem& item = catalog_.items[std::size_t(index.value)];
  const std::size_t element_bytes = size_of(item.dtype);
  std::vector<std::byte> bytes(std::size_t(block.extent.num_elements()) * element_bytes);
  std::vector<std::byte> whole;
  std::int64_t covered = 0;
  for (const StoredBlock& stored : stored_blocks(from, item)) {
    const ShardBlock& described = *stored.block;
    if (described.global_shape != item.global_shape || described.dtype != item.dtype) {
      return Status::failure(StatusCode::kInvalid,
                             fmt::format("{} has shape {} of {} there",
                                         item.path(),
                                         described.global_shape.to_string(),
                                         name_of(described.dtype)));
    }
    const Block common = intersection(described.block, block);
    if (common.extent.num_elements() == 0) continue;
    covered += common.extent.num_elements();
    if (described.block == block) {
      if (Status status = read(stored, received, bytes); !status.ok()) return status;
    } else {
      whole.resize(std::size_t(described.block.extent.num_elements()) * element_bytes);
      if (Status status = read(stored, received, whole); !status.ok()) return status;
      copy_common(common, described.block, whole, block, bytes, element_bytes);
    }
  }
  if (covered != block.extent.num_elements()) {
    return Status::failure(
        StatusCode::kCorrupt,
        fmt::format(
            "{} has {} of {} elements there", item.path(), covered, block.extent.num_elements()));
  }
  binding.copy_in(index, block, bytes);
  return {};
}

}  // namespace pecan::checkpoint
