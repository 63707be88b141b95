#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include <nlohmann/json.hpp>

#include <pecan/checkpoint/inspect.hpp>

#include "checkpoint/lineage.hpp"
#include "checkpoint/retention.hpp"
#include "checkpoint/scan.hpp"

namespace pecan::checkpoint {
namespace {

using Stored = std::vector<StoredCheckpoint>;

/// A member of the trainer's object; nothing where it does not say, or not as we write it.
template <typename Value>
std::optional<Value> setting(const Manifest& manifest, const char* path) {
  const auto extra =
      nlohmann::json::parse(manifest.extra_json, nullptr, /*allow_exceptions=*/false);
  try {
    return extra.at(nlohmann::json::json_pointer(path)).get<Value>();
  } catch (const nlohmann::json::exception&) {
    return {};
  }
}

/// Token slots routed by MoE layer and expert.
std::vector<std::vector<std::int64_t>> routed_of(const Manifest& manifest) {
  return setting<std::vector<std::vector<std::int64_t>>>(manifest, "/routed")
      .value_or(std::vector<std::vector<std::int64_t>>{});
}

/// What the run keeps, as its newest manifest says.
std::optional<RetentionPolicy> policy_of(const Manifest& manifest) {
  const auto latest = setting<int>(manifest, "/retention/keep_latest_k");
  const auto interval = setting<std::int64_t>(manifest, "/retention/save_retain_interval");
  const auto fallbacks = setting<int>(manifest, "/retention/fallback_copies");
  if (!latest || !interval || !fallbacks) return {};
  return RetentionPolicy{*latest, *interval, *fallbacks};
}

const StoredCheckpoint* find(const Stored& all, Version version) {
  const auto it =
      std::ranges::find(all, version, [](const StoredCheckpoint& c) { return c.manifest.version; });
  return it == all.end() ? nullptr : &*it;
}

/// The checkpoint that a recovery would try first.
const StoredCheckpoint* newest(const Stored& all) {
  const StoredCheckpoint* best = nullptr;
  for (const StoredCheckpoint& checkpoint : all) {
    if (!checkpoint.retired &&
        (best == nullptr || best->manifest.version < checkpoint.manifest.version)) {
      best = &checkpoint;
    }
  }
  return best;
}

/// Files, as (directory, name), that the copies named by candidates lie in, with the candidates.
using NamedFiles = std::map<std::pair<std::string, std::string>, std::set<Step>>;
NamedFiles needed_files(const Stored& all, std::vector<std::string>& problems) {
  NamedFiles needed;
  for (const StoredCheckpoint& candidate : all) {
    if (candidate.retired) continue;
    for (const UnitCopy& copy : candidate.manifest.copies) {
      const StoredCheckpoint* source = find(all, copy.version);
      const auto files = source == nullptr ? decltype(source->files_of.begin()){}
                                           : source->files_of.find({copy.unit, copy.group});
      if (source == nullptr || files == source->files_of.end()) {
        problems.push_back(
            fmt::format("{} counts on a copy of {} ({}) from step {}, which is not there",
                        candidate.directory,
                        candidate.manifest.units[std::size_t(copy.unit.value)].name,
                        name_of(copy.group),
                        copy.version.step));
        continue;
      }
      if (copy_digest(source->manifest.blocks, copy.unit, copy.group) != copy.digest) {
        problems.push_back(fmt::format("{} and {} disagree on the checksums of {} ({})",
                                       candidate.directory,
                                       source->directory,
                                       candidate.manifest.units[std::size_t(copy.unit.value)].name,
                                       name_of(copy.group)));
      }
      for (const int file : files->second) {
        needed[{source->directory, source->manifest.files[std::size_t(file)].name}].insert(
            candidate.manifest.version.step);
      }
    }
  }
  return needed;
}

void verify_file(FileSystem& fs,
                 const std::string& root,
                 const StoredCheckpoint& checkpoint,
                 int index,
                 FileReport& report) {
  const FileEntry& entry = checkpoint.manifest.files[std::size_t(index)];
  const std::string path = fmt::format("{}/{}/{}", root, checkpoint.directory, entry.name);
  const Result<FileDigest> digest = digest_file(fs, path);
  if (!digest.ok()) {
    report.problems.push_back(digest.status().message);
    return;
  }
  if (digest.value() != entry.digest) {
    report.problems.push_back(
        fmt::format("{} has {} bytes with checksum {}; the manifest says {} with {}",
                    report.path,
                    digest.value().num_bytes,
                    digest.value().xxh3,
                    entry.digest.num_bytes,
                    entry.digest.xxh3));
  }
  ShardReader reader(fs, path);
  if (const Status opened = reader.open(); !opened.ok()) {
    report.problems.push_back(opened.message);
    return;
  }
  std::vector<std::byte> bytes;
  for (const BlockEntry& block : checkpoint.manifest.blocks) {
    if (block.file != index) continue;
    bytes.resize(std::size_t(block.block.block.extent.num_elements()) * size_of(block.block.dtype));
    if (const Status status = reader.read(block.block, bytes); !status.ok())
      report.problems.push_back(status.message);
  }
}

/// The ranks' indices were merged into the manifest; a damaged one harms nothing, but says that the
/// disk does.
void verify_indices(FileSystem& fs,
                    const std::string& root,
                    const StoredCheckpoint& checkpoint,
                    std::vector<std::string>& problems) {
  for (int r = 0; r < checkpoint.manifest.world_size; ++r) {
    const std::string name = fmt::format("{}/{}", checkpoint.directory, index_name(Rank{r}));
    const Result<std::string> text = read_text(fs, root + "/" + name);
    const Status status = text.ok() ? parse_rank_index(text.value()).status() : text.status();
    if (!status.ok()) problems.push_back(fmt::format("checkpoints/{}: {}", name, status.message));
  }
}

/// LATEST is a hint, and must name a checkpoint that is there.
void verify_hint(FileSystem& fs,
                 const std::string& root,
                 const Stored& all,
                 std::vector<std::string>& problems) {
  Result<std::string> text = read_text(fs, root + "/LATEST");
  if (!text.ok()) return;
  std::string name = std::move(text).value();
  while (!name.empty() && name.back() == '\n') name.pop_back();
  if (std::ranges::find(all, name, &StoredCheckpoint::directory) == all.end()) {
    problems.push_back(fmt::format("checkpoints/LATEST names \"{}\", which is not there", name));
  }
}

/// Token slots routed as of each version, read once.
using RoutedTables = std::map<Version, std::vector<std::vector<std::int64_t>>>;

std::vector<ExpertAge> expert_ages(const Stored& all,
                                   const StoredCheckpoint& head,
                                   RoutedTables& routed_at) {
  const auto routed_now = routed_of(head.manifest);
  std::map<UnitIndex, Version> oldest;
  for (const UnitCopy& copy : head.manifest.copies) {
    if (!head.manifest.units[std::size_t(copy.unit.value)].is_expert()) continue;
    const auto [it, added] = oldest.try_emplace(copy.unit, copy.version);
    if (!added) it->second = std::min(it->second, copy.version);
  }
  std::map<LayerId, std::size_t> moe_index;
  for (const StateUnit& unit : head.manifest.units) {
    if (unit.is_expert()) moe_index.try_emplace(unit.layer, moe_index.size());
  }
  std::vector<ExpertAge> ages;
  for (const auto& [unit, version] : oldest) {
    const StateUnit& described = head.manifest.units[std::size_t(unit.value)];
    if (!routed_at.contains(version)) {
      const StoredCheckpoint* source = find(all, version);
      routed_at[version] = source == nullptr ? decltype(routed_now){} : routed_of(source->manifest);
    }
    const auto slots = [&](const std::vector<std::vector<std::int64_t>>& table) -> std::int64_t {
      const std::size_t layer = moe_index.at(described.layer),
                        expert = std::size_t(described.expert.value);
      return layer < table.size() && expert < table[layer].size() ? table[layer][expert] : -1;
    };
    const std::int64_t now = slots(routed_now), then = slots(routed_at[version]);
    ages.push_back({described.layer.value,
                    described.expert.value,
                    version.step,
                    head.manifest.version.step.value - version.step.value,
                    now < 0 || then < 0 ? -1 : now - then});
  }
  return ages;
}

/// What a recovery from a checkpoint restores and loses.
RecoveryFacts recovery_from(const Stored& all,
                            const StoredCheckpoint& stored,
                            RoutedTables& routed_at) {
  RecoveryFacts facts{exactness_of(stored.manifest), {}};
  if (facts.exactness.exact()) {
    facts.plt = 0;
    return facts;
  }
  const auto planned = [&](const char* path) {
    return setting<double>(stored.manifest, path).value_or(0);
  };
  const double planned_slots = planned("/train_iters") * planned("/global_batch_size") *
                               planned("/seq_length") * planned("/topk");
  std::set<int> layers;
  std::int64_t lost = 0;
  for (const ExpertAge& age : expert_ages(all, stored, routed_at)) {
    if (age.stale_tokens < 0) return facts;
    layers.insert(age.layer);
    lost += age.stale_tokens;
  }
  if (planned_slots > 0) facts.plt = double(lost) / planned_slots / double(layers.size());
  return facts;
}

/// What the checkpoint's start has been restored from, as it says.
std::optional<RecoveryFacts> last_recovery(const Manifest& manifest) {
  const auto step = setting<std::int64_t>(manifest, "/recovery/step");
  const auto experts = setting<std::int64_t>(manifest, "/recovery/experts");
  const auto older = setting<std::int64_t>(manifest, "/recovery/older_experts");
  const auto most = setting<std::int64_t>(manifest, "/recovery/most_steps_older");
  if (!step || !experts || !older || !most) return {};
  return RecoveryFacts{{Step{*step}, *experts, *older, *most},
                       setting<double>(manifest, "/recovery/plt_now")};
}

}  // namespace

RunReport inspect_run(FileSystem& fs, const std::string& run_directory, Verify verify) {
  const std::string root = run_directory + "/checkpoints";
  const Result<std::vector<DirEntry>> entries = fs.list(root);
  PECAN_VALIDATE(
      entries.ok(),
      CheckpointError,
      "{} holds no checkpoints: {}; give the directory that pecan-train got as --run-dir",
      run_directory,
      entries.status().message);
  RunReport report;
  Stored all;
  for (const DirEntry& entry : entries.value()) {
    if (!entry.is_directory || !step_of_directory(entry.name)) continue;
    Result<StoredCheckpoint> checkpoint = load_checkpoint(fs, root, entry.name);
    if (checkpoint.ok()) {
      all.push_back(std::move(checkpoint).value());
    } else {
      report.problems.push_back(checkpoint.status().message);
    }
  }
  std::ranges::sort(all, {}, [](const StoredCheckpoint& c) { return c.manifest.version; });
  const StoredCheckpoint* head = newest(all);
  PECAN_VALIDATE(
      head != nullptr || !report.problems.empty(),
      CheckpointError,
      "{} holds no committed checkpoint yet; checkpoint.save_interval says when there will be one",
      run_directory);

  const auto needed = needed_files(all, report.problems);
  if (verify == Verify::kYes) {
    for (const StoredCheckpoint& stored : all) verify_indices(fs, root, stored, report.problems);
    verify_hint(fs, root, all, report.problems);
  }
  const std::optional<RetentionPolicy> policy =
      head == nullptr ? std::nullopt : policy_of(head->manifest);
  const RetentionMarks marks = policy ? mark(all, *policy) : RetentionMarks{};
  RoutedTables routed_at;
  for (std::size_t c = 0; c < all.size(); ++c) {
    const StoredCheckpoint& stored = all[c];
    const Manifest& manifest = stored.manifest;
    CheckpointReport checkpoint{.directory = stored.directory,
                                .version = manifest.version,
                                .full = manifest.full,
                                .kept_as = policy ? marks.kept_as[c] : KeptAs::kUnknown,
                                .retired = stored.retired};
    if (!stored.retired) checkpoint.recovery = recovery_from(all, stored, routed_at);
    std::set<UnitIndex> written;
    for (const BlockEntry& block : manifest.blocks) {
      if (manifest.units[std::size_t(block.unit.value)].is_expert()) written.insert(block.unit);
    }
    checkpoint.expert_units = std::int64_t(written.size());
    for (std::size_t i = 0; i < manifest.files.size(); ++i) {
      const FileEntry& entry = manifest.files[i];
      FileReport file{.path = fmt::format("checkpoints/{}/{}", stored.directory, entry.name),
                      .kind = entry.kind == FileKind::kState ? "state" : "experts",
                      .num_bytes = entry.digest.num_bytes};
      if (const auto named = needed.find({stored.directory, entry.name}); named != needed.end()) {
        file.needed = true;
        file.named_by.assign(named->second.begin(), named->second.end());
      }
      const bool there = fs.exists(fmt::format("{}/{}/{}", root, stored.directory, entry.name));
      // What retention has swept is not a problem; what a recovery may read must be there.
      if (!there && !file.needed) continue;
      if (verify == Verify::kYes) {
        verify_file(fs, root, stored, int(i), file);
      } else if (!stored.present[i]) {
        file.problems.push_back(
            fmt::format("{} is missing or has not {} bytes", file.path, entry.digest.num_bytes));
      }
      if (there) {
        checkpoint.num_bytes += entry.digest.num_bytes;
        const bool by_newest = file.needed && file.named_by.back() == head->manifest.version.step;
        (by_newest     ? report.newest_bytes
         : file.needed ? report.older_bytes
                       : report.fallback_bytes) += entry.digest.num_bytes;
      }
      checkpoint.files.push_back(std::move(file));
    }
    report.checkpoints.push_back(std::move(checkpoint));
  }
  if (head != nullptr) {
    report.run_id = head->manifest.run_id;
    report.lineage = head->manifest.lineage;
    report.settings_json = head->manifest.extra_json;
    report.budget = head->manifest.budget;
    report.plt = setting<double>(head->manifest, "/plt").value_or(-1);
    report.last_recovery = last_recovery(head->manifest);
    report.experts = expert_ages(all, *head, routed_at);
    std::set<int> layers;
    for (const ExpertAge& age : report.experts) {
      layers.insert(age.layer);
      report.num_experts = std::max(report.num_experts, age.expert + 1);
    }
    report.num_layers = int(layers.size());
    report.rank_bytes.assign(std::size_t(head->manifest.world_size), 0);
    for (const FileEntry& file : head->manifest.files) {
      report.rank_bytes.at(std::size_t(file.writer.value)) += file.digest.num_bytes;
    }
  }
  return report;
}

int count_problems(const RunReport& report) {
  int count = int(report.problems.size());
  for (const CheckpointReport& checkpoint : report.checkpoints) {
    for (const FileReport& file : checkpoint.files) count += int(file.problems.size());
  }
  return count;
}

}  // namespace pecan::checkpoint
