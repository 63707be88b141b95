#include "checkpoint/retention.hpp"

#include <algorithm>
#include <map>
#include <set>

namespace pecan::checkpoint {
namespace {

class Marker {
 public:
  Marker(const std::vector<StoredCheckpoint>& checkpoints, const RetentionPolicy& policy)
      : checkpoints_(checkpoints), policy_(policy) {
    marks_.candidate.resize(checkpoints.size());
    marks_.kept_as.resize(checkpoints.size(), KeptAs::kSource);
    for (std::size_t i = 0; i < checkpoints.size(); ++i) {
      place_[checkpoints[i].manifest.version] = i;
      marks_.live.emplace_back(checkpoints[i].manifest.files.size());
    }
  }

  RetentionMarks run() {
    const std::vector<bool> kept = choose();
    for (std::size_t i = 0; i < checkpoints_.size(); ++i) {
      if (!marks_.candidate[i]) continue;
      for (const UnitCopy& copy : checkpoints_[i].manifest.copies) {
        const auto found = place_.find(copy.version);
        if (found == place_.end()) continue;
        const UnitGroup key{copy.unit, copy.group};
        mark_copy(found->second, key);
        if (kept[i] && rotates(found->second, key)) mark_fallbacks(found->second, key);
      }
    }
    return std::move(marks_);
  }

 private:
  /// Chooses the candidates and returns those of them that are kept for themselves.
  std::vector<bool> choose() {
    std::vector<bool> kept(checkpoints_.size());
    int rank = 0;  // among the unretired ones, newest first
    bool whole_found = false;
    for (std::size_t i = checkpoints_.size(); i-- > 0;) {
      const StoredCheckpoint& checkpoint = checkpoints_[i];
      if (checkpoint.retired) continue;
      const bool newest_whole = !whole_found && is_whole(checkpoint);
      whole_found = whole_found || newest_whole;
      const std::int64_t step = checkpoint.manifest.version.step.value;
      const bool for_ever =
          policy_.save_retain_interval > 0 && step % policy_.save_retain_interval == 0;
      const bool latest = rank < policy_.keep_latest_k;
      kept[i] = latest || newest_whole || for_ever;
      marks_.candidate[i] = kept[i] || rank < policy_.keep_latest_k + policy_.fallback_copies;
      marks_.kept_as[i] = latest                ? KeptAs::kLatest
                          : newest_whole        ? KeptAs::kNewestWhole
                          : for_ever            ? KeptAs::kForever
                          : marks_.candidate[i] ? KeptAs::kFallback
                                                : KeptAs::kSource;
      ++rank;
    }
    return kept;
  }

  bool is_whole(const StoredCheckpoint& checkpoint) const {
    return std::ranges::all_of(checkpoint.manifest.copies, [&](const UnitCopy& copy) {
      const auto found = place_.find(copy.version);
      return found != place_.end() && checkpoints_[found->second].has({copy.unit, copy.group});
    });
  }

  /// Whether the copy lives in an experts file; one in a state file is lost together with its step,
  /// for which the older candidates are the fallback.
  bool rotates(std::size_t i, const UnitGroup& key) const {
    const auto files = checkpoints_[i].files_of.find(key);
    return files != checkpoints_[i].files_of.end() &&
           std::ranges::all_of(files->second, [&](int file) {
             return checkpoints_[i].manifest.files[std::size_t(file)].kind == FileKind::kExperts;
           });
  }

  void mark_copy(std::size_t i, const UnitGroup& key) {
    const auto files = checkpoints_[i].files_of.find(key);
    if (files == checkpoints_[i].files_of.end()) return;
    for (const int file : files->second) marks_.live[i][std::size_t(file)] = true;
  }

  void mark_fallbacks(std::size_t newest, const UnitGroup& key) {
    int wanted = policy_.fallback_copies;
    for (std::size_t i = newest; wanted > 0 && i-- > 0;) {
      if (!checkpoints_[i].has(key) || !rotates(i, key)) continue;
      mark_copy(i, key);
      --wanted;
    }
  }

