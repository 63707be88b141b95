#pragma once
/// What a person sees while training.

#include <iosfwd>
#include <string>

#include <pecan/core/state_catalog.hpp>

#include <pecan/checkpoint/recovery.hpp>

#include <pecan/train/metrics.hpp>

namespace pecan::train {

/// One line a step: rewritten in place on a terminal, plain lines elsewhere.
class Progress {
 public:
  /// `out` null: silent.
  Progress(std::ostream* out, bool terminal, std::int64_t train_iters, int log_interval);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void show(const StepRecord& record);
  void show(const ValidRecord& record);
  void say(const std::string& text);

 private:
  std::ostream* out_;
  bool terminal_;
  bool line_open_ = false;
  std::int64_t train_iters_;
  std::int64_t log_interval_;
  double mean_step_ms_ = 0;
};

/// What was restored from where and what was lost, for people.
[[nodiscard]] std::string describe(const checkpoint::Recovered& recovered,
                                   const StateCatalog& catalog,
                                   const WeightRestore& weights,
                                   const LossReport& losses);

/// What Dynamic-K decided, and what one more failure would cost on the average.
[[nodiscard]] std::string describe(const checkpoint::ExpertBudget& budget,
                                   const config::Config& config);

}  // namespace pecan::train
