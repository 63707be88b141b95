#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <map>
#include <ranges>
#include <set>
#include <tuple>

#include <fmt/ranges.h>

#include <pecan/core/hash.hpp>
#include <pecan/core/log.hpp>

#include <pecan/checkpoint/recovery.hpp>
#include <pecan/checkpoint/replicas.hpp>
#include <pecan/checkpoint/root.hpp>

#include "checkpoint/exchange.hpp"
#include "checkpoint/lineage.hpp"
#include "checkpoint/load.hpp"
#include "checkpoint/memory_sources.hpp"
#include "checkpoint/nodes.hpp"
#include "checkpoint/retention.hpp"
#include "checkpoint/scan.hpp"
#include "checkpoint/triple_buffer.hpp"

namespace pecan::checkpoint {
namespace {

using Clock = std::chrono::steady_clock;
using CopyId = std::tuple<UnitIndex, RoleGroup, Version>;
using ItemsOfGroup = std::map<UnitGroup, std::vector<const StateItem*>>;

/// Of other nodes' memory: what all ranks together take in before they load it, and what one sends
/// or takes in at a time.
constexpr std::size_t kBatchBytes = std::size_t(256) << 20;
constexpr std::size_t kRoundBytes = std::size_t(64) << 20;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void require(const Status& status, std::string_view doing) {
  PECAN_VALIDATE(status.ok(),
                 CheckpointError,
                 "{}: {}; the run directory must be writable storage that all ranks share",
                 doing,
                 status.message);
}

/// Incarnation in "abandoned-<incarnation>-<name>".
std::optional<std::int32_t> abandoned_by(std::string_view name) {
  if (!name.starts_with(kAbandonedPrefix)) return {};
  name.remove_prefix(kAbandonedPrefix.size());
  std::int32_t incarnation = 0;
  const auto parsed = std::from_chars(name.data(), name.data() + name.size(), incarnation);
  return parsed.ec == std::errc{} ? std::optional(incarnation) : std::nullopt;
}

/// What rank 0 finds in the run directory and tells the others.
struct Opening {
  std::string run_id;
  std::int32_t incarnation = 0;
  bool has_steps = false;  ///< there are step directories, good or not
  std::vector<std::string> damages;
  std::vector<StoredCheckpoint> checkpoints;  ///< good ones of the lineage, ascending

  [[nodiscard]] std::vector<std::string> to_fields() const {
    std::vector<std::string> fields{
        run_id, std::to_string(incarnation), has_steps ? "1" : "0", pack(damages)};
    for (const StoredCheckpoint& checkpoint : checkpoints) {
      std::string present;
      for (const bool there : checkpoint.present) present += there ? '1' : '0';
      fields.push_back(pack({checkpoint.directory,
                             checkpoint.retired ? "1" : "0",
                             present,
                             to_json(checkpoint.manifest)}));
    }
    return fields;
  }

  static Opening from_fields(const std::vector<std::string>& fields) {
    Opening opening{fields[0], std::stoi(fields[1]), fields[2] == "1", unpack(fields[3]), {}};
    for (std::size_t i = 4; i < fields.size(); ++i) {
      const std::vector<std::string> parts = unpack(fields[i]);
      StoredCheckpoint checkpoint;
      checkpoint.directory = parts[0];
      checkpoint.retired = parts[1] == "1";
      for (const char there : parts[2]) checkpoint.present.push_back(there == '1');
      checkpoint.manifest = parse_manifest(parts[3]).value();
      index_groups(checkpoint);
      opening.checkpoints.push_back(std::move(checkpoint));
    }
    return opening;
  }
};

/// One recovery on one rank; its methods run in order and, unless said, on every rank.
class Recovery {
 public:
  Recovery(FileSystem& fs,
           const std::string& run_directory,
           ResumeMode mode,
           const std::string& path,
           const StateCatalog& catalog,
           StateBinding& binding,
           Exchange exchange,
           const RecoverOptions& options)
      : fs_(fs),
        run_directory_(run_directory),
        root_(run_directory + "/checkpoints"),
        mode_(mode),
        path_(path),
        catalog_(catalog),
        binding_(binding),
        exchange_(exchange),
        options_(options) {
    for (const StateItem& item : catalog.items) items_of_[{item.unit, item.group}].push_back(&item);
  }

