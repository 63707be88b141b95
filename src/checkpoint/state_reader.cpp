#include <algorithm>
#include <map>
#include <utility>

#include <fmt/ranges.h>

#include <pecan/checkpoint/shard.hpp>
#include <pecan/checkpoint/state_reader.hpp>

#include "checkpoint/block_copy.hpp"
#include "checkpoint/scan.hpp"

namespace pecan::checkpoint {
namespace {

/// A block and the shard that it lies in.
struct StoredBlock {
  ShardBlock block;
  std::string file;
};

/// All checkpoints of the run with a good manifest; what is wrong with others goes to `damages`.
std::vector<StoredCheckpoint> scan(FileSystem& fs,
                                   const std::string& root,
                                   std::vector<std::string>& damages) {
  const Result<std::vector<DirEntry>> entries = fs.list(root);
  PECAN_VALIDATE(
      entries.ok(),
      CheckpointError,
      "{} holds no checkpoints: {}; give the directory that pecan-train got as --run-dir",
      root,
      entries.status().message);
  std::vector<StoredCheckpoint> found;
  for (const DirEntry& entry : entries.value()) {
    if (!step_of_directory(entry.name)) continue;
    Result<StoredCheckpoint> checkpoint = load_checkpoint(fs, root, entry.name);
    if (checkpoint.ok()) {
      found.push_back(std::move(checkpoint).value());
    } else {
      damages.push_back(checkpoint.status().message);
    }
  }
  return found;
}

const StoredCheckpoint& choose(const std::vector<StoredCheckpoint>& all,
                               std::optional<Step> step,
                               const std::string& root,
                               const std::vector<std::string>& damages) {
  const StoredCheckpoint* chosen = nullptr;
  for (const StoredCheckpoint& checkpoint : all) {
    const Version version = checkpoint.manifest.version;
    if (checkpoint.retired || (step && version.step != *step)) continue;
    if (chosen == nullptr || chosen->manifest.version < version) chosen = &checkpoint;
  }
  PECAN_VALIDATE(chosen != nullptr,
                 CheckpointError,
                 "{} has no whole checkpoint{}{}; `pecan-inspect RUN list` shows those that there "
                 "are",
                 root,
                 step ? fmt::format(" of step {}", *step) : "",
                 damages.empty() ? "" : fmt::format(" ({})", fmt::join(damages, "; ")));
  return *chosen;
}

}  // namespace

struct StateReader::Impl {
  Impl(FileSystem& file_system, std::string directory)
      : fs(file_system), root(std::move(directory)) {}

  FileSystem& fs;
  std::string root;
  Manifest manifest;
  std::map<std::string, std::vector<StoredBlock>, std::less<>> items;
  std::string open_file;  ///< of `shard`
  std::unique_ptr<ShardReader> shard;

  /// Gathers the blocks of every copy that the manifest counts on.
  void index(const std::vector<StoredCheckpoint>& all) {
    for (const UnitCopy& copy : manifest.copies) {
      const auto holder = std::ranges::find(
          all, copy.version, [](const StoredCheckpoint& one) { return one.manifest.version; });
      PECAN_VALIDATE(holder != all.end() &&
                         copy_digest(holder->manifest.blocks, copy.unit, copy.group) == copy.digest,
                     CheckpointError,
                     "{} counts on {} ({}) of step {}, which is not there",
                     step_directory_name(manifest.version.step),
                     manifest.units[std::size_t(copy.unit.value)].name,
                     name_of(copy.group),
                     copy.version.step);
    }
    std::map<std::pair<UnitIndex, RoleGroup>, Version> wanted;
    for (const UnitCopy& copy : manifest.copies) wanted[{copy.unit, copy.group}] = copy.version;
    for (const StoredCheckpoint& checkpoint : all) {
      for (const BlockEntry& entry : checkpoint.manifest.blocks) {
        const auto version = wanted.find({entry.unit, entry.group});
        if (version == wanted.end() || version->second != checkpoint.manifest.version) continue;
        items[entry.block.item + "/" + entry.block.dataset].push_back(
            {entry.block,
             fmt::format("{}/{}/{}",
                         root,
                         checkpoint.directory,
                         checkpoint.manifest.files[std::size_t(entry.file)].name)});
      }
    }
  }

  Status read(const StoredBlock& stored, std::span<std::byte> destination) {
    if (shard == nullptr || open_file != stored.file) {
      // The former shard closes before the next opens: one file is open at a time.
      shard.reset();
      auto opened = std::make_unique<ShardReader>(fs, stored.file);
      if (Status status = opened->open(); !status.ok()) return status;
      shard = std::move(opened);
      open_file = stored.file;
    }
    return shard->read(stored.block, destination);
  }
};

StateReader::StateReader(FileSystem& fs, const std::string& run_directory, std::optional<Step> step)
    : impl_(std::make_unique<Impl>(fs, run_directory + "/checkpoints")) {
  std::vector<std::string> damages;
  const std::vector<StoredCheckpoint> all = scan(fs, impl_->root, damages);
  impl_->manifest = choose(all, step, impl_->root, damages).manifest;
  impl_->index(all);
}

StateReader::~StateReader() = default;

const Manifest& StateReader::manifest() const {
  return impl_->manifest;
}

std::vector<std::string> StateReader::paths() const {
  std::vector<std::string> paths;
  for (const auto& [path, blocks] : impl_->items) paths.push_back(path);
  return paths;
}

std::optional<StateReader::Item> StateReader::find(std::string_view path) const {
  const auto found = impl_->items.find(path);
  if (found == impl_->items.end()) return {};
  const ShardBlock& first = found->second.front().block;
  return Item{first.global_shape, first.dtype};
}

void StateReader::read(std::string_view path, std::span<std::byte> destination) {
  const std::optional<Item> item = find(path);
  PECAN_VALIDATE(item.has_value(),
                 CheckpointError,
                 "{}/{} has no {}",
                 impl_->root,
                 step_directory_name(impl_->manifest.version.step),
                 path);
  const std::size_t element_bytes = size_of(item->dtype);
  const Block whole = Block::whole(item->shape);
  PECAN_EXPECTS(destination.size() == std::size_t(item->shape.num_elements()) * element_bytes);
  std::vector<std::byte> part;
  std::int64_t covered = 0;
  for (const StoredBlock& stored : impl_->items.find(path)->second) {
    const Block& block = stored.block.block;
    covered += block.extent.num_elements();
    Status status;
    if (block == whole) {
      status = impl_->read(stored, destination);
    } else {
      part.resize(std::size_t(block.extent.num_elements()) * element_bytes);
      status = impl_->read(stored, part);
      if (status.ok() && !part.empty())
        copy_common(block, block, part, whole, destination, element_bytes);
    }
    PECAN_VALIDATE(status.ok(),
                   CheckpointError,
                   "{} of step {} cannot be read: {}; choose another checkpoint of the run",
                   path,
                   stored.block.step,
                   status.message);
  }
  PECAN_VALIDATE(covered == item->shape.num_elements(),
                 CheckpointError,
                 "{} has {} of {} elements in {}",
                 path,
                 covered,
                 item->shape.num_elements(),
                 impl_->root);
}

}  // namespace pecan::checkpoint
