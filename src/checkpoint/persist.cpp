#include "checkpoint/persist.hpp"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>

#include <pecan/core/hash.hpp>

#include <pecan/checkpoint/shard.hpp>

#include "checkpoint/scan.hpp"

namespace pecan::checkpoint {
namespace {

Status write_synced(FileSystem& fs, const std::string& path, const std::string& text) {
  Result<std::unique_ptr<File>> file = fs.open(path, OpenMode::kCreate);
  if (!file.ok()) return file.status();
  Status status = file.value()->write_at(0, std::as_bytes(std::span(text)));
  return status.ok() ? file.value()->sync() : status;
}

/// Files of the rank that are written and not yet durable: the device has time for them while the
/// next are written.
class OpenShards {
 public:
  explicit OpenShards(RankIndex& index) : index_(index) {}
  Status add(std::unique_ptr<ShardWriter> writer, int file) {
    open_.emplace_back(std::move(writer), file);
    return open_.size() > kMostOpen ? finish_oldest() : Status{};
  }
  Status finish() {
    while (!open_.empty()) {
      if (Status status = finish_oldest(); !status.ok()) return status;
    }
    return {};
  }

 private:
  static constexpr std::size_t kMostOpen = 8;

  Status finish_oldest() {
    // Synced here: a crash after the commit must not find a manifest that names bytes never
    // written.
    const Result<FileDigest> digest = open_.front().first->finish();
    if (!digest.ok()) return digest.status();
    index_.files[std::size_t(open_.front().second)].digest = digest.value();
    open_.pop_front();
    return {};
  }

  RankIndex& index_;
  std::deque<std::pair<std::unique_ptr<ShardWriter>, int>> open_;
};

/// One file of the rank, closed but not durable.
Result<std::unique_ptr<ShardWriter>> write_shard(FileSystem& fs,
                                                 const std::string& directory,
                                                 const StateCatalog& catalog,
                                                 const Snapshot& snapshot,
                                                 const FileEntry& file,
                                                 const std::vector<const SnapshotBlock*>& blocks,
                                                 RankIndex& index) {
  auto writer = std::make_unique<ShardWriter>(fs, directory + "/" + file.name);
  if (Status status = writer->open(); !status.ok()) return status;
  for (const SnapshotBlock* part : blocks) {
    const StateItem& item = catalog.items[std::size_t(part->write.item.value)];
    ShardBlock block = describe(item, part->write.block, index.version.step);
    block.xxh3 = xxh3(snapshot.bytes(*part));
    if (Status status = writer->write(block, snapshot.bytes(*part)); !status.ok()) return status;
    index.blocks.push_back({int(index.files.size()), item.unit, item.group, std::move(block)});
  }
  if (Status status = writer->close(); !status.ok()) return status;
  return writer;
}

Status not_planned(const std::string& what) {
  return Status::failure(StatusCode::kCorrupt,
                         "the ranks' indices are not what was planned: " + what);
}

/// The planned blocks, each found exactly once, in the plan's order.
class Merge {
 public:
  Merge(const StateCatalog& catalog, const SavePlan& plan, Manifest& manifest)
      : catalog_(catalog), plan_(plan), manifest_(manifest), found_(plan.writes.size()) {
    for (std::size_t i = 0; i < plan.writes.size(); ++i) {
      const PlannedWrite& write = plan.writes[i];
      const StateItem& item = catalog.items[std::size_t(write.item.value)];
      position_[describe(item, write.block, {}).dataset_path()] = i;
    }
  }

  Status add(const RankIndex& index) {
    if (index.version != manifest_.version) {
      return not_planned(fmt::format("rank {} wrote step {}", index.rank, index.version.step));
    }
    const int first_file = int(manifest_.files.size());
    manifest_.files.insert(manifest_.files.end(), index.files.begin(), index.files.end());
    for (BlockEntry entry : index.blocks) {
      const std::string path = entry.block.dataset_path();
      const auto position = position_.find(path);
      if (position == position_.end()) return not_planned(path + " has no place in it");
      const PlannedWrite& write = plan_.writes[position->second];
      const StateItem& item = catalog_.items[std::size_t(write.item.value)];
      ShardBlock expected = describe(item, write.block, manifest_.version.step);
      expected.xxh3 = entry.block.xxh3;
      if (entry.block != expected || entry.unit != item.unit || entry.group != item.group ||
          write.writer != index.rank || found_[position->second]) {
        return not_planned(fmt::format("{} of rank {} differs", path, index.rank));
      }
      entry.file += first_file;
      found_[position->second] = std::move(entry);
    }
    return {};
  }

  Status finish(const std::vector<UnitCopy>& previous) {
    for (std::size_t i = 0; i < found_.size(); ++i) {
      if (!found_[i]) {
        const StateItem& item = catalog_.items[std::size_t(plan_.writes[i].item.value)];
        return not_planned(describe(item, plan_.writes[i].block, {}).dataset_path() +
                           " is missing");
      }
      manifest_.blocks.push_back(std::move(*found_[i]));
    }
    std::map<UnitGroup, UnitCopy> newest;
    for (const UnitCopy& copy : previous) newest[{copy.unit, copy.group}] = copy;
    for (const UnitCopy& copy : written_copies(manifest_.blocks, manifest_.version)) {
      newest[{copy.unit, copy.group}] = copy;
    }
    for (const UnitGroup& key : unit_groups(catalog_)) {
      const auto found = newest.find(key);
      if (found == newest.end()) {
        return not_planned(fmt::format("{} ({}) was never saved",
                                       catalog_.units[std::size_t(key.first.value)].name,
                                       name_of(key.second)));
      }
      manifest_.copies.push_back(found->second);
    }
    return {};
  }