  Recovered run() {
    const auto begin = Clock::now();
    opening_ = Opening::from_fields(exchange_.from_root([&] { return open().to_fields(); }));
    recovered_.identity.run_id = opening_.run_id;
    recovered_.identity.incarnation = Incarnation{opening_.incarnation};
    check_shared_storage();
    const std::string node = options_.node.empty() ? this_host() : options_.node;
    recovered_.node_of_rank = exchange_.gather(node);
    nodes_ = Nodes(recovered_.node_of_rank);
    collect_sources();
    collect_memory(node);
    recovered_.report.damages = opening_.damages;
    recovered_.report.scan_ms = ms_since(begin);

    const auto load_begin = Clock::now();
    // Without checkpoints there is nothing to lose: snapshots in memory that are not whole are no
    // reason to stop.
    if (opening_.has_steps || plan_restore(catalog_, sources_, candidates_)) {
      recovered_.report.fresh = false;
      load();
      check_replicas();
    }
    adopt();
    recovered_.report.abandoned = exchange_.from_root([&] { return abandon(); });
    recovered_.report.load_ms = ms_since(load_begin);
    return std::move(recovered_);
  }

 private:
  // ---- rank 0 alone

  Opening open() {
    if (mode_ == ResumeMode::kFreshOnly) {
      refuse_used_directory(fs_,
                            run_directory_,
                            "continue it with --resume-from-failure, or choose another --run-dir");
    }
    require(fs_.create_directories(root_), "the run directory cannot be made");
    // A crash must not take the directory while files in it are counted on.
    require(fs_.sync_directory(run_directory_), "the run directory cannot be synced");
    require(fs_.sync_directory(parent_of(run_directory_)), "the run directory cannot be synced");
    const FormerHolder former = RunLock::await_holder(fs_, run_directory_, options_.lock);

    Opening opening;
    if (former.exists && !former.state) {
      opening.damages.push_back(
          "lock.json is damaged; the run's identity comes from its manifests");
    }
    std::vector<StoredCheckpoint> found = scan(opening);
    identify(found, former.state, opening);
    keep_lineage(found);
    for (const StoredCheckpoint& checkpoint : found) check_model(checkpoint);
    report_missing_files(found, opening.damages);
    opening.checkpoints = std::move(found);
    recovered_.identity.lock = std::make_shared<RunLock>(
        fs_, run_directory_, opening.run_id, Incarnation{opening.incarnation}, options_.lock);
    return opening;
  }

  /// All good checkpoints, ascending; the rest becomes damages.
  std::vector<StoredCheckpoint> scan(Opening& opening) {
    const Result<std::vector<DirEntry>> entries = fs_.list(root_);
    require(entries.status(), "the checkpoints cannot be listed");
    std::vector<StoredCheckpoint> found;
    for (const DirEntry& entry : entries.value()) {
      names_.push_back(entry.name);
      if (const auto by = abandoned_by(entry.name)) {
        opening.incarnation = std::max(opening.incarnation, *by + 1);
      }
      if (!step_of_directory(entry.name)) continue;
      opening.has_steps = true;
      Result<StoredCheckpoint> loaded = load_checkpoint(fs_, root_, entry.name);
      if (loaded.ok()) {
        found.push_back(std::move(loaded).value());
      } else {
        opening.damages.push_back(loaded.status().message);
      }
    }
    std::ranges::sort(
        found, {}, [](const StoredCheckpoint& checkpoint) { return checkpoint.manifest.version; });
    return found;
  }

  /// Settles the run's id and this start's incarnation.
  void identify(const std::vector<StoredCheckpoint>& found,
                const std::optional<LockState>& former,
                Opening& opening) const {
    if (former) {
      opening.run_id = former->run_id;
      opening.incarnation = std::max(opening.incarnation, former->incarnation.value + 1);
    } else {
      opening.run_id = found.empty() ? random_hex() : found.back().manifest.run_id;
    }
    for (const StoredCheckpoint& checkpoint : found) {
      PECAN_VALIDATE(checkpoint.manifest.run_id == opening.run_id,
                     CheckpointError,
                     "{}/{} is of run {}, but this is the run directory of {}; move it away",
                     root_,
                     checkpoint.directory,
                     checkpoint.manifest.run_id,
                     opening.run_id);
      opening.incarnation =
          std::max(opening.incarnation, checkpoint.manifest.version.incarnation.value + 1);
    }
  }

