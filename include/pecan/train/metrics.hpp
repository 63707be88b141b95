#pragma once
/// metrics.jsonl: one JSON object a line, the schema first (docs/formats/metrics.md).

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <pecan/core/ids.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/checkpoint/checkpointer.hpp>
#include <pecan/checkpoint/recovery.hpp>

#include <pecan/train/state.hpp>

namespace pecan::train {

inline constexpr int kMetricsSchema = 1;  // on-disk: raise with every change of meaning

/// What rank 0 sent for one purpose in a step.
struct PurposeTraffic {
  comm::Purpose purpose;
  comm::Traffic measured;
  std::int64_t planned_bytes = 0;  ///< TrainPlan::sent
};

/// One step as every rank knows it after the step's small all-reduce.
struct StepRecord {
  Incarnation incarnation;
  Step step;            ///< updates done, this one included
  double loss = 0;      ///< nats a token, mean of the global batch
  double aux_loss = 0;  ///< mean over MoE layers, before the coefficient; 1 at balance
  double z_loss = 0;
  double grad_norm = 0;  ///< before clipping
  double grad_norm_dense = 0;
  double grad_norm_expert = 0;
  double clip_norm = 0;  ///< the norm that gradients were scaled by: max(grad_norm, clip_grad)
  double lr = 0;
  bool skipped = false;
  std::string skip_reason;  ///< "non_finite" or "spike"; empty: not skipped
  int skips_in_row = 0;     ///< this step included
  std::string bad_tensor;   ///< of a non-finite step: which was the first
  std::int64_t non_finite = 0;
  std::int64_t tokens = 0;
  std::int64_t consumed_samples = 0;  ///< after this step
  double tokens_per_s = 0;
  double step_ms = 0;
  double ckpt_stall_ms = 0;
  double plt = 0;
  double load_max_over_mean = 0;  ///< largest of the MoE layers
  std::int64_t dispatch_chunks_added = 0;
  std::int64_t dropped_slots = 0;  ///< over their expert's capacity, of all MoE layers
  std::vector<PurposeTraffic> traffic;
};

struct ValidRecord {
  Incarnation incarnation;
  Step step;
  double loss = 0;
  double bits_per_byte = 0;
  std::int64_t tokens = 0;
};

/// A return to an earlier checkpoint.
struct RollbackRecord {
  Incarnation incarnation;  ///< that is given up
  Step step;                ///< last of the skipped steps in a row
  Step first_skipped;
  std::optional<Step> to;  ///< newest state before them; none: the run stops
  std::int64_t begin = 0;  ///< consumed samples [begin, end) are passed over from now on
  std::int64_t end = 0;
  int count = 0;  ///< rollbacks since training got past the step that led to the first of them
  int limit = 0;  ///< training.max_rollbacks
};

/// Why a run stops with exit code 6.
struct DivergenceRecord {
  Incarnation incarnation;
  Step step;           ///< that was not to be believed
  std::string reason;  ///< "non_finite", "spike", "replicas" or "rollbacks"
  /// Another start from the same state, fed the same data, would end alike; false: the hardware is
  /// suspect.
  bool repeatable = false;
};

class MetricsWriter {
 public:
  /// Appends to `path`; writes the schema line if the file is new. DataError if it cannot be
  /// written.
  MetricsWriter(const std::string& path, int world_size);
  ~MetricsWriter();
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;
  void write(const StepRecord& record);
  void write(const ValidRecord& record);
  void write(const RollbackRecord& record);
  void write(const DivergenceRecord& record);
  void write(Incarnation incarnation, const checkpoint::SaveRecord& record);
  void write(const checkpoint::Recovered& recovered,
             const StateCatalog& catalog,
             const WeightRestore& weights,
             const LossReport& losses,
             const checkpoint::ExpertBudget& budget);
  /// `hashes` by item. `recovered`: of what a recovery has loaded, before the first step.
  void write_content(Incarnation incarnation,
                     Step step,
                     bool recovered,
                     const StateCatalog& catalog,
                     const std::vector<std::uint64_t>& hashes);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pecan::train
