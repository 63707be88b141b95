#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <utility>

#include <pecan/core/build_info.hpp>
#include <pecan/core/log.hpp>

#include <pecan/checkpoint/checkpointer.hpp>
#include <pecan/checkpoint/plan.hpp>
#include <pecan/checkpoint/select.hpp>

#include "checkpoint/lineage.hpp"
#include "checkpoint/nodes.hpp"
#include "checkpoint/persist.hpp"
#include "checkpoint/replicator.hpp"
#include "checkpoint/request.hpp"
#include "checkpoint/retention.hpp"
#include "checkpoint/segment_memory.hpp"
#include "checkpoint/snapshot.hpp"
#include "checkpoint/triple_buffer.hpp"
#include "checkpoint/worker.hpp"

namespace pecan::checkpoint {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Fields of a Vote. Snapshots and checkpoints in storage are numbered from 1 within this start of
/// the run.
enum VoteField : std::size_t {
  kCopied,     ///< last snapshot that this rank has finished, well or badly, with its copies
  kWhole,      ///< 0: this rank's part of that snapshot failed
  kWritten,    ///< last checkpoint whose part this rank has finished, well or badly
  kIntact,     ///< 0: this rank's part of the current checkpoint failed
  kClosed,     ///< last checkpoint that rank 0 committed or dropped; others: no opinion
  kCommitted,  ///< 0: that checkpoint was dropped; others: no opinion
  kSeen,       ///< last commit that this rank has learnt of
  kUnfenced,   ///< 0: a newer incarnation holds the run
  kStarted,    ///< snapshots started; this and the next must agree on all ranks
  kMinusStarted,
  kHiddenBytes,   ///< that this rank copies during its forward and backward; 0: unknown
  kSinceMemory,   ///< milliseconds since the last snapshot began, by rank 0's clock
  kSinceStorage,  ///< the same of the last one for storage
};
static_assert(kSinceStorage + 1 == kVoteSize);
constexpr std::int64_t kNoOpinion = std::numeric_limits<std::int64_t>::max();

/// The writer stands back behind the threads that compute, but is not starved by them.
constexpr int kWriterNiceness = 10;

/// Runs a background job's body, whose exceptions are failures like any other.
template <typename Body>
Status guarded(Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    return Status::failure(StatusCode::kIo, error.what());
  }
}

/// A snapshot and what becomes of it; set by the main thread before its jobs are posted, constant
/// while they run.
struct Generation {
  SaveRecord record;
  StepFacts facts;
  ForStorage for_storage = ForStorage::kNo;
  bool direct = false;           ///< its checkpoint is written as soon as this rank has copied it
  std::vector<UnitIndex> units;  ///< experts in the snapshot
  std::vector<UnitIndex> persisted;  ///< those of them that go to storage
  SavePlan plan;                     ///< of the snapshot
  SavePlan persist;                  ///< of storage
  Manifest memory_header;
};

/// A history with what it needs to count unsaved token slots.
struct TrackedHistory {
  SelectionHistory saved;
  std::vector<std::int64_t> routed_then;  ///< token slots at each expert's save

  void note(const std::vector<UnitIndex>& units, Step step, const StepFacts& facts) {
    saved.saved(units, step);
    if (facts.routed.empty()) return;
    for (const UnitIndex unit : units) {
      routed_then[ExpertGrid::index(unit)] = facts.routed[ExpertGrid::index(unit)];
    }
  }
  [[nodiscard]] SelectionHistory as_of(const StepFacts& facts) const {
    SelectionHistory history = saved;
    for (std::size_t i = 0; i < facts.routed.size(); ++i)
      history.unsaved[i] = facts.routed[i] - routed_then[i];
    return history;
  }
};