  /// Drops what is not on the chain of the newest incarnation: an abandoned branch whose renaming a
  /// crash has cut short.
  static void keep_lineage(std::vector<StoredCheckpoint>& found) {
    if (found.empty()) return;
    const std::vector<LineageEntry> lineage = found.back().manifest.lineage;
    std::erase_if(found, [&](const StoredCheckpoint& checkpoint) {
      return !in_lineage(checkpoint.manifest.version, lineage);
    });
  }

  void check_model(const StoredCheckpoint& checkpoint) const {
    PECAN_VALIDATE(checkpoint.manifest.model_fingerprint == catalog_.model_fingerprint(),
                   CheckpointError,
                   "{} is of another model (fingerprint {}, this configuration's is {}); use the "
                   "configuration that the run began with ({}/config.yaml), or another --run-dir",
                   checkpoint.directory,
                   to_hex(checkpoint.manifest.model_fingerprint),
                   to_hex(catalog_.model_fingerprint()),
                   run_directory_);
  }

  /// Files that a candidate counts on; those that retention deleted are not missed.
  static void report_missing_files(const std::vector<StoredCheckpoint>& found,
                                   std::vector<std::string>& damages) {
    std::set<std::pair<std::string, std::string>> missing;
    for (const StoredCheckpoint& candidate : found) {
      if (candidate.retired) continue;
      for (const UnitCopy& copy : candidate.manifest.copies) {
        const auto holder = std::ranges::find(
            found, copy.version, [](const StoredCheckpoint& one) { return one.manifest.version; });
        if (holder == found.end()) continue;
        const auto files = holder->files_of.find({copy.unit, copy.group});
        if (files == holder->files_of.end()) continue;
        for (const int file : files->second) {
          if (holder->present[std::size_t(file)]) continue;
          missing.emplace(holder->directory, holder->manifest.files[std::size_t(file)].name);
        }
      }
    }
    for (const auto& [directory, file] : missing) {
      damages.push_back(
          fmt::format("{}/{} is missing or has not the size that was written", directory, file));
    }
  }

  /// Renames what is not part of the past of this start, so that its names are free again and it is
  /// never read.
  std::vector<std::string> abandon() {
    std::vector<std::string> abandoned;
    const bool fresh = recovered_.report.fresh;
    const Step recovery = recovered_.report.plan.recovery.step;
    for (const std::string& name : names_) {
      const bool partial = name.starts_with("step-") && name.ends_with(".partial");
      const std::optional<Step> step = step_of_directory(name);
      const bool in_past = std::ranges::any_of(opening_.checkpoints, [&](const auto& checkpoint) {
        return checkpoint.directory == name && checkpoint.manifest.version.step <= recovery;
      });
      if (!partial && (!step || (!fresh && in_past))) continue;
      const std::string to = fmt::format("{}{}-{}", kAbandonedPrefix, opening_.incarnation, name);
      require(fs_.rename(root_ + "/" + name, root_ + "/" + to),
              "an abandoned branch stays in the way");
      abandoned.push_back(to);
    }
    // Before training goes on: a crash after the next commit must not bring the old branch back
    // beside the new one.
    if (!abandoned.empty())
      require(fs_.sync_directory(root_), "an abandoned branch stays in the way");
    return abandoned;
  }

  // ---- every rank

  /// Each rank must see a file that rank 0 has just written.
  void check_shared_storage() {
    const std::string file = root_ + "/.nonce";
    const std::string nonce = exchange_.from_root([&] {
      std::string text = random_hex();
      require(write_text_atomically(fs_, file, text), "the run directory is not writable");
      return std::vector{text};
    })[0];
    const Result<std::string> read = read_text(fs_, file);
    const bool same = read.ok() && read.value() == nonce;
    std::vector<std::int64_t> first_blind{same ? exchange_.size() : exchange_.rank().value};
    exchange_.reduce(first_blind, comm::ReduceOp::kMin);
    if (exchange_.is_root()) static_cast<void>(fs_.remove_file(file));  // harmless if it stays
    PECAN_VALIDATE(
        first_blind[0] == exchange_.size(),
        CheckpointError,
        "rank {} does not see in {} what rank 0 wrote there; checkpoints need storage that "
        "all hosts share, so choose such a --run-dir",
        first_blind[0],
        root_);
  }