 private:
  const StateCatalog& catalog_;
  const SavePlan& plan_;
  Manifest& manifest_;
  std::unordered_map<std::string, std::size_t> position_;
  std::vector<std::optional<BlockEntry>> found_;
};

Status merge_indices(FileSystem& fs,
                     const std::string& partial,
                     const StateCatalog& catalog,
                     const SavePlan& plan,
                     const std::vector<UnitCopy>& previous,
                     Manifest& manifest) {
  Merge merge(catalog, plan, manifest);
  for (int rank = 0; rank < catalog.world_size; ++rank) {
    const Result<std::string> text = read_text(fs, partial + "/" + index_name(Rank{rank}));
    if (!text.ok()) return text.status();
    const Result<RankIndex> index = parse_rank_index(text.value());
    if (!index.ok()) return index.status();
    if (Status status = merge.add(index.value()); !status.ok()) return status;
  }
  return merge.finish(previous);
}

}  // namespace

std::string partial_directory_name(Step step) {
  return step_directory_name(step) + ".partial";
}

Result<std::int64_t> write_part(FileSystem& fs,
                                const std::string& root,
                                const StateCatalog& catalog,
                                const SavePlan& plan,
                                const Snapshot& snapshot,
                                Version version,
                                Rank rank) {
  const std::string directory = root + "/" + partial_directory_name(version.step);
  // Every rank makes it, so that none has to wait for another.
  if (Status status = fs.create_directories(directory); !status.ok()) return status;

  std::map<int, std::vector<const SnapshotBlock*>> blocks_of_slot;
  const auto place = [](const PlannedWrite& write) { return std::pair(write.item, write.block); };
  for (const SnapshotBlock& block : snapshot.blocks()) {
    const auto planned = std::ranges::lower_bound(plan.writes, place(block.write), {}, place);
    if (planned == plan.writes.end() || place(*planned) != place(block.write)) continue;
    blocks_of_slot[planned->slot].push_back(&block);
  }
  RankIndex index{version, rank, {}, {}};
  std::int64_t num_bytes = 0;
  OpenShards open(index);
  for (const auto& [slot, blocks] : blocks_of_slot) {
    const FileEntry file{shard_name(rank, slot, plan),
                         slot == kStateSlot ? FileKind::kState : FileKind::kExperts,
                         rank,
                         {}};
    Result<std::unique_ptr<ShardWriter>> writer =
        write_shard(fs, directory, catalog, snapshot, file, blocks, index);
    if (!writer.ok()) return writer.status();
    index.files.push_back(file);
    if (Status status = open.add(std::move(writer).value(), int(index.files.size()) - 1);
        !status.ok())
      return status;
    for (const SnapshotBlock* block : blocks) num_bytes += std::int64_t(block->num_bytes);
  }
  if (Status status = open.finish(); !status.ok()) return status;
  // After the shards: an index that survives a crash names only files that survive it.
  Status status = write_synced(fs, directory + "/" + index_name(rank), to_json(index));
  if (!status.ok()) return status;
  // Contents are durable, but a crash could still take the names of the new files.
  status = fs.sync_directory(directory);
  if (!status.ok()) return status;
  return num_bytes;
}

Result<Manifest> commit_checkpoint(FileSystem& fs,
                                   const std::string& root,
                                   const StateCatalog& catalog,
                                   const SavePlan& plan,
                                   Manifest header,
                                   const std::vector<UnitCopy>& previous,
                                   const std::function<Status()>& permitted) {
  const Step step = header.version.step;
  const std::string partial = root + "/" + partial_directory_name(step);
  const std::string final = root + "/" + step_directory_name(step);
  Manifest manifest = std::move(header);
  Status status = merge_indices(fs, partial, catalog, plan, previous, manifest);
  // A torn manifest under the final name would cost the whole checkpoint: content first ...
  if (status.ok()) {
    status = write_synced(fs, partial + "/" + std::string(kManifestName), to_json(manifest));
  }
  // ... then its name, or the rename could survive a crash that the manifest does not.
  if (status.ok()) status = fs.sync_directory(partial);
  // An older incarnation that wakes up here must not add to a run that has moved on.
  if (status.ok()) status = permitted();
  // The commit point: before it the checkpoint does not exist, after it it is complete.
  if (status.ok()) status = fs.rename(partial, final);
  if (!status.ok()) return status;
  // Until the new name is durable a crash may undo the commit, so nothing older may be deleted.
  if (status = fs.sync_directory(root); !status.ok()) {
    static_cast<void>(fs.rename(final, partial));  // the sync's failure is the one to report
    return status;
  }
  // A hint for people; recovery never reads it, so its loss costs nothing.
  static_cast<void>(write_text_atomically(fs, root + "/LATEST", step_directory_name(step) + "\n"));
  return manifest;
}

}  // namespace pecan::checkpoint
