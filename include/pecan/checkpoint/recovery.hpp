#pragma once
/// Recovery: sources in storage and memory -> t* -> RestorePlan (pure) -> load and verify
/// (collective).

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>
#include <pecan/core/state_catalog.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/checkpoint/checkpointer.hpp>
#include <pecan/checkpoint/manifest.hpp>

namespace pecan::checkpoint {

/// Where a copy lies.
enum class Tier : std::uint8_t {
  kStorage,
  kMemory,
  kInitial  ///< nowhere: as a fresh run begins
};

/// A copy of (unit, group) that a good manifest of the lineage describes, or that the snapshots in
/// the memory of all nodes together hold whole.
struct Source {
  UnitIndex unit;
  RoleGroup group = RoleGroup::kWeight;
  Version version;
  std::string directory;  ///< of the checkpoint, relative to the run directory; empty in memory
  Tier tier = Tier::kStorage;
};

struct UnitRestore {
  UnitIndex unit;
  RoleGroup group = RoleGroup::kWeight;
  Version version;
  std::string directory;
  Tier tier = Tier::kStorage;
};

/// Equal on all ranks: what to load from where. Ordered by (unit, group).
struct RestorePlan {
  Version recovery;  ///< t*
  std::vector<UnitRestore> restores;
  [[nodiscard]] std::uint64_t hash() const;
};

/// Design rules of recovery, 4: the largest t with all non-expert groups at exactly t and every
/// other (unit, group) with a source <= t; each from its newest source <= t, from memory where
/// storage has the same version. Derived groups without a source are left out. `candidates` are the
/// versions of good manifests and of snapshots in memory. Pure. Returns nullopt if no t qualifies.
[[nodiscard]] std::optional<RestorePlan> plan_restore(const StateCatalog& catalog,
                                                      const std::vector<Source>& sources,
                                                      const std::vector<Version>& candidates);

struct RecoveryReport {
  bool fresh = true;  ///< nothing to recover: a new run
  RestorePlan plan;
  std::vector<std::string> damages;    ///< what was found bad and worked round, one sentence each
  std::vector<std::string> abandoned;  ///< directories renamed
  std::int64_t sent_bytes = 0;         ///< between nodes, all ranks together
  double scan_ms = 0;
  double load_ms = 0;
};

struct Recovered {
  RunIdentity identity;  ///< of this start
  RecoveryReport report;
  /// Run and step of t*, without units, copies, files and blocks; none in a new run.
  std::optional<Manifest> head;
  /// What storage counts on: the newest manifest up to t*, its copies those that were loaded or,
  /// for what came from memory, the newest ones in storage. None where storage has nothing.
  std::optional<Manifest> manifest;
  /// By buffer, the snapshot that all ranks still hold in memory.
  std::vector<std::optional<Version>> kept;
  /// Something was loaded from snapshots that this start cannot keep, as ranks have moved: secure()
  /// must come before buffers are made.
  bool must_secure = false;
  std::vector<std::string> node_of_rank;  ///< names of the ranks' nodes
};

enum class ResumeMode : std::uint8_t {
  kFreshOnly /*refuse a non-empty run directory*/,
  kFromFailure,
  kFromPath
};

/// Timing of the run's lock.
struct LockOptions {
  std::chrono::milliseconds heartbeat{1000};  ///< between two signs of life of the holder
  std::chrono::milliseconds takeover{2500};   ///< without one the holder counts as dead
};

struct RecoverOptions {
  LockOptions lock = {};
  std::string memory_dir = {};  ///< of snapshots in memory; empty: none are looked for
  std::string node = {};        ///< name of this rank's node; empty: the host's
  /// What is newer is no candidate for t* and becomes an abandoned branch.
  std::optional<Step> newest_step = {};
  /// Given: experts of which there is no copy anywhere begin anew, instead of an error. Makes all
  /// weights what a fresh run begins with.
  std::function<void()> reinitialise = {};
};

/// Opens the run directory: takes the run's lock (incarnation + heartbeat), checks that storage is
/// shared (a nonce), finds t*, loads every block this rank holds through `binding`, verifies
/// checksums (damaged copies are excluded and the plan made again), compares replicas' hashes,
/// renames abandoned branches. Collective over `world`. Throws CheckpointError: another model's
/// run, nothing recoverable though checkpoints exist, no write permission, storage not shared, a
/// live holder. `path` (kFromPath): a checkpoint directory "…/step-N" to continue from; memory is
/// left out then. Snapshots in memory of another node are read there and sent.
[[nodiscard]] Recovered recover(FileSystem& fs,
                                const std::string& run_directory,
                                ResumeMode mode,
                                const std::string& path,
                                const StateCatalog& catalog,
                                StateBinding& binding,
                                Context& ctx,
                                comm::Group& world,
                                const RecoverOptions& options = {});

/// Writes the recovered state (`facts` of step t*) as a full checkpoint to storage and waits for
/// it, so that the snapshots that it came from may go. `recovered` then stands on that checkpoint.
/// Collective over `world`. CheckpointError if it cannot be written: the snapshots are still there.
SaveRecord secure(Recovered& recovered,
                  FileSystem& fs,
                  const std::string& run_directory,
                  const config::CheckpointConfig& config,
                  const StateCatalog& catalog,
                  StateBinding& binding,
                  const StepFacts& facts,
                  Context& ctx,
                  comm::Group& world);

}  // namespace pecan::checkpoint