  /// The step that --resume names, which must be one of this run.
  [[nodiscard]] std::optional<Version> requested() const {
    if (mode_ != ResumeMode::kFromPath) return {};
    namespace stdfs = std::filesystem;
    stdfs::path wanted = stdfs::absolute(path_).lexically_normal();
    if (wanted.filename().empty()) wanted = wanted.parent_path();
    const stdfs::path here = stdfs::absolute(root_).lexically_normal();
    PECAN_VALIDATE(wanted.parent_path() == here,
                   CheckpointError,
                   "--resume {} is no checkpoint of the run directory {}; give one of {}, or the "
                   "--run-dir that it belongs to",
                   path_,
                   run_directory_,
                   root_);
    for (const StoredCheckpoint& checkpoint : opening_.checkpoints) {
      if (checkpoint.directory == wanted.filename() && !checkpoint.retired) {
        return checkpoint.manifest.version;
      }
    }
    throw CheckpointError(fmt::format(
        "--resume {} is no checkpoint from which the run can go on: it is missing, damaged "
        "or retired; `pecan-inspect {} list` shows those that there are",
        path_,
        run_directory_));
  }

  [[nodiscard]] bool not_too_new(Version version) const {
    return !options_.newest_step || version.step <= *options_.newest_step;
  }

  void collect_sources() {
    const std::optional<Version> only = requested();
    for (const StoredCheckpoint& checkpoint : opening_.checkpoints) {
      const Version version = checkpoint.manifest.version;
      if (!checkpoint.retired && (!only || *only == version) && not_too_new(version))
        candidates_.push_back(version);
      for (const UnitCopy& copy : written_copies(checkpoint.manifest.blocks, version)) {
        if (!checkpoint.has({copy.unit, copy.group})) continue;
        sources_.push_back({copy.unit, copy.group, version, checkpoint.directory});
        digest_of_[{copy.unit, copy.group, version}] = copy.digest;
      }
    }
  }

  /// Adds what the nodes' memory holds.
  void collect_memory(const std::string& node) {
    if (options_.memory_dir.empty() || mode_ != ResumeMode::kFromFailure) return;
    std::vector<std::string> damages;
    memory_ = MemorySources(options_.memory_dir,
                            node,
                            opening_.run_id,
                            catalog_.model_fingerprint(),
                            nodes_,
                            exchange_,
                            damages);
    for (std::string& damage : damages) {
      if (std::ranges::count(opening_.damages, damage) == 0)
        opening_.damages.push_back(std::move(damage));
    }
    headers_ = memory_.headers();
    if (headers_.empty()) return;
    keep_memory_lineage();
    for (const auto& [version, header] : headers_) {
      if (std::ranges::count(candidates_, version) == 0 && not_too_new(version))
        candidates_.push_back(version);
      for (const auto& [key, items] : items_of_) {
        if (is_in_memory(items, version))
          sources_.push_back({key.first, key.second, version, {}, Tier::kMemory});
      }
    }
    std::ranges::sort(candidates_);
  }

  [[nodiscard]] bool is_in_memory(const std::vector<const StateItem*>& items,
                                  Version version) const {
    return std::ranges::all_of(
        items, [&](const StateItem* item) { return memory_.covers(version, *item); });
  }

  /// Storage and memory must be of one chain: that of the newest of both.
  void keep_memory_lineage() {
    const Manifest* newest = &headers_.rbegin()->second;
    if (!opening_.checkpoints.empty() &&
        newest->version < opening_.checkpoints.back().manifest.version) {
      newest = &opening_.checkpoints.back().manifest;
    }
    const std::vector<LineageEntry> lineage = newest->lineage;
    std::erase_if(headers_, [&](const auto& entry) { return !in_lineage(entry.first, lineage); });
    std::erase_if(sources_,
                  [&](const Source& source) { return !in_lineage(source.version, lineage); });
    std::erase_if(candidates_, [&](Version version) { return !in_lineage(version, lineage); });
  }

