#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <map>
#include <mutex>
#include <utility>

#include <pecan/core/build_info.hpp>
#include <pecan/core/log.hpp>

#include <pecan/checkpoint/checkpointer.hpp>
#include <pecan/checkpoint/plan.hpp>
#include <pecan/checkpoint/select.hpp>

#include "checkpoint/lineage.hpp"
#include "checkpoint/persist.hpp"
#include "checkpoint/retention.hpp"
#include "checkpoint/snapshot.hpp"
#include "checkpoint/worker.hpp"

namespace pecan::checkpoint {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Fields of a Vote. Saves are numbered from 1 within this start of the run.
enum VoteField : std::size_t {
  kWritten,    ///< last save whose part this rank has finished, well or badly
  kIntact,     ///< 0: this rank's part of the current save failed
  kClosed,     ///< last save that rank 0 committed or dropped; others: no opinion
  kCommitted,  ///< 0: that save was dropped; others: no opinion
  kSeen,       ///< last commit that this rank has learnt of
  kUnfenced,   ///< 0: a newer incarnation holds the run
  kStarted,    ///< saves started; this and the next must agree on all ranks
  kMinusStarted,
};
static_assert(kMinusStarted + 1 == kVoteSize);
constexpr std::int64_t kNoOpinion = std::numeric_limits<std::int64_t>::max();

/// Runs a background job's body, whose exceptions are failures like any other.
template <typename Body>
Status guarded(Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    return Status::failure(StatusCode::kIo, error.what());
  }
}

}  // namespace

struct Checkpointer::Impl {
  enum class Phase : std::uint8_t {
    kIdle,
    kWriting,  ///< until all ranks have finished their parts
    kClosing,  ///< until rank 0 has committed or dropped it
  };

  /// A save under way; set by the main thread before its jobs are posted, constant while they run.
  struct Save {
    SaveRecord record;
    StepFacts facts;
    std::vector<UnitIndex> units;
    SavePlan plan;
  };

  /// What background jobs report of the current save; guarded by `mutex`.
  struct Outcome {
    bool copied = false;
    bool written = false;
    bool closed = false;
    Status write;
    Status close;
    SaveRecord measured;  ///< bytes and times only
  };

  Impl(FileSystem& file_system,
       std::string run_directory,
       const config::CheckpointConfig& configuration,
       const StateCatalog& state_catalog,
       StateBinding& binding,
       Rank this_rank,
       RunIdentity run_identity,
       std::optional<Manifest> recovered)
      : fs(file_system),
        root(std::move(run_directory) + "/checkpoints"),
        config(configuration),
        catalog(state_catalog),
        rank(this_rank),
        identity(std::move(run_identity)),
        grid(expert_grid(catalog)),
        policy(selection_policy(config.pec.selection)),
        always_saved(always_saved_groups(config.pec.always_saved)),
        fingerprint(catalog.model_fingerprint()),
        snapshot(catalog, binding),
        retention(
            fs, root, {config.keep_latest_k, config.save_retain_interval, config.fallback_copies}) {
    const int wanted = config.pec.experts_per_checkpoint;
    budget = wanted > 0 ? std::min(wanted, grid.num_experts) : grid.num_experts;
    history.first_budget = budget;
    history.newest.resize(std::size_t(grid.num_units()), Step{-1});
    if (recovered) {
      has_full = true;
      last_started = recovered->version.step;
      last_committed = last_started;
      history.first_budget = recovered->first_budget;
      std::ranges::fill(history.newest, recovered->version.step);
      for (const UnitCopy& copy : recovered->copies) {
        if (copy.unit.value == 0) continue;
        Step& newest = history.newest[grid.index(copy.unit)];
        newest = std::min(newest, copy.version.step);
      }
      copies = std::move(recovered->copies);
    }
    reserve_snapshot();
  }

