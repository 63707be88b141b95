#include "train/progress.hpp"

#include <map>
#include <ostream>
#include <set>

#include <fmt/ranges.h>

#include <pecan/checkpoint/exactness.hpp>

namespace pecan::train {
namespace {

std::string duration(double seconds) {
  const auto total = std::int64_t(seconds + 0.5);
  if (total >= 3600) return fmt::format("{}h{:02}m", total / 3600, total / 60 % 60);
  return fmt::format("{}m{:02}s", total / 60, total % 60);
}

}  // namespace

Progress::Progress(std::ostream* out, bool terminal, std::int64_t train_iters, int log_interval)
    : out_(out), terminal_(terminal), train_iters_(train_iters), log_interval_(log_interval) {}

Progress::~Progress() {
  if (line_open_) *out_ << std::endl;
}

void Progress::show(const StepRecord& record) {
  constexpr double kSmoothing = 0.1;
  mean_step_ms_ = mean_step_ms_ == 0
                      ? record.step_ms
                      : mean_step_ms_ + kSmoothing * (record.step_ms - mean_step_ms_);
  const bool last = record.step.value == train_iters_;
  if (out_ == nullptr || (!terminal_ && !last && record.step.value % log_interval_ != 0)) return;
  const double eta_s = double(train_iters_ - record.step.value) * mean_step_ms_ / 1000;
  const std::string line = fmt::format(
      "step {:>6}/{}  loss {:.4f}  grad norm {:.3f}  lr {:.2e}  {:.0f} tokens/s  ETA {}  "
      "checkpoint stall {:.1f} ms{}",
      record.step.value,
      train_iters_,
      record.loss,
      record.grad_norm,
      record.lr,
      record.tokens_per_s,
      duration(eta_s),
      record.ckpt_stall_ms,
      record.skipped ? "  SKIPPED" : "");
  if (terminal_) {
    *out_ << '\r' << line << "\x1b[K" << std::flush;
    line_open_ = true;
  } else {
    *out_ << line << std::endl;
  }
}

void Progress::show(const ValidRecord& record) {
  say(fmt::format("step {:>6}/{}  held-out loss {:.4f} nats/token  {:.4f} bits/byte ({} tokens)",
                  record.step.value,
                  train_iters_,
                  record.loss,
                  record.bits_per_byte,
                  record.tokens));
}

void Progress::say(const std::string& text) {
  if (out_ == nullptr) return;
  if (line_open_) *out_ << '\n';
  line_open_ = false;
  *out_ << text << std::endl;
}

std::string describe(const checkpoint::Recovered& recovered,
                     const StateCatalog& catalog,
                     const WeightRestore& weights,
                     const LossReport& losses) {
  const checkpoint::RestorePlan& plan = recovered.report.plan;
  std::string text =
      fmt::format("resumed at step {} (start {} of this run); non-expert state from step {}\n",
                  plan.recovery.step,
                  recovered.identity.incarnation.value + 1,
                  plan.recovery.step);
  text += fmt::format(
      "  {}\n", checkpoint::describe(checkpoint::exactness_of(plan, catalog), losses.plt_now));
  // Experts by the step they come from; a unit whose role groups differ counts with its oldest.
  std::map<UnitIndex, checkpoint::Version> oldest;
  std::set<UnitIndex> in_memory;
  std::set<UnitIndex> anew;
  for (const checkpoint::UnitRestore& restore : plan.restores) {
    if (restore.tier == checkpoint::Tier::kMemory) in_memory.insert(restore.unit);
    if (restore.tier == checkpoint::Tier::kInitial) anew.insert(restore.unit);
    if (!catalog.units[std::size_t(restore.unit.value)].is_expert()) continue;
    const auto [it, added] = oldest.try_emplace(restore.unit, restore.version);
    if (!added) it->second = std::min(it->second, restore.version);
  }
  std::map<checkpoint::Version, std::map<int, std::vector<int>>> by_version;
  for (const auto& [unit, version] : oldest) {
    const StateUnit& described = catalog.units[std::size_t(unit.value)];
    by_version[version][described.layer.value].push_back(described.expert.value);
  }
  for (const auto& [version, layers] : by_version) {
    std::size_t count = 0;
    for (const auto& [layer, experts] : layers) count += experts.size();
    text += fmt::format("  {:>5} experts from step {}", count, version.step);
    if (version == plan.recovery) {
      text += " (current)\n";
      continue;
    }
    text += fmt::format(", {} steps stale:", plan.recovery.step.value - version.step.value);
    for (const auto& [layer, experts] : layers)
      text += fmt::format(" layer {}: {};", layer, fmt::join(experts, ","));
    text.back() = '\n';
  }
  if (!in_memory.empty()) {
    const std::size_t experts = in_memory.size() - in_memory.count(UnitIndex{0});
    text += fmt::format("  from memory: {} experts{}; the rest from storage\n",
                        experts,
                        in_memory.contains(UnitIndex{0}) ? " and all non-expert state" : "");
  }
  if (!anew.empty()) {
    text +=
        fmt::format("  begun anew: {} experts of which no copy was left (--allow-reinit-expert)\n",
                    anew.size());
  }
  if (weights.rounded_units > 0) {
    text += fmt::format(
        "  masters of {} experts are older than their bf16 weights and were taken "
        "from these, rounded\n",
        weights.rounded_units);
  }
  text += fmt::format("  token slots lost by MoE layer: {}\n", fmt::join(losses.lost_slots, ", "));
  text += fmt::format(
      "  PLT {:.3f} % of the planned training ({:.3f} % of the tokens so far); of weights alone "
      "{:.3f} %",
      100 * losses.plt,
      100 * losses.plt_so_far,
      100 * losses.plt_weights);
  for (const std::string& damage : recovered.report.damages) text += "\n  damage: " + damage;
  for (const std::string& name : recovered.report.abandoned) text += "\n  abandoned: " + name;
  return text;
}

std::string describe(const checkpoint::ExpertBudget& budget, const config::Config& config) {
  const config::PecConfig& pec = config.checkpoint.pec;
  std::string text = fmt::format(
      "  {} of {} experts a checkpoint from here on", budget.checkpoint, config.moe.num_experts);
  if (pec.dynamic_k) {
    text += fmt::format(" (Dynamic-K: {:.3f} % of the budget of {:.3f} % are spent)",
                        100 * budget.lost,
                        100 * pec.plt_budget);
  }
  if (config.checkpoint.save_interval.steps > 0 && config.moe.num_experts > 0) {
    text +=
        fmt::format("; a failure costs {:.3f} % PLT by the closed form for even routing",
                    100 * checkpoint::expected_plt(config.moe.num_experts,
                                                   budget.checkpoint,
                                                   double(config.checkpoint.save_interval.steps),
                                                   double(config.training.train_iters)));
  }
  return text;
}

}  // namespace pecan::train