  /// The newest checkpoint in storage up to t*; null if there is none.
  [[nodiscard]] const StoredCheckpoint* anchor(const RestorePlan& plan) const {
    const StoredCheckpoint* newest = nullptr;
    for (const StoredCheckpoint& checkpoint : opening_.checkpoints) {
      const Version version = checkpoint.manifest.version;
      if (!checkpoint.retired && version <= plan.recovery &&
          std::ranges::count(candidates_, version) > 0)
        newest = &checkpoint;
    }
    return newest;
  }

  /// The manifest of t* binds the copies that it counts on: another checkpoint under the same step
  /// is no source for it. Whether any was excluded.
  bool exclude_unbound(const RestorePlan& plan) {
    const StoredCheckpoint* stored = anchor(plan);
    if (stored == nullptr) return false;
    const Manifest& manifest = stored->manifest;
    std::map<CopyId, std::uint64_t> expected;
    for (const UnitCopy& copy : manifest.copies) {
      expected[{copy.unit, copy.group, copy.version}] = copy.digest;
    }
    bool any = false;
    for (const UnitRestore& restore : plan.restores) {
      if (restore.tier != Tier::kStorage) continue;
      const CopyId id{restore.unit, restore.group, restore.version};
      const auto bound = expected.find(id);
      if (bound == expected.end() || bound->second == digest_of_.at(id)) continue;
      exclude(
          {restore.unit,
           restore.group,
           restore.version,
           restore.tier,
           fmt::format("the manifest of step {} counts on other content", manifest.version.step)});
      any = true;
    }
    return any;
  }

  void exclude(const Failure& failure) {
    const auto bad = [&](const Source& source) {
      return source.unit == failure.unit && source.group == failure.group &&
             source.version == failure.version && source.tier == failure.tier;
    };
    if (failure.piece) {
      // Another node may have a copy of that part.
      if (!memory_.exclude(*failure.piece)) return;
      if (!is_in_memory(items_of_.at({failure.unit, failure.group}), failure.version))
        std::erase_if(sources_, bad);
    } else if (std::erase_if(sources_, bad) == 0) {
      return;
    }
    opening_.damages.push_back(fmt::format("{} ({}) of step {}{} cannot be used: {}",
                                           catalog_.units[std::size_t(failure.unit.value)].name,
                                           name_of(failure.group),
                                           failure.version.step,
                                           failure.tier == Tier::kMemory ? " in memory" : "",
                                           failure.why));
  }

  void load() {
    Loader loader(fs_, root_, catalog_, opening_.checkpoints, memory_, nodes_, exchange_.rank());
    std::map<UnitGroup, std::pair<Version, Tier>> loaded;  // on all ranks
    while (true) {
      std::optional<RestorePlan> plan = plan_restore(catalog_, sources_, candidates_);
      if (!plan && options_.reinitialise && reinitialise_lost_experts()) {
        loaded.clear();
        continue;
      }
      PECAN_VALIDATE(plan.has_value(), CheckpointError, "{}", describe_unrecoverable());
      const auto hash = std::int64_t(plan->hash());
      std::vector<std::int64_t> lowest{hash};
      std::vector<std::int64_t> highest{hash};
      exchange_.reduce(lowest, comm::ReduceOp::kMin);
      exchange_.reduce(highest, comm::ReduceOp::kMax);
      PECAN_VALIDATE(lowest == highest,
                     InternalError,
                     "ranks made different restore plans of the same sources");
      if (exclude_unbound(*plan)) continue;
      std::vector<UnitRestore> wanted;
      for (const UnitRestore& restore : plan->restores) {
        const auto done = loaded.find({restore.unit, restore.group});
        if (done == loaded.end() || done->second != std::pair(restore.version, restore.tier))
          wanted.push_back(restore);
      }
      const std::set<UnitGroup> failed = exclude_failures(load(loader, wanted));
      for (const UnitRestore& restore : wanted) {
        const UnitGroup key{restore.unit, restore.group};
        if (!failed.contains(key)) loaded[key] = {restore.version, restore.tier};
      }
      if (!failed.empty()) continue;
      recovered_.report.plan = *std::move(plan);
      report_fallback();
      return;
    }
  }