  /// Allocates the buffer once, for a full checkpoint and a whole rotation of partial ones.
  void reserve_snapshot() {
    std::vector<UnitIndex> all;
    for (int unit = 1; unit <= grid.num_units(); ++unit) all.push_back(UnitIndex{unit});
    std::size_t num_bytes = snapshot.size_for(plan_save(catalog, {all, always_saved, {}}), rank);
    SelectionHistory rotation = history;
    for (int i = 0; i * budget < grid.num_experts; ++i) {
      const Step step{std::numeric_limits<std::int64_t>::max() / 2 + i};
      const auto units = policy(grid, rotation, budget, step);
      for (const UnitIndex unit : units) rotation.newest[grid.index(unit)] = step;
      const SavePlan plan = plan_save(catalog, {units, always_saved, {}});
      num_bytes = std::max(num_bytes, snapshot.size_for(plan, rank));
    }
    snapshot.reserve(num_bytes);
  }

  [[nodiscard]] SaveRequest request_for(Step step) const {
    if (has_full && budget < grid.num_experts) {
      return {policy(grid, history, budget, step), always_saved, {}};
    }
    SaveRequest full{{}, always_saved, {}};
    for (int unit = 1; unit <= grid.num_units(); ++unit) full.units.push_back(UnitIndex{unit});
    if (budget < grid.num_experts) {
      full.slots = rotation_slots(grid, policy, budget, history.first_budget, step);
    }
    return full;
  }

  double start(const StepFacts& facts) {
    const auto begin = Clock::now();
    SaveRequest request = request_for(facts.step);
    save.emplace();
    save->facts = facts;
    save->plan = plan_save(catalog, request);
    save->units = std::move(request.units);
    save->record.version = {identity.incarnation, facts.step};
    save->record.full = int(save->units.size()) == grid.num_units();
    save->record.num_expert_units = std::int64_t(save->units.size());
    ++num_started;
    last_started = facts.step;
    phase = Phase::kWriting;
    {
      const std::lock_guard lock(mutex);
      outcome = {};
    }
    snapshot.lay_out(save->plan, rank);
    snapshot.copy(MutatedIn::kForward);
    forward_copy_ms = ms_since(begin);
    writer.post([this] { write(); });
    if (!config.async_save) wait_until(&Outcome::written);
    return ms_since(begin);
  }

  /// Writer thread: the rest of the snapshot, then the files.
  void write() {
    auto begin = Clock::now();
    Status status = guarded([&] {
      snapshot.copy(MutatedIn::kUpdate);
      return Status{};
    });
    {
      const std::lock_guard lock(mutex);
      outcome.copied = true;
      outcome.measured.snapshot_ms = forward_copy_ms + ms_since(begin);
      changed.notify_all();
    }
    begin = Clock::now();
    std::int64_t num_bytes = 0;
    if (status.ok()) {
      status = guarded([&] {
        const Result<std::int64_t> written =
            write_part(fs, root, catalog, save->plan, snapshot, save->record.version, rank);
        if (written.ok()) num_bytes = written.value();
        return written.status();
      });
    }
    const std::lock_guard lock(mutex);
    outcome.written = true;
    outcome.write = status;
    outcome.measured.num_bytes = num_bytes;
    outcome.measured.persist_ms = ms_since(begin);
    changed.notify_all();
  }

  /// Rank 0's keeper thread: commits the save, or removes what there is of it.
  void close() {
    const auto begin = Clock::now();
    Status status;
    if (intact) {
      status = guarded([&] {
        Result<Manifest> manifest = commit_checkpoint(
            fs, root, catalog, save->plan, manifest_header(), copies, [&] { return permitted(); });
        if (manifest.ok()) copies = std::move(manifest).value().copies;
        return manifest.status();
      });
    }
    if (!intact || !status.ok()) {
      // What cannot be removed now is swept after a later recovery; the failure is reported anyway.
      const std::string partial = partial_directory_name(save->facts.step);
      static_cast<void>(guarded([&] { return fs.remove_all(root + "/" + partial); }));
    }
    const std::lock_guard lock(mutex);
    outcome.closed = true;
    outcome.close = status;
    outcome.measured.commit_ms = ms_since(begin);
  }

