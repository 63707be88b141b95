#include <algorithm>
#include <filesystem>
#include <set>
#include <tuple>

#include <pecan/core/file_system.hpp>
#include <pecan/core/shared_memory.hpp>

#include <pecan/checkpoint/memory.hpp>

#include "checkpoint/memory_facts.hpp"
#include "checkpoint/segment.hpp"

namespace pecan::checkpoint {
namespace {

/// Whether every block has its checksum.
Status verify_payload(const StoredSegment& segment) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < segment.index.blocks.size(); ++i) {
    const ShardBlock& block = segment.index.blocks[i].block;
    bytes.resize(std::size_t(block.block.extent.num_elements()) * size_of(block.dtype));
    if (Status status = read_block(segment, i, bytes); !status.ok()) return status;
  }
  return {};
}

void look_into(FileSystem& fs, SegmentReport& report) {
  const Result<StoredSegment> stored = read_segment(fs, report.path);
  if (!stored.ok()) {
    if (stored.status().code != StatusCode::kNotFound) report.problem = stored.status().message;
    return;
  }
  report.committed = true;
  report.version = stored.value().header.version;
  std::set<UnitIndex> experts;
  for (const BlockEntry& entry : stored.value().index.blocks) {
    if (entry.unit != UnitIndex(0)) experts.insert(entry.unit);
  }
  report.expert_units = std::int64_t(experts.size());
  if (!report.in_use) report.problem = verify_payload(stored.value()).message;
}

}  // namespace

std::vector<SegmentReport> list_segments(const std::string& directory) {
  const Result<std::vector<DirEntry>> entries = make_posix_file_system()->list(directory);
  PECAN_VALIDATE(entries.ok(),
                 CheckpointError,
                 "the memory directory {} cannot be read: {}; give the one of "
                 "checkpoint.memory_dir, on the node in question",
                 directory,
                 entries.status().message);
  std::vector<SegmentReport> reports;
  for (const DirEntry& entry : entries.value()) {
    const std::optional<SegmentName> name = SegmentName::parse(entry.name);
    if (!name || entry.is_directory) continue;
    SegmentReport report;
    report.path = directory + "/" + entry.name;
    report.run_id = name->run_id;
    report.host = name->host;
    report.rank = name->rank;
    report.buffer = name->buffer;
    report.copy = name->copy;
    std::error_code error;
    report.num_bytes = std::filesystem::file_size(report.path, error);
    const Result<bool> in_use = SharedMemory::is_in_use(report.path);
    // One that went away meanwhile is none.
    if (error || in_use.status().code == StatusCode::kNotFound) continue;
    report.in_use = !in_use.ok() || in_use.value();
    reports.push_back(std::move(report));
  }
  std::ranges::sort(reports, {}, [](const SegmentReport& r) {
    return std::tie(r.run_id, r.host, r.rank, r.buffer, r.copy);
  });
  return reports;
}

std::vector<SegmentReport> inspect_memory(const std::string& directory) {
  std::vector<SegmentReport> reports = list_segments(directory);
  const std::unique_ptr<FileSystem> fs = make_posix_file_system();
  for (SegmentReport& report : reports) look_into(*fs, report);
  return reports;
}

Removal remove_segments(const std::string& directory, const std::string& run_id) {
  Removal removal;
  for (const SegmentReport& report : list_segments(directory)) {
    if (!run_id.empty() && report.run_id != run_id) continue;
    const Result<bool> removed = SharedMemory::remove_unless_in_use(report.path);
    if (removed.ok() && removed.value()) {
      removal.removed.push_back(report.path);
    } else if (removed.ok()) {
      removal.left.push_back(report.path + ": a process uses it; end its run first");
    } else if (removed.status().code != StatusCode::kNotFound) {
      removal.left.push_back(removed.status().message);
    }
  }
  return removal;
}

MemoryCheck check_memory_directory(const std::string& directory,
                                   std::uint64_t needed_bytes,
                                   const std::string& run_id) {
  return judge(observe_memory(directory, run_id, ""), needed_bytes);
}

}  // namespace pecan::checkpoint
