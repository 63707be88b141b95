#pragma once
/// The plan of a run: everything that follows from configuration, vocabulary and world size. Pure.

#include <string>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/config/config.hpp>

#include <pecan/parallel/gradients.hpp>
#include <pecan/parallel/mesh.hpp>
#include <pecan/parallel/params.hpp>

#include <pecan/model/transformer.hpp>

#include <pecan/checkpoint/checkpointer.hpp>
#include <pecan/checkpoint/estimate.hpp>

namespace pecan::train {

/// Parameters by what they are.
struct ParameterCounts {
  std::int64_t total = 0;
  std::int64_t active = 0;  ///< used by one token, embedding included
  std::int64_t expert = 0;  ///< in routed experts
  std::int64_t non_expert = 0;
};

/// Bytes of one rank.
struct RankMemory {
  std::size_t weights = 0;  ///< and default vectors
  std::size_t gradients = 0;
  std::size_t optimizer = 0;
  std::size_t activations = 0;
  std::size_t workspace = 0;
  std::size_t communication = 0;  ///< scratch of the all-reduces; what dispatch sends
                                  ///< and receives is among the activations
  std::size_t snapshots = 0;      ///< host memory for them, if checkpoints are saved; with
                                  ///< snapshots in memory all of it in checkpoint.memory_dir
  [[nodiscard]] std::size_t total() const {
    return weights + gradients + optimizer + activations + workspace + communication + snapshots;
  }
};

struct TrainPlan {
  parallel::MeshShape mesh;
  parallel::Sharding sharding = parallel::Sharding::kNone;
  parallel::Overlap overlap_reduce = parallel::Overlap::kOff;
  parallel::Overlap overlap_gather = parallel::Overlap::kOff;
  model::ModelDims dims;
  std::vector<parallel::ParamSpec> specs;
  StateCatalog catalog;
  ParameterCounts parameters;
  std::vector<RankMemory> memory;  ///< by rank
  /// Buffers of each rank's snapshots in a fresh run; empty where nothing is saved.
  std::vector<checkpoint::SnapshotMemory> snapshots;
  int num_micro_batches = 1;  ///< a rank and step
  /// What each rank sends in a step for forward, backward, gradients and weights, by purpose, if
  /// experts are chosen equally often.
  std::vector<comm::SentBytes> sent;
  std::int64_t full_checkpoint_bytes = 0;
  std::int64_t partial_checkpoint_bytes =
      0;  ///< with pec.experts_per_checkpoint, largest selection
};

/// model.vocab_size, or the size of data.tokenizer_model; ConfigError without either, DataError for
/// a bad tokenizer.
[[nodiscard]] std::int64_t resolve_vocab_size(const config::Config& config);
/// With training.threads=0 memory is that of one thread, with training.device=auto that of the CPU.
/// Throws ConfigError where configuration and world do not fit. Allocates nothing of the model's
/// size.
[[nodiscard]] TrainPlan make_plan(const config::Config& config,
                                  std::int64_t vocab_size,
                                  int world_size);

/// What the run's checkpoints weigh and, with figures, cost.
struct CheckpointReport {
  checkpoint::CheckpointEstimate estimate;
  checkpoint::CostEstimate costs;
  checkpoint::RunFigures figures;
};
/// `config` is the one that `plan` was made of. Takes longer than make_plan, and a run needs none
/// of it. Pure.
[[nodiscard]] CheckpointReport report_checkpoints(const config::Config& config,
                                                  const TrainPlan& plan,
                                                  const checkpoint::RunFigures& figures);

/// A few lines for people.
[[nodiscard]] std::string describe(const TrainPlan& plan);
/// Tables for people, to follow the plan's lines.
[[nodiscard]] std::string describe(const CheckpointReport& report);
/// Both as JSON (docs/formats/plan.md).
[[nodiscard]] std::string to_json(const TrainPlan& plan, const CheckpointReport& report);

}  // namespace pecan::train