  /// Loads in batches, so that little of other nodes' memory is held at a time. Returns what failed
  /// on this rank.
  std::vector<Failure> load(Loader& loader, const std::vector<UnitRestore>& restores) {
    std::vector<Failure> failures;
    for (std::size_t begin = 0; begin < restores.size();) {
      std::vector<Transfer> transfers;
      std::size_t num_bytes = 0;
      std::size_t end = begin;
      for (; end < restores.size() && num_bytes < kBatchBytes; ++end) {
        const UnitRestore& restore = restores[end];
        if (restore.tier != Tier::kMemory) continue;
        for (const Transfer& transfer : plan_transfers(
                 items_of_.at({restore.unit, restore.group}), restore.version, memory_, nodes_)) {
          transfers.push_back(transfer);
          num_bytes += transfer.num_bytes;
        }
      }
      const Received received = exchange_pieces(transfers, memory_, kRoundBytes, exchange_);
      const auto batch = std::span(restores).subspan(begin, end - begin);
      std::ranges::move(loader.load(batch, received, binding_), std::back_inserter(failures));
      for (const Transfer& transfer : transfers)
        recovered_.report.sent_bytes += std::int64_t(transfer.num_bytes);
      begin = end;
    }
    return failures;
  }

  /// Excludes what failed on any rank; returns whose.
  std::set<UnitGroup> exclude_failures(const std::vector<Failure>& mine) {
    std::vector<std::string> fields;
    for (const Failure& failure : mine) {
      const MemoryPiece piece = failure.piece.value_or(MemoryPiece{});
      fields.push_back(pack({std::to_string(failure.unit.value),
                             std::string(name_of(failure.group)),
                             std::to_string(failure.version.incarnation.value),
                             std::to_string(failure.version.step.value),
                             failure.tier == Tier::kMemory ? "memory" : "storage",
                             failure.why,
                             failure.piece ? "piece" : "",
                             std::to_string(piece.segment),
                             std::to_string(piece.block)}));
    }
    std::set<UnitGroup> failed;
    for (const std::string& rank_text : exchange_.gather(pack(fields))) {
      for (const std::string& text : unpack(rank_text)) {
        const std::vector<std::string> parts = unpack(text);
        Failure failure{UnitIndex{std::stoi(parts[0])},
                        role_group_from_name(parts[1]),
                        {Incarnation{std::stoi(parts[2])}, Step{std::stoll(parts[3])}},
                        parts[4] == "memory" ? Tier::kMemory : Tier::kStorage,
                        parts[5]};
        if (!parts[6].empty())
          failure.piece = MemoryPiece{std::stoull(parts[7]), std::stoull(parts[8])};
        exclude(failure);
        failed.emplace(failure.unit, failure.group);
      }
    }
    return failed;
  }

  /// Experts of which some group has no copy that any t* could use.
  [[nodiscard]] std::vector<UnitIndex> lost_experts() const {
    std::vector<UnitIndex> lost;
    if (candidates_.empty()) return lost;
    const Version newest = std::ranges::max(candidates_);
    std::set<UnitGroup> found;
    for (const Source& source : sources_) {
      if (source.version <= newest) found.emplace(source.unit, source.group);
    }
    for (const auto& [key, items] : items_of_) {
      const bool derived =
          std::ranges::any_of(items, [](const StateItem* item) { return item->derived; });
      if (key.first.value == 0 || derived || found.contains(key)) continue;
      if (lost.empty() || lost.back() != key.first) lost.push_back(key.first);
    }
    return lost;
  }

  /// Lets experts without a copy begin anew; whether there were any.
  bool reinitialise_lost_experts() {
    const std::vector<UnitIndex> lost = lost_experts();
    for (const UnitIndex unit : lost) {
      std::erase_if(sources_, [&](const Source& source) { return source.unit == unit; });
      opening_.damages.push_back(
          fmt::format("{} has no copy anywhere and begins anew, as --allow-reinit-expert asks",
                      catalog_.units[std::size_t(unit.value)].name));
    }
    for (const auto& [key, items] : items_of_) {
      if (!std::ranges::binary_search(lost, key.first)) continue;
      sources_.push_back({key.first, key.second, Version{}, {}, Tier::kInitial});
    }
    if (lost.empty()) return false;
    options_.reinitialise();
    for (const UnitIndex unit : lost) clear_moments(unit);
    return true;
  }