  const std::vector<StoredCheckpoint>& checkpoints_;
  const RetentionPolicy& policy_;
  std::map<Version, std::size_t> place_;
  RetentionMarks marks_;
};

}  // namespace

RetentionMarks mark(const std::vector<StoredCheckpoint>& checkpoints,
                    const RetentionPolicy& policy) {
  return Marker(checkpoints, policy).run();
}

Status Retention::sweep() {
  if (Status status = refresh(); !status.ok()) return status;
  const RetentionMarks marks = mark(checkpoints_, policy_);
  if (Status status = retire(marks); !status.ok()) return status;
  if (Status status = delete_files(marks); !status.ok()) return status;
  return delete_directories(marks);
}

Status Retention::refresh() {
  const Result<std::vector<DirEntry>> entries = fs_.list(root_);
  if (!entries.ok()) return entries.status();
  std::set<std::string> names;
  unreadable_.clear();
  garbage_.clear();
  for (const DirEntry& entry : entries.value()) {
    if (!entry.is_directory) continue;
    if (entry.name.starts_with(kAbandonedPrefix) || entry.name.starts_with(kRemovedPrefix)) {
      garbage_.push_back(entry.name);
    }
    if (!step_of_directory(entry.name)) continue;
    names.insert(entry.name);
    if (std::ranges::count(checkpoints_, entry.name, &StoredCheckpoint::directory) > 0) continue;
    Result<StoredCheckpoint> loaded = load_checkpoint(fs_, root_, entry.name);
    if (loaded.ok()) {
      checkpoints_.push_back(std::move(loaded).value());
    } else {
      unreadable_.push_back(entry.name);
    }
  }
  std::erase_if(checkpoints_, [&](const StoredCheckpoint& checkpoint) {
    return !names.contains(checkpoint.directory);
  });
  std::ranges::sort(checkpoints_, {}, [](const StoredCheckpoint& checkpoint) {
    return checkpoint.manifest.version;
  });
  return {};
}

Status Retention::retire(const RetentionMarks& marks) {
  for (std::size_t i = 0; i < checkpoints_.size(); ++i) {
    StoredCheckpoint& checkpoint = checkpoints_[i];
    if (marks.candidate[i] || checkpoint.retired) continue;
    const std::string base = path_of(checkpoint.directory);
    Status status = fs_.rename(fmt::format("{}/{}", base, kManifestName),
                               fmt::format("{}/{}", base, kRetiredName));
    // Before the first deletion: a crash must not bring back a candidate that lacks its files.
    if (status.ok()) status = fs_.sync_directory(base);
    if (!status.ok()) return status;
    checkpoint.retired = true;
  }
  return {};
}

Status Retention::delete_files(const RetentionMarks& marks) {
  for (std::size_t i = 0; i < checkpoints_.size(); ++i) {
    StoredCheckpoint& checkpoint = checkpoints_[i];
    for (std::size_t f = 0; f < checkpoint.present.size(); ++f) {
      if (!checkpoint.present[f] || marks.live[i][f]) continue;
      Status status =
          fs_.remove_file(path_of(checkpoint.directory) + "/" + checkpoint.manifest.files[f].name);
      if (!status.ok() && status.code != StatusCode::kNotFound) return status;
      checkpoint.present[f] = false;
    }
  }
  return {};
}

Status Retention::delete_directories(const RetentionMarks& marks) {
  std::vector<std::string> dead;
  std::optional<Step> oldest_candidate;
  for (std::size_t i = 0; i < checkpoints_.size(); ++i) {
    if (marks.candidate[i] && !oldest_candidate) {
      oldest_candidate = checkpoints_[i].manifest.version.step;
    }
    const bool live = std::ranges::count(marks.live[i], true) > 0;
    if (!live && !marks.candidate[i]) dead.push_back(checkpoints_[i].directory);
  }
  for (const std::string& directory : unreadable_) {
    if (oldest_candidate && step_of_directory(directory) < oldest_candidate) {
      dead.push_back(directory);
    }
  }
  for (const std::string& directory : dead) {
    const std::string removed = std::string(kRemovedPrefix) + directory;
    if (Status status = fs_.rename(path_of(directory), path_of(removed)); !status.ok()) {
      return status;
    }
    garbage_.push_back(removed);
  }
  // Before their content goes: a crash must not leave a step directory that has lost its manifest,
  // which recovery would report as damage.
  if (!dead.empty()) {
    if (Status status = fs_.sync_directory(root_); !status.ok()) return status;
  }
  for (const std::string& directory : garbage_) {
    if (Status status = fs_.remove_all(path_of(directory)); !status.ok()) return status;
  }
  return garbage_.empty() ? Status{} : fs_.sync_directory(root_);
}

}  // namespace pecan::checkpoint