  [[nodiscard]] Manifest manifest_header() const {
    Manifest manifest;
    manifest.run_id = identity.run_id;
    manifest.version = save->record.version;
    manifest.lineage = identity.lineage;
    manifest.world_size = catalog.world_size;
    manifest.model_fingerprint = fingerprint;
    manifest.consumed_samples = save->facts.consumed_samples;
    manifest.full = save->record.full;
    manifest.first_budget = history.first_budget;
    manifest.build = build_info().version + " " + build_info().git_id;
    manifest.units = catalog.units;
    manifest.extra_json = save->facts.extra_json;
    return manifest;
  }

  [[nodiscard]] Status permitted() const {
    return identity.lock ? identity.lock->check() : Status{};
  }

  /// Keeper thread.
  void sweep() {
    const Status status = guarded([&] { return retention.sweep(); });
    if (!status.ok()) {
      PECAN_LOG(kWarn,
                "[checkpoint] old checkpoints could not be swept, which the next sweep repeats: {}",
                status.message);
    }
  }

  void finish(bool committed) {
    SaveRecord record = save->record;
    record.committed = committed;
    Status mine;
    {
      const std::lock_guard lock(mutex);
      record.num_bytes = outcome.measured.num_bytes;
      record.snapshot_ms = outcome.measured.snapshot_ms;
      record.persist_ms = outcome.measured.persist_ms;
      record.commit_ms = outcome.measured.commit_ms;
      mine = outcome.write.ok() ? outcome.close : outcome.write;
    }
    if (committed) {
      has_full = has_full || record.full;
      for (const UnitIndex unit : save->units) {
        history.newest[grid.index(unit)] = record.version.step;
      }
      last_committed = record.version.step;
      last_seen = num_started;
      sweep_due = true;
    } else {
      record.failure = mine.ok() ? "another rank could not write its part; its log says why"
                                 : fmt::format("rank {}: {}", rank, mine.message);
      if (!mine.ok() || rank.value == 0) {
        PECAN_LOG(kWarn,
                  "[checkpoint] the checkpoint of step {} is dropped and training goes on; {}",
                  record.version.step,
                  record.failure);
      }
    }
    records.push_back(std::move(record));
    save.reset();
    phase = Phase::kIdle;
  }

