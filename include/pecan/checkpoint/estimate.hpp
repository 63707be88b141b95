#pragma once
/// What checkpoints will weigh and cost, before a run: bytes by rank, byte mode and sharding
/// policy, and time from given speeds. Pure.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/config/config.hpp>

namespace pecan::checkpoint {

/// What ranks write (or copy) for one kind of checkpoint, over the phases of the rotation.
struct WriteLoad {
  std::int64_t total_bytes = 0;     ///< of one checkpoint, the largest
  std::int64_t max_rank_bytes = 0;  ///< of the most loaded rank in any phase
  double mean_rank_bytes = 0;       ///< over ranks and phases
  double imbalance = 1;             ///< most loaded rank over the mean, in the worst phase
  bool operator==(const WriteLoad&) const = default;
};

/// What every checkpoint holds of the experts whose turn it is not.
enum class ByteMode : std::uint8_t { kEq6 /*nothing*/, kMasterFull, kWeightsFull };
/// "eq6", "master_full" or "weights_full".
[[nodiscard]] std::string_view name_of(ByteMode mode);

/// Parameters as checkpoints see them.
struct StateParameters {
  std::int64_t expert = 0;  ///< in routed experts
  std::int64_t non_expert = 0;
  [[nodiscard]] std::int64_t total() const { return expert + non_expert; }
};
/// Counts weights and masters (each parameter once).
[[nodiscard]] StateParameters count_parameters(const StateCatalog& catalog);

/// What the papers count: a 2-byte weight, and 12 bytes of fp32 master and moments.
inline constexpr int kPapersBytes = 14;
/// Of those, the bytes that rotate with the experts. The others stand in every checkpoint.
[[nodiscard]] int papers_rotating_bytes(ByteMode mode);
/// Bytes of a checkpoint with K of N experts if `rotating` (of 14) bytes of an expert's parameters
/// rotate: 14 P - (1 - K/N) * rotating * P_e. K = N: a full one (MoC eq. 5); rotating = 14: eq. 6.
/// N = 0: a model without experts.
[[nodiscard]] std::int64_t papers_bytes(const StateParameters& parameters,
                                        int rotating,
                                        int experts,
                                        int num_experts);

struct ModeEstimate {
  ByteMode mode = ByteMode::kEq6;
  std::vector<RoleGroup> always_saved;  ///< that make the mode in this run
  WriteLoad partial;                    ///< with K experts, sharded as configured
  std::int64_t full_bytes = 0;          ///< of a full checkpoint in this mode
  std::int64_t papers_bytes = 0;        ///< with K experts, in the papers' accounting
};

struct PolicyEstimate {
  config::WriteSharding sharding = config::WriteSharding::kAdaptive;
  WriteLoad full;
  WriteLoad partial;
};

/// Sizes of the checkpoints of a run.
struct CheckpointEstimate {
  int num_experts = 0;           ///< N of each MoE layer
  int experts = 0;               ///< K of a checkpoint in storage
  int experts_in_snapshot = 0;   ///< K of a snapshot in memory
  std::int64_t num_phases = 1;   ///< checkpoints of a rotation
  std::int64_t phases_seen = 1;  ///< of which the first were planned; the loads are theirs
  bool follows_tokens = false;   ///< the policy chooses by tokens: planned as if sequential
  WriteLoad full;
  WriteLoad partial;                  ///< as configured, to storage
  WriteLoad snapshot;                 ///< what is copied for it
  std::int64_t plain_full_bytes = 0;  ///< of a full one without weights that masters give
  std::int64_t papers_full_bytes = 0;
  std::int64_t replicated_bytes = 0;     ///< of a full one, that several ranks hold
  std::vector<ModeEstimate> modes;       ///< none if every checkpoint is full
  std::vector<PolicyEstimate> policies;  ///< rank0, equal, adaptive
  [[nodiscard]] bool is_partial() const { return experts < num_experts; }
};

/// `catalog` has the derived weights, if the run computes in bf16; without weight among
/// `pec.always_saved` they count for nothing but the mode weights_full. Loads are those of
/// successive checkpoints after a full one, each of which goes to storage. ConfigError for an
/// unknown selection or role group. Cost: at most `max_planned_writes` (by default a few seconds),
/// for which a long rotation is cut short (phases_seen), but not below two checkpoints.
/// Source: MoC eq. 5, 6 and 9, section 4. Differs from the paper: bytes of real plans, in which
/// weights that masters give are not written.
[[nodiscard]] CheckpointEstimate estimate_checkpoints(const StateCatalog& catalog,
                                                      const config::CheckpointConfig& config,
                                                      std::size_t max_planned_writes = 4'000'000);

/// A sentence for each sharding policy that changes nothing (the most loaded rank's bytes move by
/// less than 0.1 %) against the one before it; empty if all do.
[[nodiscard]] std::string sharding_remark(const CheckpointEstimate& estimate);

/// Measured or assumed speeds of a run, all above 0; what is not given is not estimated.
struct RunFigures {
  std::optional<double> copy_gb_per_s;   ///< device to host memory, of a rank, in 1e9 bytes
  std::optional<double> write_gb_per_s;  ///< host memory to storage, of a rank, in 1e9 bytes
  std::optional<double> step_ms;     ///< forward and backward, which are taken as the whole step
  std::optional<double> mtbf_hours;  ///< mean time between failures of the job
  std::optional<double> restart_s;   ///< from a failure to the first step; not given: 0
};

/// Steps of an interval in steps, or in seconds if those of a step are known; none if it never
/// comes or is not known.
[[nodiscard]] std::optional<double> interval_steps(const config::Interval& interval,
                                                   std::optional<double> step_s);
/// O_save = max(0, T_snapshot - T_F&B), in seconds. Source: MoC eq. 10. Differs: none.
[[nodiscard]] double save_overhead_s(double snapshot_s, double forward_backward_s);
/// The interval in seconds at which total_overhead_s is least: sqrt(2 O_save / lambda), O_save in
/// seconds a save, lambda in failures a second. 0 if saves cost nothing: then the shortest interval
/// that storage takes is best. Source: MoC section 6 (its overhead model). Differs: none.
[[nodiscard]] double optimal_interval_s(double save_overhead_s, double failures_per_s);
/// What saves and failures cost in `total_s` seconds of training:
/// O_save * total/interval + lambda * total * (restart + interval/2).
/// Source: MoC, its overhead model. Differs from the paper: seconds instead of iterations.
[[nodiscard]] double total_overhead_s(double save_overhead_s,
                                      double interval_s,
                                      double total_s,
                                      double failures_per_s,
                                      double restart_s);

/// What saving at one interval means.
struct IntervalCost {
  double steps = 0;  ///< between checkpoints
  std::optional<double> seconds;
  double lost_steps = 0;                   ///< that a failure repeats on the average: half of them
  double plt = 0;                          ///< that it loses on the average (papers on PEC, eq. 7)
  std::optional<double> total_overhead_s;  ///< over the whole training
  std::optional<double> overhead_share;    ///< of the training's time without saves and failures
};

/// Costs of full or of partial checkpoints, by the most loaded rank.
struct SaveCost {
  std::optional<double> snapshot_s;
  std::optional<double> persist_s;
  std::optional<double> overhead_s;  ///< O_save of one checkpoint
  /// Shortest interval at which storage keeps up: with one buffer a snapshot and its writing, with
  /// three the longer of them.
  std::optional<double> min_interval_s;
  std::optional<IntervalCost> configured;  ///< at checkpoint.save_interval
  std::optional<IntervalCost> optimal;     ///< in whole steps, none below min_interval_s
};
struct CostEstimate {
  SaveCost full;
  SaveCost partial;
  std::optional<double> expected_failures;  ///< in the whole training
};

/// `train_iters`: steps of the whole training. With snapshots in memory each of them costs O_save
/// too, but a failure is taken to lose the memory.
[[nodiscard]] CostEstimate estimate_costs(const CheckpointEstimate& estimate,
                                          const config::CheckpointConfig& config,
                                          std::int64_t train_iters,
                                          const RunFigures& figures);

}  // namespace pecan::checkpoint
