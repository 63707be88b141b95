#pragma once
/// The checkpoint pipeline as the step loop sees it: barriers (A) and (B), votes, drain.

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/file_system.hpp>
#include <pecan/core/profile.hpp>
#include <pecan/core/state_catalog.hpp>

#include <pecan/config/config.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/checkpoint/manifest.hpp>

namespace pecan::checkpoint {

class RunLock;

/// What one rank contributes to the step's small all-reduce (minimum over ranks) and reads back of
/// it.
inline constexpr int kVoteSize = 13;
using Vote = std::array<std::int64_t, kVoteSize>;

/// Identity of this start of the run, agreed on by all ranks.
struct RunIdentity {
  std::string run_id;
  Incarnation incarnation;
  std::vector<LineageEntry> lineage;
  /// Rank 0's hold on the run directory (null elsewhere), released with the last copy: shared by
  /// what recovery returned and the checkpointer, which fences by it.
  std::shared_ptr<RunLock> lock;
};

/// Where a save goes.
enum class SaveLevel : std::uint8_t { kMemory, kStorage };

/// A finished (or failed) save, for metrics and the log.
struct SaveRecord {
  Version version;
  SaveLevel level = SaveLevel::kStorage;
  bool committed = false;  ///< storage: manifest durable; memory: whole on all ranks
  bool full = false;
  std::string failure;         ///< why not committed
  std::int64_t num_bytes = 0;  ///< written by this rank; memory: copied by it
  std::int64_t num_expert_units = 0;
  double snapshot_ms = 0;
  double replicate_ms = 0;  ///< from this rank's seal until its copies, made and kept, are whole
  double persist_ms = 0;
  double commit_ms = 0;
};

/// Values that belong to the step just done, stored in the manifest or used to decide.
struct StepFacts {
  Step step;
  std::int64_t consumed_samples = 0;
  std::string extra_json;
  /// Token slots of the job so far, by (layer, expert); equal on all ranks. Empty: not counted.
  std::vector<std::int64_t> routed = {};
  double forward_backward_ms = 0;  ///< of this rank, what a snapshot may hide under; 0: unknown
};

/// Moments of a save that a failure may strike in.
enum class SavePhase : std::uint8_t {
  kSnapshot,   ///< parameters and moments are about to be copied
  kPersist,    ///< files are about to be written
  kVote,       ///< this rank's part is durable, and the others do not know yet
  kCommit,     ///< rank 0: the manifest is durable, the directory not yet renamed
  kCommitted,  ///< rank 0: renamed, and the others do not know yet
  kRetention   ///< rank 0: what the checkpoint supersedes is about to be swept
};
[[nodiscard]] std::string_view name_of(SavePhase phase);

/// Host memory for snapshots of one rank, in bytes.
struct SnapshotMemory {
  int num_buffers = 1;
  std::size_t first = 0;   ///< of the buffer that takes full checkpoints
  std::size_t others = 0;  ///< of each of the others
  std::size_t max_blocks = 0;
  [[nodiscard]] std::size_t total() const { return first + std::size_t(num_buffers - 1) * others; }
};

/// Bytes that the buffers of one rank take in checkpoint.memory_dir; 0 without snapshots there.
[[nodiscard]] std::uint64_t memory_dir_bytes(const SnapshotMemory& memory);

/// What each rank reserves: one buffer, or with snapshots in memory three. The first is for a full
/// checkpoint, unless the run has one already. For policies that follow tokens, the largest of the
/// selections that fall on one expert-parallel rank alone. `budget`: K in force. Pure.
[[nodiscard]] std::vector<SnapshotMemory> plan_snapshot_memory(
    const StateCatalog& catalog,
    const config::CheckpointConfig& config,
    const ExpertBudget& budget,
    bool has_full);

/// Copies of snapshots in the memory of other nodes.
struct Replication {
  int factor = 1;  ///< nodes that hold each snapshot
  Context* ctx = nullptr;
  comm::Group* world = nullptr;  ///< split when the checkpointer is made; both outlive it
};

/// What a Checkpointer continues from. The clock is for tests.
struct CheckpointerStart {
  RunIdentity identity = {};
  /// The manifest that recovery continued from, if any: its copies are the history of the
  /// selection, and its checkpoint counts as committed.
  std::optional<Manifest> recovered = {};
  /// By buffer, the snapshot in memory that an earlier start has left whole on all ranks and that
  /// is part of the run's past; it is given up only for newer ones.
  std::vector<std::optional<Version>> kept = {};
  ExpertBudget budget = {};                    ///< K in force; K = 0: as configured
  std::vector<SnapshotMemory> memory = {};     ///< of each rank, by plan_snapshot_memory
  std::vector<std::string> node_of_rank = {};  ///< names of the ranks' nodes
  device::Device state_device = {};       ///< that copies to the buffers, which are locked for it
  bool keep_memory = false;               ///< leave snapshots in memory of earlier starts alone
  Replication replication = {};           ///< with factor 1 nothing is sent
  std::vector<std::int64_t> routed = {};  ///< StepFacts::routed so far
  std::function<double()> seconds = {};   ///< monotonic; empty: the steady clock
  Profiler* profiler = nullptr;           ///< of the background threads; outlives it; may be none
  /// Called in each phase with the save's step, from any thread; for injected faults.
  std::function<void(SavePhase, Step)> on_phase = {};
};

/// Two pipelines over the buffers of TripleBuffer: snapshots (device to host, by the copier thread)
/// and checkpoints in storage (host to files, by the writer thread). Collective decisions come from
/// votes only, so that all ranks start, commit and drop the same saves; all methods on the main
/// thread, in the same order on every rank. A save that is due while no buffer is free is skipped.
/// A failed save is reported and dropped, and the next one is tried as if it had never been. Every
/// checkpoint is full until one full one is committed in the lineage; memory-only snapshots begin
/// after it, so the first save that is due on either level is that one.
class Checkpointer {
 public:
  /// `fs`, `catalog`, `binding` outlive the object. Reserves the snapshot buffers. Throws
  /// ConfigError for an unknown selection or role group, CheckpointError where memory is short. Not
  /// collective.
  Checkpointer(FileSystem& fs,
               std::string run_directory,
               const config::CheckpointConfig& config,
               const StateCatalog& catalog,
               StateBinding& binding,
               Rank rank,
               CheckpointerStart start);
  ~Checkpointer();
  Checkpointer(const Checkpointer&) = delete;
  Checkpointer& operator=(const Checkpointer&) = delete;