  void skip(Step step) {
    SaveRecord record;
    record.version = {identity.incarnation, step};
    record.failure =
        fmt::format("skipped: the checkpoint of step {} is still being written", save->facts.step);
    if (!skip_reported && rank.value == 0) {
      PECAN_LOG(kWarn,
                "[checkpoint] the checkpoint of step {} is {}; checkpoint.save_interval={} is "
                "shorter than a save takes (reported once)",
                step,
                record.failure,
                config::to_string(config.save_interval));
    }
    skip_reported = true;
    records.push_back(std::move(record));
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
  ExpertGrid grid;
  SelectFunction policy;
  int budget = 0;
  std::vector<RoleGroup> always_saved;
  std::uint64_t fingerprint;

  // Equal on all ranks, because only votes and the step change them.
  Phase phase = Phase::kIdle;
  std::int64_t num_started = 0;
  std::int64_t last_seen = 0;
  Step last_started{0};
  std::optional<Step> last_committed;
  bool has_full = false;
  bool sweep_due = false;
  bool skip_reported = false;
  bool intact = false;  ///< all parts of the save being closed were written
  SelectionHistory history;

  std::optional<Save> save;
  std::vector<SaveRecord> records;
  double forward_copy_ms = 0;
  Snapshot snapshot;             ///< main thread while laid out, then the writer
  std::vector<UnitCopy> copies;  ///< of the last committed manifest; the keeper's
  Retention retention;           ///< the keeper's

  mutable std::mutex mutex;
  std::condition_variable changed;
  Outcome outcome;

  Worker keeper;  ///< commits and sweeps (rank 0), so that a sweep never delays a snapshot
  Worker writer;  ///< last: it uses all the others
};

Checkpointer::Checkpointer(FileSystem& fs,
                           std::string run_directory,
                           const config::CheckpointConfig& config,
                           const StateCatalog& catalog,
                           StateBinding& binding,
                           Rank rank,
                           RunIdentity identity,
                           std::optional<Manifest> recovered)
    : impl_(std::make_unique<Impl>(fs,
                                   std::move(run_directory),
                                   config,
                                   catalog,
                                   binding,
                                   rank,
                                   std::move(identity),
                                   std::move(recovered))) {}

Checkpointer::~Checkpointer() = default;

Vote Checkpointer::vote() const {
  const Impl& me = *impl_;
  Vote vote{};
  const std::lock_guard lock(me.mutex);
  const bool writing = me.phase == Impl::Phase::kWriting;
  const bool closing = me.phase == Impl::Phase::kClosing;
  vote[kWritten] = writing && !me.outcome.written ? me.num_started - 1 : me.num_started;
  vote[kIntact] = me.outcome.write.ok() ? 1 : 0;
  vote[kClosed] = kNoOpinion;
  vote[kCommitted] = kNoOpinion;
  if (me.rank.value == 0) {
    const bool open = writing || (closing && !me.outcome.closed);
    vote[kClosed] = open ? me.num_started - 1 : me.num_started;
    vote[kCommitted] = me.outcome.close.ok() && me.outcome.write.ok() ? 1 : 0;
  }
  vote[kSeen] = me.last_seen;
  vote[kUnfenced] = me.identity.lock && me.identity.lock->fenced() ? 0 : 1;
  vote[kStarted] = me.num_started;
  vote[kMinusStarted] = -me.num_started;
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
  // Every rank has learnt of the newest commit by an all-reduce that is over: a crash from here on
  // finds all of them agreed on it, so what it supersedes may go.
  if (me.sweep_due && reduced[kSeen] >= me.last_seen) {
    me.sweep_due = false;
    if (me.rank.value == 0) me.keeper.post([&me] { me.sweep(); });
  }
  if (me.phase == Impl::Phase::kWriting && reduced[kWritten] == me.num_started) {
    me.phase = Impl::Phase::kClosing;
    me.intact = reduced[kIntact] == 1;
    if (me.rank.value == 0) me.keeper.post([&me] { me.close(); });
  } else if (me.phase == Impl::Phase::kClosing && reduced[kClosed] == me.num_started) {
    me.finish(me.intact && reduced[kCommitted] == 1);
  }
}

double Checkpointer::before_update() {
  if (impl_->phase != Impl::Phase::kWriting) return 0;
  return impl_->wait_until(&Impl::Outcome::copied);
}

double Checkpointer::after_update(const StepFacts& facts) {
  Impl& me = *impl_;
  const std::int64_t interval = me.config.save_interval.steps;
  if (interval <= 0 || facts.step.value % interval != 0) return 0;
  if (me.phase != Impl::Phase::kIdle) {
    me.skip(facts.step);
    return 0;
  }
  return me.start(facts);
}

double Checkpointer::save_now(const StepFacts& facts) {
  Impl& me = *impl_;
  if (me.phase != Impl::Phase::kIdle || me.last_committed == facts.step) return 0;
  return me.start(facts);
}

bool Checkpointer::busy() const {
  return impl_->phase != Impl::Phase::kIdle || impl_->sweep_due || !impl_->keeper.idle();
}

Step Checkpointer::last_started() const {
  return impl_->last_started;
}

std::vector<SaveRecord> Checkpointer::take_records() {
  return std::exchange(impl_->records, {});
}

}  // namespace pecan::checkpoint
