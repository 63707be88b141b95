#include "checkpoint/memory_sources.hpp"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include <pecan/core/hash.hpp>

namespace pecan::checkpoint {

Block intersection(const Block& a, const Block& b) {
  Block common = a;
  for (int dim = 0; dim < a.offset.num_dims(); ++dim) {
    const std::int64_t begin = std::max(a.offset[dim], b.offset[dim]);
    const std::int64_t end = std::min(a.offset[dim] + a.extent[dim], b.offset[dim] + b.extent[dim]);
    common.offset[dim] = begin;
    common.extent[dim] = std::max<std::int64_t>(0, end - begin);
  }
  return common;
}

MemorySources::MemorySources(const std::string& directory,
                             const std::string& run_id,
                             std::uint64_t model_fingerprint,
                             std::vector<std::string>& damages) {
  const std::unique_ptr<FileSystem> fs = make_posix_file_system();
  std::vector<std::string> paths;
  std::error_code none;  // no such directory: no snapshots
  for (const auto& entry : std::filesystem::directory_iterator(directory, none)) {
    const auto name = SegmentName::parse(entry.path().filename().string());
    if (name && name->run_id == run_id && name->host == this_host())
      paths.push_back(entry.path().string());
  }
  std::ranges::sort(paths);
  for (const std::string& path : paths) {
    Result<StoredSegment> segment = read_segment(*fs, path);
    if (!segment.ok()) {
      if (segment.status().code != StatusCode::kNotFound)
        damages.push_back(fmt::format("a snapshot in memory: {}", segment.status().message));
      continue;
    }
    if (segment.value().header.model_fingerprint != model_fingerprint) {
      damages.push_back(fmt::format("{} is of another model (fingerprint {}, this one's is {})",
                                    path,
                                    to_hex(segment.value().header.model_fingerprint),
                                    to_hex(model_fingerprint)));
      continue;
    }
    segments_.push_back(std::move(segment).value());
  }
  for (const StoredSegment& segment : segments_) {
    const Version version = segment.header.version;
    headers_.try_emplace(version, segment.header);
    auto& blocks = blocks_[version];
    for (std::size_t b = 0; b < segment.index.blocks.size(); ++b) {
      const ShardBlock& block = segment.index.blocks[b].block;
      blocks[block.item + "/" + block.dataset].push_back({&block, {}, &segment, b});
    }
  }
}

const std::vector<StoredBlock>& MemorySources::blocks(Version version,
                                                      const std::string& item_path) const {
  static const std::vector<StoredBlock> kNone;
  const auto of_version = blocks_.find(version);
  if (of_version == blocks_.end()) return kNone;
  const auto of_item = of_version->second.find(item_path);
  return of_item == of_version->second.end() ? kNone : of_item->second;
}

std::map<int, Version> MemorySources::buffers_of(Rank rank) const {
  std::map<int, Version> buffers;
  for (const StoredSegment& segment : segments_) {
    if (segment.name.rank == rank) buffers[segment.name.buffer] = segment.header.version;
  }
  return buffers;
}

bool MemorySources::covers(Version version, const StateItem& item, Rank rank) const {
  const std::vector<StoredBlock>& stored = blocks(version, item.path());
  return std::ranges::all_of(item.blocks, [&](const StateBlock& part) {
    if (std::ranges::count(part.holders, rank) == 0) return true;
    std::int64_t elements = 0;
    for (const StoredBlock& one : stored) {
      if (one.block->global_shape != item.global_shape || one.block->dtype != item.dtype)
        return false;
      elements += intersection(one.block->block, part.block).extent.num_elements();
    }
    return elements == part.block.extent.num_elements();
  });
}

}  // namespace pecan::checkpoint