  /// What a unit has beside its weights begins with zeros.
  void clear_moments(UnitIndex unit) {
    for (std::size_t i = 0; i < catalog_.items.size(); ++i) {
      const StateItem& item = catalog_.items[i];
      if (item.unit != unit || item.role == Role::kWeight || item.role == Role::kMaster) continue;
      for (const StateBlock& part : item.blocks) {
        if (std::ranges::count(part.holders, exchange_.rank()) == 0) continue;
        const std::vector<std::byte> zeros(std::size_t(part.block.extent.num_elements()) *
                                           size_of(item.dtype));
        binding_.copy_in(ItemIndex{std::int32_t(i)}, part.block, zeros);
      }
    }
  }

  [[nodiscard]] std::string describe_unrecoverable() const {
    std::vector<std::string> lost;
    for (const UnitIndex unit : lost_experts())
      lost.push_back(catalog_.units[std::size_t(unit.value)].name);
    return fmt::format(
        "no checkpoint in {} can be recovered: {}{}; bring the files back from a copy, or start in "
        "another --run-dir",
        root_,
        opening_.damages.empty() ? "none has a source for every unit"
                                 : fmt::format("{}", fmt::join(opening_.damages, "; ")),
        lost.empty()
            ? ""
            : fmt::format("; no copy is left in {} checkpoints and {} snapshots in memory of "
                          "{}, which --allow-reinit-expert lets begin anew",
                          opening_.checkpoints.size(),
                          headers_.size(),
                          fmt::join(lost, ", ")));
  }

  void report_fallback() {
    recovered_.report.damages = opening_.damages;
    const Version used = recovered_.report.plan.recovery;
    // A snapshot in memory that is newer was still being copied, as a rule, and is no damage.
    for (const StoredCheckpoint& checkpoint : opening_.checkpoints | std::views::reverse) {
      const Version version = checkpoint.manifest.version;
      if (checkpoint.retired || std::ranges::count(candidates_, version) == 0) continue;
      if (version <= used) return;
      recovered_.report.damages.push_back(
          fmt::format("the checkpoint of step {} cannot be used; continuing from step {}",
                      version.step,
                      used.step));
      return;
    }
  }

  /// Holders of the same block must now hold the same bytes.
  void check_replicas() {
    const std::vector<Replicated> shared = replicated_blocks(catalog_, ReplicaScope::kEverything);
    const std::vector<ReplicaDifference> differences =
        compare_replicas(exchange_.context(),
                         exchange_.group(),
                         comm::Purpose::kRecovery,
                         shared,
                         [&](std::size_t i) { return hash_of(binding_, catalog_, shared[i]); });
    PECAN_VALIDATE(
        differences.empty(), CheckpointError, "after recovery {}", describe(differences.front()));
  }

  /// Continues the lineage, and lets the manifest's copies be those that were loaded, or for what
  /// came from memory the newest in storage.
  void adopt() {
    RunIdentity& identity = recovered_.identity;
    const RestorePlan& plan = recovered_.report.plan;
    LineageEntry entry{identity.incarnation, recovered_.report.fresh, plan.recovery};
    if (!recovered_.report.fresh) {
      const StoredCheckpoint* stored = anchor(plan);
      if (stored != nullptr) recovered_.manifest = with_copies(stored->manifest, plan);
      const bool in_storage = stored != nullptr && stored->manifest.version == plan.recovery;
      recovered_.head = in_storage ? stored->manifest : headers_.at(plan.recovery);
      identity.lineage = recovered_.head->lineage;
      keep_buffers();
      // Where storage has t* itself, the snapshots had no more than newer copies of some experts.
      recovered_.must_secure =
          !in_storage && std::ranges::any_of(plan.restores, [&](const UnitRestore& restore) {
            return restore.tier == Tier::kMemory &&
                   std::ranges::count(recovered_.kept, std::optional(restore.version)) == 0;
          });
    }
    identity.lineage.push_back(entry);
  }

