#include "checkpoint/scan.hpp"

#include <algorithm>
#include <charconv>

namespace pecan::checkpoint {
namespace {

bool has_size(FileSystem& fs, const std::string& path, std::uint64_t num_bytes) {
  Result<std::unique_ptr<File>> file = fs.open(path, OpenMode::kRead);
  if (!file.ok()) return false;
  const Result<std::uint64_t> size = file.value()->size();
  return size.ok() && size.value() == num_bytes;
}

}  // namespace

bool StoredCheckpoint::has(const UnitGroup& key) const {
  const auto found = files_of.find(key);
  return found != files_of.end() && std::ranges::all_of(found->second, [&](int file) {
           return bool(present[std::size_t(file)]);
         });
}

void index_groups(StoredCheckpoint& checkpoint) {
  for (const BlockEntry& entry : checkpoint.manifest.blocks) {
    std::vector<int>& files = checkpoint.files_of[{entry.unit, entry.group}];
    if (std::ranges::count(files, entry.file) == 0) files.push_back(entry.file);
  }
}

std::optional<Step> step_of_directory(std::string_view name) {
  constexpr std::string_view prefix = "step-";
  if (!name.starts_with(prefix)) return {};
  Step step;
  const auto parsed =
      std::from_chars(name.data() + prefix.size(), name.data() + name.size(), step.value);
  if (parsed.ec != std::errc{} || step_directory_name(step) != name) return {};
  return step;
}

Result<StoredCheckpoint> load_checkpoint(FileSystem& fs,
                                         const std::string& root,
                                         const std::string& directory) {
  const std::string base = fmt::format("{}/{}/", root, directory);
  StoredCheckpoint checkpoint;
  checkpoint.directory = directory;
  Result<std::string> text = read_text(fs, base + std::string(kManifestName));
  if (!text.ok() && text.status().code == StatusCode::kNotFound) {
    text = read_text(fs, base + std::string(kRetiredName));
    checkpoint.retired = true;
    if (!text.ok() && text.status().code == StatusCode::kNotFound) {
      return Status::failure(StatusCode::kNotFound, fmt::format("{} has no manifest", directory));
    }
  }
  if (!text.ok()) return text.status();
  Result<Manifest> manifest = parse_manifest(text.value());
  if (!manifest.ok()) {
    return Status::failure(
        manifest.status().code,
        fmt::format("the manifest of {}: {}", directory, manifest.status().message));
  }
  checkpoint.manifest = std::move(manifest).value();
  if (step_directory_name(checkpoint.manifest.version.step) != directory) {
    return Status::failure(StatusCode::kCorrupt,
                           fmt::format("{} holds the manifest of step {}; it was renamed by hand",
                                       directory,
                                       checkpoint.manifest.version.step));
  }
  for (const FileEntry& file : checkpoint.manifest.files) {
    checkpoint.present.push_back(has_size(fs, base + file.name, file.digest.num_bytes));
  }
  index_groups(checkpoint);
  return checkpoint;
}

}  // namespace pecan::checkpoint
