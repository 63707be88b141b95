#pragma once
/// The goodput simulator for a configuration: figures from a run, from options or from speeds.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <pecan/config/config.hpp>

#include <pecan/checkpoint/simulate.hpp>

#include <pecan/train/plan.hpp>

namespace pecan::train {

/// Seconds of what a run does; what is not known is empty.
struct RunSeconds {
  std::optional<double> step;
  std::optional<double> snapshot;
  std::optional<double> persist;
  std::optional<double> full_snapshot;
  std::optional<double> full_persist;
  std::optional<double> commit;
  std::optional<double> stall;  ///< of the step loop, a save
  std::optional<double> replicate;
  std::optional<double> startup;
  std::optional<double> detect;
  std::optional<double> restart;
  std::optional<double> restore;         ///< from storage
  std::optional<double> restore_memory;  ///< not given: as from storage
};

/// What the metrics of a run directory say: medians of steps (without their stall, and without the
/// first of each start), of saves that were committed, and of recoveries; the stall is the mean of
/// a save. Throws CheckpointError where there are no metrics, or none of steps.
[[nodiscard]] RunSeconds measure_run(const std::string& run_directory);

/// What the command line asks for.
struct SimulationRequest {
  int nodes = 1;
  RunSeconds given;                    ///< go before all else
  std::optional<RunSeconds> measured;  ///< go before speeds
  std::optional<double> mtbf_s;        ///< of the job
  std::optional<double> node_mtbf_s;   ///< of each node; then the job's is that over their number
  std::vector<checkpoint::GivenFailure> failures;  ///< beside the random ones
  std::vector<double> stops_s;                     ///< on request
  double node_loss_share = 0;
  int nodes_at_once = 1;
  checkpoint::RecoveryMode recovery = checkpoint::RecoveryMode::kTwoLevel;
  std::optional<std::int64_t> steps;  ///< not given: training.train_iters
  int trials = 200;
  std::uint64_t seed = 1;
};

/// A figure of the simulation, and where it is from.
struct SourcedFigure {
  std::string name;
  double value = 0;
  std::string source;
};

struct Simulation {
  checkpoint::SimulationInput input;
  int world = 1;
  bool follows_tokens = false;  ///< the policy does; simulated as if sequential
  std::vector<SourcedFigure> figures;
  checkpoint::SimulationResult result;
  double closed_form_ettr = 0;
};

/// Simulates the configuration that `plan` was made of; `speeds` give what is neither given nor
/// measured. ConfigError for what makes no sense, or where a step's duration or failures are not
/// known.
[[nodiscard]] Simulation simulate_run(const config::Config& config,
                                      const TrainPlan& plan,
                                      const SimulationRequest& request,
                                      const checkpoint::RunFigures& speeds);

/// Tables for people.
[[nodiscard]] std::string describe(const Simulation& simulation);
/// docs/formats/plan.md.
[[nodiscard]] std::string to_json(const Simulation& simulation);

}  // namespace pecan::train