  /// Buffers that hold the same version on all ranks, of the past of t*.
  void keep_buffers() {
    if (headers_.empty()) return;
    constexpr std::size_t kBuffers = TripleBuffer::kMaxBuffers;
    std::vector<std::int64_t> lowest(2 * kBuffers, -1);
    for (const auto& [buffer, version] :
         memory_.buffers_of(exchange_.rank(), nodes_.of(exchange_.rank()))) {
      if (std::size_t(buffer) >= kBuffers || !headers_.contains(version) ||
          version > recovered_.report.plan.recovery)
        continue;
      lowest[2 * std::size_t(buffer)] = version.incarnation.value;
      lowest[2 * std::size_t(buffer) + 1] = version.step.value;
    }
    std::vector<std::int64_t> highest = lowest;
    exchange_.reduce(lowest, comm::ReduceOp::kMin);
    exchange_.reduce(highest, comm::ReduceOp::kMax);
    recovered_.kept.resize(kBuffers);
    for (std::size_t b = 0; b < kBuffers; ++b) {
      const std::size_t at = 2 * b;
      if (lowest[at] < 0 || lowest[at] != highest[at] || lowest[at + 1] != highest[at + 1])
        continue;
      recovered_.kept[b] = Version{Incarnation{std::int32_t(lowest[at])}, Step{lowest[at + 1]}};
    }
  }

  /// Nothing if storage lacks a copy of something, so that the next checkpoint is full.
  [[nodiscard]] std::optional<Manifest> with_copies(Manifest manifest,
                                                    const RestorePlan& plan) const {
    std::map<UnitGroup, Version> newest;
    for (const Source& source : sources_) {
      if (source.tier != Tier::kStorage || source.version > plan.recovery) continue;
      const auto [known, is_new] = newest.try_emplace({source.unit, source.group}, source.version);
      if (!is_new) known->second = std::max(known->second, source.version);
    }
    manifest.copies.clear();
    for (const UnitRestore& restore : plan.restores) {
      Version version = restore.version;
      if (restore.tier != Tier::kStorage) {
        const auto stored = newest.find({restore.unit, restore.group});
        if (stored == newest.end()) return {};
        version = stored->second;
      }
      manifest.copies.push_back({restore.unit,
                                 restore.group,
                                 version,
                                 digest_of_.at({restore.unit, restore.group, version})});
    }
    return manifest;
  }

  FileSystem& fs_;
  std::string run_directory_;
  std::string root_;
  ResumeMode mode_;
  std::string path_;
  const StateCatalog& catalog_;
  StateBinding& binding_;
  Exchange exchange_;
  RecoverOptions options_;
  ItemsOfGroup items_of_;

  std::vector<std::string> names_;  ///< in the checkpoints directory; rank 0
  Opening opening_;
  Nodes nodes_;
  MemorySources memory_;
  std::map<Version, Manifest> headers_;  ///< of snapshots in the memory of any node
  std::vector<Source> sources_;
  std::vector<Version> candidates_;            ///< ascending
  std::map<CopyId, std::uint64_t> digest_of_;  ///< of the copies behind sources_
  Recovered recovered_;
};

}  // namespace

SaveRecord secure(Recovered& recovered,
                  FileSystem& fs,
                  const std::string& run_directory,
                  const config::CheckpointConfig& config,
                  const StateCatalog& catalog,
                  StateBinding& binding,
                  const StepFacts& facts,
                  Context& ctx,
                  comm::Group& world) {
  FullSave saved = save_full(fs,
                             run_directory,
                             config,
                             catalog,
                             binding,
                             recovered.identity,
                             recovered.node_of_rank,
                             recovered.head->budget,
                             facts,
                             ctx,
                             world);
  PECAN_VALIDATE(saved.status.ok(),
                 CheckpointError,
                 "{}; the snapshots in memory that it comes from are still there",
                 saved.status.message);
  recovered.manifest = std::move(saved.manifest);
  recovered.must_secure = false;
  recovered.kept.clear();
  return saved.record;
}

Recovered recover(FileSystem& fs,
                  const std::string& run_directory,
                  ResumeMode mode,
                  const std::string& path,
                  const StateCatalog& catalog,
                  StateBinding& binding,
                  Context& ctx,
                  comm::Group& world,
                  const RecoverOptions& options) {
  return Recovery(fs, run_directory, mode, path, catalog, binding, Exchange(ctx, world), options)
      .run();
}

}  // namespace pecan::checkpoint