  /// This rank's vote, taken before the step's small all-reduce. Moves copies for other nodes on.
  [[nodiscard]] Vote vote();
  /// The minimum over all ranks of that vote: acts on it (commit on rank 0, retention, failed
  /// saves). CheckpointError if a newer incarnation has taken over the run.
  void observe(const Vote& reduced);
  /// (A): waits for copies that still read parameters or moments; returns the milliseconds of
  /// stall.
  double before_update();
  /// (B): starts a save if the configuration and the last observed vote say so, copying at once
  /// what forward mutates; without async_save waits for the files. Returns the milliseconds of
  /// stall.
  double after_update(const StepFacts& facts);
  /// Starts a save to storage now, whatever the interval, unless one is under way or this step is
  /// committed (end of the run, exit on request).
  double save_now(const StepFacts& facts);
  /// Whether a save still needs votes, or rank 0's retention is at work (so ranks may differ); a
  /// bounded drain exchanges votes while any rank says yes.
  [[nodiscard]] bool busy() const;
  /// Step of the last save to storage started, else the step recovered from, else 0. Equal on all
  /// ranks.
  [[nodiscard]] Step last_started() const;
  /// Saves that ended since the last call.
  [[nodiscard]] std::vector<SaveRecord> take_records();
  /// Gives up the snapshots in memory: the run is over and in storage.
  void release_memory();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A checkpoint of everything.
struct FullSave {
  Status status;  ///< why it is not committed; equal on all ranks
  std::optional<Manifest> manifest;
  SaveRecord record;
};

/// Writes all state as of `facts` to storage and waits until it is committed; snapshots in memory
/// stay as they are. For the end of a run or a start, when no Checkpointer has a save under way;
/// takes host memory for it meanwhile. Where it is not committed, what was before stays valid.
/// Collective over `world`.
FullSave save_full(FileSystem& fs,
                   const std::string& run_directory,
                   const config::CheckpointConfig& config,
                   const StateCatalog& catalog,
                   StateBinding& binding,
                   const RunIdentity& identity,
                   const std::vector<std::string>& node_of_rank,
                   const ExpertBudget& budget,
                   const StepFacts& facts,
                   Context& ctx,
                   comm::Group& world);

}  // namespace pecan::checkpoint
