#pragma once
/// How much of a run's time saves and failures leave for training, and what failures lose: Monte
/// Carlo over failures, beside the closed forms of estimate.hpp. Pure.

#include <cstdint>
#include <optional>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/config/config.hpp>

namespace pecan::checkpoint {

/// Where recovery may read.
enum class RecoveryMode : std::uint8_t { kTwoLevel /*memory and storage*/, kStorageOnly };

/// Seconds that the slowest rank takes for one save.
struct SaveSeconds {
  double snapshot = 0;  ///< to host memory
  double persist = 0;   ///< from there to storage, until all ranks' parts are durable
};

/// A failure at a given time.
struct GivenFailure {
  double at_s = 0;
  /// Neighbouring nodes, the first of them at random, that it takes with their memory; 0: a
  /// process dies. Not given: as failures at random.
  std::optional<int> nodes = {};
  /// Newest checkpoints in storage that it leaves unreadable.
  int checkpoints = 0;
};

/// A run, its machine and its failures. All times in seconds.
struct SimulationInput {
  std::int64_t steps = 0;  ///< of the whole training

  // Model and selection. Experts are taken to be routed to evenly, and saved in turn.
  int num_layers = 0;           ///< that hold experts; 0: none does, and every checkpoint is full
  int num_experts = 0;          ///< N of each
  int ep_size = 1;              ///< expert-parallel ranks
  int experts = 0;              ///< K in storage; N: every checkpoint is full
  int experts_in_snapshot = 0;  ///< K in memory, at least that
  bool dynamic_k = false;
  double plt_budget = 0;  ///< of Dynamic-K

  // Saves.
  std::int64_t save_interval = 0;    ///< steps between checkpoints in storage; 0: none
  std::int64_t memory_interval = 0;  ///< steps between snapshots in memory; 0: storage alone
  bool async_save = true;            ///< false: training waits until storage has it
  int replicas = 1;                  ///< nodes that hold each snapshot
  RecoveryMode recovery = RecoveryMode::kTwoLevel;
  int checkpoints_kept = 1;  ///< that recovery may go on from

  // Machine.
  int nodes = 1;
  /// By (layer, expert), the nodes that a snapshot of it is spread over; empty: each expert on one
  /// node, in order.
  std::vector<std::vector<int>> expert_nodes;
  double step_s = 0;    ///< of a step without saves
  SaveSeconds partial;  ///< with K experts
  SaveSeconds full;     ///< with all
  double commit_s = 0;  ///< from all parts durable to the manifest
  /// From a sealed snapshot to its last replica; until then no other snapshot begins.
  double replicate_s = 0;
  /// That the step loop waits for a save. Not given: MoC eq. 10, with the step as forward and
  /// backward.
  std::optional<double> stall_s;
  double startup_s = 0;          ///< before the first step of the run
  double detect_s = 0;           ///< from a failure to its being noticed
  double restart_s = 0;          ///< from there to the start of recovery
  double restore_memory_s = 0;   ///< a recovery that reads memory alone
  double restore_storage_s = 0;  ///< a recovery that reads storage, or both

  // Failures: exponential times between them, by the clock on the wall.
  double mtbf_s = 0;                   ///< of the whole job; 0: none but those of `failures`
  std::vector<GivenFailure> failures;  ///< in ascending order of time, beside the random ones
  /// When the run is asked to stop, in ascending order: it saves everything at the end of its step,
  /// and is started again.
  std::vector<double> stops_s;
  double node_loss_share = 0;  ///< of failures that take nodes and their memory; others: a process
  int nodes_at_once = 1;       ///< that such a failure takes

  int trials = 200;
  std::uint64_t seed = 1;
};

/// What trials say of a figure.
struct Spread {
  double mean = 0;
  double low = 0;  ///< 95 % interval of the mean, by Student's t
  double high = 0;
  double p2_5 = 0;  ///< 95 % of the trials lie between this
  double p97_5 = 0;
};

/// Of one whole training.
struct SimulationResult {
  Spread ettr;  ///< useful training time (steps * step_s) over wall time: goodput
  Spread plt;   ///< proportion of lost tokens (papers on PEC, eq. 7), even routing
  Spread failures;
  Spread lost_steps;         ///< whole steps that failures undid and that were trained again
  Spread recovered_memory;   ///< recoveries to a step that memory alone had
  Spread recovered_storage;  ///< to a step that storage has
  Spread from_scratch;       ///< nothing to recover: the run began anew
  Spread wall_s;
  Spread downtime_s;    ///< from failures and stops to the first step after them
  Spread stall_s;       ///< waits for saves
  Spread repeated_s;    ///< the rest of what was not useful: steps trained again, and cut short
  Spread committed;     ///< checkpoints in storage
  Spread skipped;       ///< saves that were due while buffers or storage were busy
  Spread last_experts;  ///< K in storage at the end
  int trials = 0;
  int unfinished = 0;       ///< trials that were given up after kHopeless times the useful time
  int layers_followed = 0;  ///< of num_layers, which are alike
};
/// A run that takes so many times its useful time makes no progress worth waiting for.
inline constexpr double kHopeless = 1000;

/// Nodes of `input.expert_nodes`, by the writers of a full checkpoint; rank r is on node
/// r / (world / nodes).
[[nodiscard]] std::vector<std::vector<int>> expert_nodes(const StateCatalog& catalog,
                                                         const config::CheckpointConfig& config,
                                                         int nodes);

/// Simulates the run `trials` times. Which experts a save holds, which buffer it takes and when it
/// is skipped are decided by the checkpointer's own select_levels and TripleBuffer; what is durable
/// when follows its votes at step boundaries. A failure strikes at any time, also while a restart
/// or a recovery is under way, which then begins again with what is left; a stop that comes then
/// waits for the first step. Recovery goes to the newest step of which storage has a committed and
/// readable checkpoint or memory a whole snapshot, and takes each expert from its newest copy up to
/// that step. Node n's snapshots are also on nodes n + 1 ..
/// n + replicas - 1 (modulo nodes) once they were sent. ConfigError for input that makes no sense.
/// Deterministic for a seed; trial t does not depend on the number of trials. Cost: a few
/// microseconds a save and trial for up to 256 experts; more layers are not followed.
[[nodiscard]] SimulationResult simulate(const SimulationInput& input);

/// ETTR by the closed form `1/(1 + O_save/interval) * 1/(1 + E[R]/MTBF)`, E[R] = detection,
/// restart, restore and half an interval, of the level that failures are recovered from if they
/// come one at a time. Good where failures are rare and a save is done long before the next.
/// Source: MoEvement, its ETTR formula. Differs: detection is counted.
[[nodiscard]] double expected_ettr(const SimulationInput& input);

}  // namespace pecan::checkpoint