double steady_seconds() {
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

struct Checkpointer::Impl {
  /// A checkpoint that all ranks have written, until rank 0 has committed or dropped it. Its buffer
  /// is free again, so that the next one may be written meanwhile.
  struct Closing {
    Generation save;
    std::int64_t number = 0;      ///< of the checkpoint
    std::int64_t generation = 0;  ///< of the snapshot
    bool intact = false;          ///< all parts were written
    Status write;                 ///< this rank's part
  };

  /// What background jobs report of the current snapshot and the current checkpoint; guarded by
  /// `mutex`.
  struct Outcome {
    bool copied = true;  ///< parameters and moments are no longer read
    bool sealed = true;
    bool written = true;
    bool closed = true;
    Status copy;
    Status write;
    Status close;
    double snapshot_ms = 0;
    Clock::time_point sealed_at;
    std::int64_t copied_bytes = 0;
    double bytes_per_ms = 0;  ///< of the last snapshot
    std::int64_t written_bytes = 0;
    double persist_ms = 0;
    double commit_ms = 0;
  };

  Impl(FileSystem& file_system,
       std::string run_directory,
       const config::CheckpointConfig& configuration,
       const StateCatalog& state_catalog,
       StateBinding& binding,
       Rank this_rank,
       CheckpointerStart start)
      : fs(file_system),
        root(std::move(run_directory) + "/checkpoints"),
        config(configuration),
        catalog(state_catalog),
        rank(this_rank),
        identity(std::move(start.identity)),
        budget(start.budget),
        grid(expert_grid(catalog, always_saved_groups(config.pec.always_saved))),
        settings(selection_settings(config, grid, budget)),
        fingerprint(catalog.model_fingerprint()),
        cycle(1),
        seconds(start.seconds ? std::move(start.seconds) : steady_seconds),
        state_device(start.state_device),
        profiler(start.profiler),
        on_phase(std::move(start.on_phase)),
        retention(
            fs, root, {config.keep_latest_k, config.save_retain_interval, config.fallback_copies}) {
    if (budget.checkpoint == 0) {
      budget = first_expert_budget(
          settings.storage.experts, settings.memory.experts, config.pec.plt_budget);
    }
    storage.saved = SelectionHistory::uniform(grid, settings.storage.experts, Step{-1});
    storage.routed_then = std::move(start.routed);
    storage.routed_then.resize(std::size_t(grid.num_units()));
    if (start.recovered) continue_from(*std::move(start.recovered));
    memory = storage;
    memory.saved.first_budget = settings.memory.experts;
    snapshot_at = storage_at = seconds();
    non_expert_bytes = std::int64_t(
        std::ranges::max(plan_save(catalog, partial_request(settings, {})).rank_bytes));

    const SnapshotMemory& reserved = start.memory[std::size_t(rank.value)];
    const Nodes nodes(start.node_of_rank);
    const std::string& host = start.node_of_rank[std::size_t(rank.value)];
    const int num_kept = reserved.num_buffers > 1 ? reserved.num_buffers : 0;
    if (!start.keep_memory && nodes.is_first_of_node(rank)) {
      remove_superseded_segments(
          config.memory_dir, host, identity.run_id, [&](const SegmentName& name) {
            const int node = nodes.of(rank);
            return name.copy > 0
                       ? keeps_copy(name, nodes, node, start.replication.factor - 1, num_kept)
                       : name.rank.value < nodes.num_ranks() && nodes.of(name.rank) == node &&
                             name.buffer < num_kept;
          });
    }
    for (int b = 0; b < reserved.num_buffers; ++b) {
      buffers.emplace_back(catalog, binding, make_memory(reserved.num_buffers, b, host));
      buffers.back().reserve(b == 0 ? reserved.first : reserved.others, reserved.max_blocks);
    }
    generations.resize(buffers.size());
    if (start.replication.factor > 1) {
      replicator.emplace(
          start.replication, nodes, config.memory_dir, host, identity.run_id, start.memory);
    }
    if (buffers.size() > 1) adopt(start.kept);
    if (has_full) use_all_buffers();
  }

  void continue_from(Manifest recovered) {
    has_full = true;
    last_started = recovered.version.step;
    last_committed = last_started;
    storage.saved.first_budget = recovered.first_budget;
    std::ranges::fill(storage.saved.newest, recovered.version.step);
    for (const UnitCopy& copy : recovered.copies) {
      if (copy.unit.value == 0) continue;
      Step& newest = storage.saved.newest[grid.index(copy.unit)];
      newest = std::min(newest, copy.version.step);
    }
    if (recovered.ages.size() == storage.saved.age.size())
      storage.saved.age = std::move(recovered.ages);
    copies = std::move(recovered.copies);
  }

  [[nodiscard]] std::unique_ptr<BufferMemory> make_memory(int num_buffers,
                                                          int buffer,
                                                          const std::string& host) const {
    if (num_buffers == 1) return std::make_unique<PrivateMemory>(state_device);
    return std::make_unique<SegmentMemory>(
        config.memory_dir, SegmentName{identity.run_id, host, rank, buffer}, state_device);
  }

  void adopt(const std::vector<std::optional<Version>>& kept) {
    std::array<int, TripleBuffer::kMaxBuffers> order{};
    for (std::size_t b = 0; b < buffers.size(); ++b) {
      if (b >= kept.size() || !kept[b]) {
        // Of a branch that this start has left behind, which a later recovery must not return to.
        buffers[b].invalidate();
        if (replicator) replicator->invalidate(int(b));
        continue;
      }
      order[b] = 1 + int(std::ranges::count_if(
                         kept, [&](const auto& other) { return other && *other < *kept[b]; }));
    }
    cycle.adopt(order);
  }

  void use_all_buffers() {
    if (buffers.size() > 1) cycle.use_all();
  }

  [[nodiscard]] bool memory_level() const { return buffers.size() > 1; }

  [[nodiscard]] bool storage_busy() const { return writing || closing; }

  // ---- what to save

  /// As if what is being written and committed were in storage already.
  [[nodiscard]] TrackedHistory storage_with_pending() const {
    TrackedHistory history = storage;
    const auto note = [&](const Generation& save) {
      history.note(save.persisted, save.facts.step, save.facts);
    };
    if (closing) note(closing->save);
    if (writing) note(*generations[*writing]);
    return history;
  }

  void select(Generation& save) {
    const Step step = save.facts.step;
    if (!has_full || !settings.partial(grid)) {
      const SaveRequest request = full_request(grid, settings, storage.saved.first_budget, step);
      save.units = save.persisted = request.units;
      save.plan = save.persist = plan_save(catalog, request);
      return;
    }
    Level in_memory{memory.as_of(save.facts), settings.memory};
    Level in_storage{storage_with_pending().as_of(save.facts), settings.storage};
    const std::int64_t for_experts = std::max<std::int64_t>(0, hidden_bytes - non_expert_bytes);
    in_memory.budget.rank_bytes = in_storage.budget.rank_bytes = for_experts;
    if (!memory_level()) in_memory.budget.experts = in_storage.budget.experts;
    LevelSelection selection =
        select_levels(grid, settings.policy, in_memory, in_storage, save.for_storage, step);
    LevelPlans plans = plan_levels(catalog, settings, selection);
    save.plan = std::move(plans.snapshot);
    save.persist = std::move(plans.persist);
    save.units = std::move(selection.snapshot);
    save.persisted = std::move(selection.persist);
  }

  /// Of a background thread, in the profile if there is one.
  [[nodiscard]] ProfileSpan span(ProfileThread thread, std::string_view name, Step step) const {
    return {profiler != nullptr ? profiler->track(thread) : nullptr,
            {.kind = SpanKind::kSave, .name = name, .step = step}};
  }

  void pass(SavePhase phase_of_save, Step step) const {
    if (on_phase) on_phase(phase_of_save, step);
  }

  // ---- snapshots

  /// Starts a snapshot in a free buffer; returns the stall, or nothing if there is none.
  std::optional<double> start(const StepFacts& facts, ForStorage for_storage) {
    const auto begin = Clock::now();
    const bool direct = !writing && !cycle.waiting();
    // Until one full checkpoint is committed there is nothing that a second could build on.
    const std::optional<Begun> begun = has_full || !closing ? cycle.begin_snapshot() : std::nullopt;
    if (!begun) return {};
    if (begun->owes_storage) {
      for_storage = ForStorage::kYes;
      replaced(*generations[std::size_t(begun->buffer)], facts.step);
    }
    Generation& save = generations[std::size_t(begun->buffer)].emplace();
    save.facts = facts;
    save.for_storage = for_storage;
    save.direct = direct && for_storage == ForStorage::kYes;
    select(save);
    save.record.version = {identity.incarnation, facts.step};
    save.record.level = for_storage == ForStorage::kYes ? SaveLevel::kStorage : SaveLevel::kMemory;
    save.record.full = int(save.units.size()) == grid.num_units();
    save.record.num_expert_units =
        std::int64_t(for_storage == ForStorage::kYes ? save.persisted.size() : save.units.size());
    if (memory_level()) save.memory_header = header_of(save);
    ++num_started;
    snapshot_at = seconds();
    const std::size_t buffer = std::size_t(begun->buffer);
    {
      const std::lock_guard lock(mutex);
      outcome.copied = outcome.sealed = false;
      outcome.copy = {};
    }
    if (for_storage == ForStorage::kYes) {
      storage_at = snapshot_at;
      last_started = facts.step;
    }
    if (save.direct) begin_writing(buffer);
    // A buffer may have to grow, and memory be short for it on this rank alone.
    const Status begun_well = guarded([&] {
      buffers[buffer].lay_out(save.plan, rank);
      buffers[buffer].copy(MutatedIn::kForward);
      return Status{};
    });
    if (replicator) replicator->begin(begun->buffer);
    const double forward_ms = ms_since(begin);
    copier.post([this, buffer, forward_ms, begun_well] { copy(buffer, forward_ms, begun_well); });
    if (!config.async_save) wait_until(&Outcome::written);
    return ms_since(begin);
  }

  /// Copier thread: the rest of the snapshot, if what came before went well.
  void copy(std::size_t buffer, double forward_ms, Status status) {
    const Generation& save = *generations[buffer];
    const auto begin = Clock::now();
    std::int64_t num_bytes = 0;
    pass(SavePhase::kSnapshot, save.facts.step);
    if (status.ok()) {
      ProfileSpan timed = span(ProfileThread::kCopier, "snapshot", save.facts.step);
      status = guarded([&] {
        num_bytes = std::int64_t(buffers[buffer].copy(MutatedIn::kUpdate));
        return Status{};
      });
      timed.moved(num_bytes);
    }
    const double copy_ms = ms_since(begin);
    {
      const std::lock_guard lock(mutex);
      outcome.copied = true;
      outcome.snapshot_ms = forward_ms + copy_ms;
      outcome.copied_bytes = std::int64_t(save.plan.rank_bytes[std::size_t(rank.value)]);
      if (copy_ms > 0) outcome.bytes_per_ms = double(num_bytes) / copy_ms;
      changed.notify_all();
    }
    if (status.ok()) {
      const ProfileSpan timed = span(ProfileThread::kCopier, "seal", save.facts.step);
      status = guarded([&] { return buffers[buffer].seal(save.memory_header); });
    }
    // Once it is known as sealed, a snapshot for memory alone may end, and its generation with it.
    const bool direct = save.direct;
    {
      // Before the writer starts: whoever hears that all is written hears that all is copied.
      const std::lock_guard lock(mutex);
      outcome.sealed = true;
      outcome.sealed_at = Clock::now();
      outcome.copy = status;
    }
    if (direct) writer.post([this, buffer, status] { write(buffer, status); });
  }

  /// All ranks have finished the snapshot under way.
  void end_snapshot(bool whole) {
    const auto buffer = std::size_t(*cycle.filling());
    Generation& save = *generations[buffer];
    Status mine;
    {
      const std::lock_guard lock(mutex);
      mine = outcome.copy;
      if (mine.ok() && replicator) mine = replicator->status();
      save.record.snapshot_ms = outcome.snapshot_ms;
      save.record.num_bytes = outcome.copied_bytes;
    }
    if (whole && save.for_storage == ForStorage::kYes && !save.direct) {
      if (const auto older = cycle.waiting())
        replaced(*generations[std::size_t(*older)], save.facts.step);
    }
    const bool to_storage = save.for_storage == ForStorage::kYes && (whole || save.direct);
    cycle.end_snapshot(whole ? SnapshotEnd::kWhole : SnapshotEnd::kFailed,
                       to_storage ? ForStorage::kYes : ForStorage::kNo);
    if (save.direct) static_cast<void>(cycle.begin_persist());
    if (whole) memory.note(save.units, save.facts.step, save.facts);
    if (to_storage) return;
    save.record.committed = whole;
    if (!whole) report_failure(save.record, mine, "snapshot");
    records.push_back(save.record);
  }

  void replaced(Generation& older, Step by) {
    older.record.failure = fmt::format(
        "replaced by the snapshot of step {}: storage was still busy with an earlier one", by);
    records.push_back(older.record);
  }

  /// Main thread: offers a sealed snapshot to other nodes, and moves what is under way on.
  void replicate() {
    if (!replicator) return;
    bool sealed = false;
    Status copied;
    Clock::time_point sealed_at;
    {
      const std::lock_guard lock(mutex);
      sealed = outcome.sealed;
      copied = outcome.copy;
      sealed_at = outcome.sealed_at;
    }
    if (cycle.filling() && sealed && replicator->expects_offer()) {
      replicator->offer(copied.ok() ? buffers[std::size_t(*cycle.filling())].segment() : nullptr);
    } else {
      replicator->progress();
    }
    if (!cycle.filling() || !sealed || !replicator->done()) return;
    double& replicate_ms = generations[std::size_t(*cycle.filling())]->record.replicate_ms;
    if (replicate_ms == 0) replicate_ms = ms_since(sealed_at);
  }

  // ---- checkpoints in storage

  void begin_writing(std::size_t buffer) {
    writing = buffer;
    ++num_persists;
    const std::lock_guard lock(mutex);
    outcome.written = false;
    outcome.write = {};
  }

  /// Writer thread: the files. `copied`: how the snapshot went on this rank.
  void write(std::size_t buffer, const Status& copied) {
    const Generation& save = *generations[buffer];
    const auto begin = Clock::now();
    std::int64_t num_bytes = 0;
    Status status = copied;
    pass(SavePhase::kPersist, save.facts.step);
    if (status.ok()) {
      ProfileSpan timed = span(ProfileThread::kWriter, "persist", save.facts.step);
      status = guarded([&] {
        const Result<std::int64_t> written =
            write_part(fs, root, catalog, save.persist, buffers[buffer], save.record.version, rank);
        if (written.ok()) num_bytes = written.value();
        return written.status();
      });
      timed.moved(num_bytes);
    }
    pass(SavePhase::kVote, save.facts.step);
    const std::lock_guard lock(mutex);
    outcome.written = true;
    outcome.write = status;
    outcome.written_bytes = num_bytes;
    outcome.persist_ms = ms_since(begin);
    changed.notify_all();
  }

  /// All ranks have finished their parts, well or badly.
  void end_writing(bool intact) {
    const std::size_t buffer = *writing;
    closing.emplace(Closing{
        std::move(*generations[buffer]), num_persists, cycle[int(buffer)].generation, intact, {}});
    {
      const std::lock_guard lock(mutex);
      closing->write = outcome.write;
      closing->save.record.num_bytes = outcome.written_bytes;
      closing->save.record.persist_ms = outcome.persist_ms;
      outcome.closed = false;
      outcome.close = {};
    }
    generations[buffer].reset();
    writing.reset();
    cycle.end_persist();
    if (rank.value != 0) return;
    keeper.post([this, header = manifest_of(closing->save)] { close(header); });
  }

  /// Rank 0's keeper thread: commits the checkpoint, or removes what there is of it.
  void close(Manifest header) {
    const Generation& save = closing->save;
    const auto begin = Clock::now();
    const ProfileSpan timed = span(ProfileThread::kKeeper, "commit", save.facts.step);
    Status status;
    if (closing->intact) {
      status = guarded([&] {
        Result<Manifest> manifest =
            commit_checkpoint(fs, root, catalog, save.persist, std::move(header), copies, [&] {
              pass(SavePhase::kCommit, save.facts.step);
              return permitted();
            });
        if (manifest.ok()) copies = std::move(manifest).value().copies;
        return manifest.status();
      });
      pass(SavePhase::kCommitted, save.facts.step);
    }
    if (!closing->intact || !status.ok()) {
      // What cannot be removed now is swept after a later recovery; the failure is reported anyway.
      const std::string partial = partial_directory_name(save.facts.step);
      static_cast<void>(guarded([&] { return fs.remove_all(root + "/" + partial); }));
    }
    const std::lock_guard lock(mutex);
    outcome.closed = true;
    outcome.close = status;
    outcome.commit_ms = ms_since(begin);
  }

  /// The manifest without units, copies and files.
  [[nodiscard]] Manifest header_of(const Generation& save) const {
    Manifest manifest;
    manifest.run_id = identity.run_id;
    manifest.version = save.record.version;
    manifest.lineage = identity.lineage;
    manifest.world_size = catalog.world_size;
    manifest.model_fingerprint = fingerprint;
    manifest.consumed_samples = save.facts.consumed_samples;
    manifest.full = save.record.full;
    manifest.first_budget = storage.saved.first_budget;
    manifest.budget = budget;
    manifest.build = build_info().version + " " + build_info().git_id;
    manifest.extra_json = save.facts.extra_json;
    return manifest;
  }

  [[nodiscard]] Manifest manifest_of(const Generation& save) const {
    Manifest manifest = header_of(save);
    manifest.units = catalog.units;
    TrackedHistory after = storage;
    after.note(save.persisted, save.facts.step, save.facts);
    manifest.ages = std::move(after.saved.age);
    return manifest;
  }

  [[nodiscard]] Status permitted() const {
    return identity.lock ? identity.lock->check() : Status{};
  }

  /// Keeper thread.
  void sweep(Step committed) {
    pass(SavePhase::kRetention, committed);
    const ProfileSpan timed = span(ProfileThread::kKeeper, "sweep", committed);
    const Status status = guarded([&] { return retention.sweep(); });
    if (!status.ok()) {
      PECAN_LOG(kWarn,
                "[checkpoint] old checkpoints could not be swept, which the next sweep repeats: {}",
                status.message);
    }
  }

  /// The checkpoint being closed is committed or dropped on all ranks.
  void finish(bool committed) {
    const Closing closed = *std::exchange(closing, std::nullopt);
    SaveRecord record = closed.save.record;
    record.committed = committed;
    Status mine;
    {
      const std::lock_guard lock(mutex);
      record.commit_ms = outcome.commit_ms;
      mine = closed.write.ok() ? outcome.close : closed.write;
    }
    if (committed) {
      cycle.committed(closed.generation);
      storage.note(closed.save.persisted, closed.save.facts.step, closed.save.facts);
      last_committed = record.version.step;
      last_seen = closed.number;
      sweep_due = true;
      if (record.full && !has_full) {
        has_full = true;
        use_all_buffers();
      }
    } else {
      report_failure(record, mine, "checkpoint");
    }
    records.push_back(std::move(record));
  }

  void report_failure(SaveRecord& record, const Status& mine, std::string_view what) {
    record.failure = mine.ok() ? "another rank could not write its part; its log says why"
                               : fmt::format("rank {}: {}", rank, mine.message);
    if (mine.ok() && rank.value != 0) return;
    PECAN_LOG(kWarn,
              "[checkpoint] the {} of step {} is dropped and training goes on; {}",
              what,
              record.version.step,
              record.failure);
  }

  void skip(Step step, ForStorage for_storage) {
    SaveRecord record;
    record.version = {identity.incarnation, step};
    record.level = for_storage == ForStorage::kYes ? SaveLevel::kStorage : SaveLevel::kMemory;
    const Step busy_with = writing   ? generations[*writing]->facts.step
                           : closing ? closing->save.facts.step
                                     : step;
    record.failure =
        storage_busy()
            ? fmt::format("skipped: the checkpoint of step {} is still being written", busy_with)
            : "skipped: the snapshot before it is still being copied";
    if (!skip_reported && rank.value == 0) {
      const auto& interval =
          storage_busy() ? config.save_interval : config.non_persistent_save_interval;
      PECAN_LOG(
          kWarn,
          "[checkpoint] the save of step {} is {}; checkpoint.{}={} is shorter than one takes "
          "(reported once)",
          step,
          record.failure,
          storage_busy() ? "save_interval" : "non_persistent_save_interval",
          config::to_string(interval));
    }
    skip_reported = true;
    records.push_back(std::move(record));
  }

  // ---- time and votes

  /// Whether something is due at `step`, `since_ms` after it was done last.
  static bool is_due(const config::Interval& interval, Step step, std::int64_t since_ms) {
    if (interval.steps > 0) return step.value % interval.steps == 0;
    return interval.seconds > 0 && double(since_ms) >= interval.seconds * 1000;
  }

  /// Milliseconds since `then`; a clock that was set back starts anew.
  std::int64_t since(double& then) const {
    const double now = seconds();
    then = std::min(then, now);
    return std::int64_t((now - then) * 1000);
  }

  double wait_until(bool Outcome::*done) {
    const auto begin = Clock::now();
    std::unique_lock lock(mutex);
    if (outcome.*done) return 0;
    changed.wait(lock, [&] { return outcome.*done; });
    return ms_since(begin);
  }

  FileSystem& fs;
  std::string root;
  config::CheckpointConfig config;
  const StateCatalog& catalog;
  Rank rank;
  RunIdentity identity;
  ExpertBudget budget;
  ExpertGrid grid;
  SelectionSettings settings;
  std::uint64_t fingerprint;
  std::int64_t non_expert_bytes = 0;  ///< of the rank that writes most of them

  // Equal on all ranks, because only votes and the step change them.
  TripleBuffer cycle;
  std::vector<std::optional<Generation>> generations;  ///< by buffer
  std::optional<std::size_t> writing;                  ///< buffer being written to storage
  std::optional<Closing> closing;                      ///< the checkpoint before that
  std::int64_t num_started = 0;                        ///< snapshots
  std::int64_t num_persists = 0;  ///< checkpoints that were begun to be written
  std::int64_t last_seen = 0;
  Step last_started{0};
  std::optional<Step> last_committed;
  bool has_full = false;
  bool sweep_due = false;
  bool owes_storage = false;  ///< a checkpoint was due while a snapshot was under way
  bool skip_reported = false;
  std::int64_t hidden_bytes = 0;
  std::int64_t since_memory = 0;
  std::int64_t since_storage = 0;
  TrackedHistory memory;
  TrackedHistory storage;  ///< committed

  std::vector<SaveRecord> records;
  double forward_backward_ms = 0;
  std::function<double()> seconds;
  device::Device state_device;
  Profiler* profiler;
  std::function<void(SavePhase, Step)> on_phase;
  mutable double snapshot_at = 0;  ///< by this rank's clock
  mutable double storage_at = 0;
  std::vector<Snapshot> buffers;
  std::optional<Replicator> replicator;
  std::vector<UnitCopy> copies;  ///< of the last committed manifest; the keeper's
  Retention retention;           ///< the keeper's

  mutable std::mutex mutex;
  std::condition_variable changed;
  Outcome outcome;

  Worker keeper;  ///< commits and sweeps (rank 0), so that a sweep never delays a snapshot
  Worker writer{kWriterNiceness};
  Worker copier;  ///< last: it uses all the others
};

std::string_view name_of(SavePhase phase) {
  switch (phase) {
    case SavePhase::kSnapshot:
      return "snapshot";
    case SavePhase::kPersist:
      return "persist";
    case SavePhase::kVote:
      return "vote";
    case SavePhase::kCommit:
      return "commit";
    case SavePhase::kCommitted:
      return "committed";
    case SavePhase::kRetention:
      return "retention";
  }
  return "unknown";
}

Checkpointer::Checkpointer(FileSystem& fs,
                           std::string run_directory,
                           const config::CheckpointConfig& config,
                           const StateCatalog& catalog,
                           StateBinding& binding,
                           Rank rank,
                           CheckpointerStart start)
    : impl_(std::make_unique<Impl>(
          fs, std::move(run_directory), config, catalog, binding, rank, std::move(start))) {}

Checkpointer::~Checkpointer() = default;

Vote Checkpointer::vote() {
  Impl& me = *impl_;
  me.replicate();
  const bool replicating = me.replicator && !me.replicator->done();
  const Status replicated = me.replicator ? me.replicator->status() : Status{};
  Vote vote{};
  const std::lock_guard lock(me.mutex);
  const bool copying = me.cycle.filling() && (!me.outcome.sealed || replicating);
  vote[kCopied] = copying ? me.num_started - 1 : me.num_started;
  vote[kWhole] = me.outcome.copy.ok() && replicated.ok() ? 1 : 0;
  vote[kWritten] = me.writing && !me.outcome.written ? me.num_persists - 1 : me.num_persists;
  vote[kIntact] = me.outcome.write.ok() ? 1 : 0;
  vote[kClosed] = kNoOpinion;
  vote[kCommitted] = kNoOpinion;
  vote[kSinceMemory] = kNoOpinion;
  vote[kSinceStorage] = kNoOpinion;
  if (me.rank.value == 0) {
    if (me.closing) vote[kClosed] = me.closing->number - (me.outcome.closed ? 0 : 1);
    vote[kCommitted] = me.outcome.close.ok() ? 1 : 0;
    vote[kSinceMemory] = me.since(me.snapshot_at);
    vote[kSinceStorage] = me.since(me.storage_at);
  }
  vote[kSeen] = me.last_seen;
  vote[kUnfenced] = me.identity.lock && me.identity.lock->fenced() ? 0 : 1;
  vote[kStarted] = me.num_started;
  vote[kMinusStarted] = -me.num_started;
  vote[kHiddenBytes] = std::int64_t(me.outcome.bytes_per_ms * me.forward_backward_ms);
  return vote;
}

void Checkpointer::observe(const Vote& reduced) {
  Impl& me = *impl_;
  PECAN_VALIDATE(reduced[kStarted] == me.num_started && -reduced[kMinusStarted] == me.num_started,
                 InternalError,
                 "ranks have started {} to {} saves, this one {}",
                 reduced[kStarted],
                 -reduced[kMinusStarted],
                 me.num_started);
  PECAN_VALIDATE(reduced[kUnfenced] == 1,
                 CheckpointError,
                 "a newer incarnation has taken over the run; this one ({}) stops, so that two do "
                 "not write the same checkpoints",
                 me.identity.incarnation);
  me.hidden_bytes = reduced[kHiddenBytes];
  me.since_memory = reduced[kSinceMemory];
  me.since_storage = reduced[kSinceStorage];
  // Every rank has learnt of the newest commit by an all-reduce that is over: a crash from here on
  // finds all of them agreed on it, so what it supersedes may go.
  if (me.sweep_due && reduced[kSeen] >= me.last_seen) {
    me.sweep_due = false;
    if (me.rank.value == 0)
      me.keeper.post([&me, committed = *me.last_committed] { me.sweep(committed); });
  }
  if (me.cycle.filling() && reduced[kCopied] == me.num_started) {
    me.end_snapshot(reduced[kWhole] == 1);
  }
  if (me.closing && reduced[kClosed] == me.closing->number) {
    me.finish(me.closing->intact && reduced[kCommitted] == 1);
  }
  // Files may be written before copies have reached other nodes.
  const bool snapshot_ended = !me.writing || me.cycle.filling() != int(*me.writing);
  if (me.writing && snapshot_ended && !me.closing && reduced[kWritten] == me.num_persists) {
    me.end_writing(reduced[kIntact] == 1);
  }
  if (!me.writing) {
    if (const std::optional<int> next = me.cycle.begin_persist()) {
      const auto buffer = std::size_t(*next);
      me.begin_writing(buffer);
      me.writer.post([&me, buffer] { me.write(buffer, {}); });
    }
  }
}

double Checkpointer::before_update() {
  impl_->replicate();
  if (!impl_->cycle.filling()) return 0;
  return impl_->wait_until(&Impl::Outcome::copied);
}

double Checkpointer::after_update(const StepFacts& facts) {
  Impl& me = *impl_;
  me.forward_backward_ms = facts.forward_backward_ms;
  me.replicate();
  const bool storage =
      me.owes_storage || Impl::is_due(me.config.save_interval, facts.step, me.since_storage);
  const bool memory =
      me.memory_level() &&
      Impl::is_due(me.config.non_persistent_save_interval, facts.step, me.since_memory);
  if (!storage && !memory) return 0;
  // Snapshots in memory need a full checkpoint to stand on, so that comes first whichever is due.
  const ForStorage for_storage = storage || !me.has_full ? ForStorage::kYes : ForStorage::kNo;
  const std::optional<double> stall = me.start(facts, for_storage);
  if (stall) {
    if (for_storage == ForStorage::kYes) me.owes_storage = false;
  } else if (for_storage == ForStorage::kYes && !me.storage_busy()) {
    // Snapshots for memory alone, which copies to other nodes may make long, must not keep storage
    // from its turn.
    me.owes_storage = true;
  } else {
    me.skip(facts.step, for_storage);
  }
  return stall.value_or(0);
}

double Checkpointer::save_now(const StepFacts& facts) {
  Impl& me = *impl_;
  if (!me.cycle.idle() || me.closing || me.last_committed == facts.step) return 0;
  return me.start(facts, ForStorage::kYes).value_or(0);
}

bool Checkpointer::busy() const {
  return !impl_->cycle.idle() || impl_->closing || impl_->sweep_due || !impl_->keeper.idle();
}

Step Checkpointer::last_started() const {
  return impl_->last_started;
}

std::vector<SaveRecord> Checkpointer::take_records() {
  return std::exchange(impl_->records, {});
}

void Checkpointer::release_memory() {
  for (Snapshot& buffer : impl_->buffers) buffer.remove();
  if (impl_->replicator) impl_->replicator->remove();
}

}  // namespace pecan::checkpoint
