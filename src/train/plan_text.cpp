#include <algorithm>

#include <nlohmann/json.hpp>

#include <pecan/checkpoint/plan.hpp>

#include <pecan/train/plan.hpp>

namespace pecan::train {
namespace {

using nlohmann::ordered_json;

/// "46,702,792,704".
template <typename Int>
std::string grouped(Int value) {
  std::string digits = fmt::format("{}", value);
  for (std::size_t at = digits.size(); at > 3;) digits.insert(at -= 3, 1, ',');
  return digits;
}

std::string_view name_of(config::WriteSharding sharding) {
  switch (sharding) {
    case config::WriteSharding::kRank0:
      return "rank0";
    case config::WriteSharding::kEqual:
      return "equal";
    case config::WriteSharding::kAdaptive:
      return "adaptive";
  }
  return "?";
}

double share(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? double(part) / double(whole) : 0;
}

/// Lines whose first has a label.
class Lines {
 public:
  void section(std::string_view label) { label_ = label; }
  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    text_ += fmt::format("{:<12}{}\n", label_, fmt::format(format, std::forward<Args>(args)...));
    label_ = {};
  }
  [[nodiscard]] std::string take() { return std::move(text_); }

 private:
  std::string_view label_;
  std::string text_;
};

void add_sizes(Lines& lines, const checkpoint::CheckpointEstimate& estimate) {
  const auto add = [&](const std::string& what, const checkpoint::WriteLoad& load) {
    lines.add("{:<27} {:>18} bytes; a rank at most {}, max/mean {:.3f}",
              what,
              grouped(load.total_bytes),
              grouped(load.max_rank_bytes),
              load.imbalance);
  };
  lines.section("sizes");
  add("full", estimate.full);
  if (!estimate.is_partial()) return;
  add(fmt::format("partial, {} of {} experts", estimate.experts, estimate.num_experts),
      estimate.partial);
  if (estimate.experts_in_snapshot != estimate.experts) {
    add(fmt::format(
            "snapshot, {} of {} experts", estimate.experts_in_snapshot, estimate.num_experts),
        estimate.snapshot);
  }
  if (estimate.phases_seen < estimate.num_phases) {
    lines.add("(of {} checkpoints in a rotation the first {} were planned)",
              estimate.num_phases,
              estimate.phases_seen);
  }
  if (estimate.follows_tokens) {
    lines.add(
        "(as if sequential: which experts a checkpoint holds, and so a rank's share, follows the "
        "tokens)");
  }

  lines.section("byte modes");
  lines.add("{:<12} {:>18} {:>8} {:>18} {:>8} {:>18} {:>8}",
            "mode",
            "bytes",
            "of full",
            "a rank at most",
            "max/mean",
            "papers' 14 bytes",
            "of full");
  for (const checkpoint::ModeEstimate& mode : estimate.modes) {
    lines.add("{:<12} {:>18} {:>8.4f} {:>18} {:>8.3f} {:>18} {:>8.4f}",
              checkpoint::name_of(mode.mode),
              grouped(mode.partial.total_bytes),
              share(mode.partial.total_bytes, estimate.plain_full_bytes),
              grouped(mode.partial.max_rank_bytes),
              mode.partial.imbalance,
              grouped(mode.papers_bytes),
              share(mode.papers_bytes, estimate.papers_full_bytes));
  }
  lines.add("{:<12} {:>18} {:>8.4f} {:>18} {:>8} {:>18} {:>8.4f}",
            "full",
            grouped(estimate.plain_full_bytes),
            1.0,
            "",
            "",
            grouped(estimate.papers_full_bytes),
            1.0);
}

void add_sharding(Lines& lines, const checkpoint::CheckpointEstimate& estimate) {
  lines.section("sharding");
  lines.add("{:<12} {:>24} {:>8} {:>24} {:>8}",
            "policy",
            "full: a rank at most",
            "max/mean",
            "partial: a rank at most",
            "max/mean");
  for (const checkpoint::PolicyEstimate& policy : estimate.policies) {
    lines.add("{:<12} {:>24} {:>8.3f} {:>24} {:>8.3f}",
              name_of(policy.sharding),
              grouped(policy.full.max_rank_bytes),
              policy.full.imbalance,
              grouped(policy.partial.max_rank_bytes),
              policy.partial.imbalance);
  }
  if (const std::string remark = checkpoint::sharding_remark(estimate); !remark.empty())
    lines.add("{}", remark);
}

/// "every 120 steps (60 s): a failure repeats 60 steps, PLT 0.0012; overhead 1.3 % of training".
std::string describe(const checkpoint::IntervalCost& cost) {
  std::string text = fmt::format("every {:.0f} steps", cost.steps);
  if (cost.seconds) text += fmt::format(" ({:.4g} s)", *cost.seconds);
  text += fmt::format(": a failure repeats {:g} steps, PLT {:.2g}", cost.lost_steps, cost.plt);
  if (cost.total_overhead_s) {
    text += fmt::format("; O_ckpt {:.4g} s, {:.3g} % of training",
                        *cost.total_overhead_s,
                        100 * *cost.overhead_share);
  }
  return text;
}

void add_cost(Lines& lines, std::string_view what, const checkpoint::SaveCost& cost) {
  std::string saves;
  const auto add = [&](std::string_view label, std::optional<double> seconds) {
    if (seconds) saves += fmt::format("{}{} {:.4g} s", saves.empty() ? "" : ", ", label, *seconds);
  };
  add("snapshot", cost.snapshot_s);
  add("persist", cost.persist_s);
  add("O_save", cost.overhead_s);
  add("shortest interval", cost.min_interval_s);
  if (!saves.empty()) lines.add("{:<8} {}", what, saves);
  if (cost.configured) {
    const bool too_short = cost.min_interval_s && cost.configured->seconds &&
                           *cost.configured->seconds < *cost.min_interval_s;
    lines.add("{:<8} configured: {}", what, describe(*cost.configured));
    if (too_short) lines.add("{:<8} (shorter than storage takes: saves will be skipped)", "");
  }
  if (!cost.optimal) return;
  lines.add("{:<8} {}: {}",
            what,
            *cost.overhead_s > 0  ? "optimal"
            : cost.min_interval_s ? "hidden, as often as storage takes it"
                                  : "hidden, as often as wanted",
            describe(*cost.optimal));
}

ordered_json to_json(const checkpoint::WriteLoad& load) {
  return {{"bytes", load.total_bytes},
          {"max_rank_bytes", load.max_rank_bytes},
          {"mean_rank_bytes", load.mean_rank_bytes},
          {"imbalance", load.imbalance}};
}

void put(ordered_json& json, const char* key, std::optional<double> value) {
  if (value) json[key] = *value;
}

ordered_json to_json(const checkpoint::IntervalCost& cost) {
  ordered_json json{{"steps", cost.steps}};
  put(json, "seconds", cost.seconds);
  json["lost_steps"] = cost.lost_steps;
  json["plt"] = cost.plt;
  put(json, "overhead_s", cost.total_overhead_s);
  put(json, "overhead_share", cost.overhead_share);
  return json;
}

ordered_json to_json(const checkpoint::SaveCost& cost) {
  ordered_json json = ordered_json::object();
  put(json, "snapshot_s", cost.snapshot_s);
  put(json, "persist_s", cost.persist_s);
  put(json, "save_overhead_s", cost.overhead_s);
  put(json, "min_interval_s", cost.min_interval_s);
  if (cost.configured) json["configured"] = to_json(*cost.configured);
  if (cost.optimal) json["optimal"] = to_json(*cost.optimal);
  return json;
}

ordered_json to_json(const CheckpointReport& report) {
  const checkpoint::CheckpointEstimate& estimate = report.estimate;
  ordered_json modes = ordered_json::object();
  for (const checkpoint::ModeEstimate& mode : estimate.modes) {
    ordered_json entry = to_json(mode.partial);
    entry["share"] = share(mode.partial.total_bytes, estimate.plain_full_bytes);
    entry["full_bytes"] = mode.full_bytes;
    entry["papers_bytes"] = mode.papers_bytes;
    entry["papers_share"] = share(mode.papers_bytes, estimate.papers_full_bytes);
    modes[std::string(checkpoint::name_of(mode.mode))] = std::move(entry);
  }
  ordered_json sharding = ordered_json::object();
  for (const checkpoint::PolicyEstimate& policy : estimate.policies) {
    sharding[std::string(name_of(policy.sharding))] = {{"full", to_json(policy.full)},
                                                       {"partial", to_json(policy.partial)}};
  }
  ordered_json json{
      {"num_experts", estimate.num_experts},
      {"experts_per_checkpoint", estimate.experts},
      {"experts_per_snapshot", estimate.experts_in_snapshot},
      {"phases", estimate.num_phases},
      {"phases_planned", estimate.phases_seen},
      {"follows_tokens", estimate.follows_tokens},
      {"full", to_json(estimate.full)},
      {"partial", to_json(estimate.partial)},
      {"snapshot", to_json(estimate.snapshot)},
      {"plain_full_bytes", estimate.plain_full_bytes},
      {"papers_full_bytes", estimate.papers_full_bytes},
      {"byte_modes", std::move(modes)},
      {"replicated_bytes", estimate.replicated_bytes},
      {"sharding", std::move(sharding)},
      {"sharding_remark", checkpoint::sharding_remark(estimate)},
      {"cost", {{"full", to_json(report.costs.full)}, {"partial", to_json(report.costs.partial)}}}};
  put(json["cost"], "expected_failures", report.costs.expected_failures);
  return json;
}

}  // namespace

std::string describe(const TrainPlan& plan) {
  const auto busiest = std::ranges::max_element(
      plan.sent, {}, [](const comm::SentBytes& sent) { return sent.total(); });
  std::string sent;
  for (std::size_t i = 0; i < std::size_t(comm::Purpose::kCount); ++i) {
    const auto purpose = comm::Purpose(i);
    if ((*busiest)[purpose] == 0) continue;
    sent +=
        fmt::format("            {} {}\n", comm::name_of(purpose), grouped((*busiest)[purpose]));
  }
  const auto largest = std::ranges::max_element(plan.memory, {}, &RankMemory::total);
  const double expert_share = double(plan.parameters.expert) / double(plan.parameters.total);
  return fmt::format(
      "parameters  {} total, {} active a token\n"
      "            {} in experts ({:.2f} %), {} in the rest\n"
      "layout      {} ranks: dp {}, ep {}, edp {}, tp {}, etp {}; {} micro-batches a step and "
      "rank\n"
      "memory      {} bytes a rank at most: weights {}, gradients {}, optimizer {},\n"
      "            activations {}, workspace {}, communication {}, snapshots {}\n"
      "traffic     {} bytes a step that a rank sends at most, if experts are chosen equally often\n"
      "{}"
      "checkpoint  {} bytes full, {} partial ({:.1f} %)\n",
      grouped(plan.parameters.total),
      grouped(plan.parameters.active),
      grouped(plan.parameters.expert),
      100 * expert_share,
      grouped(plan.parameters.non_expert),
      plan.mesh.world,
      plan.mesh.dp,
      plan.mesh.ep,
      plan.mesh.edp,
      plan.mesh.tp,
      plan.mesh.etp,
      plan.num_micro_batches,
      grouped(largest->total()),
      grouped(largest->weights),
      grouped(largest->gradients),
      grouped(largest->optimizer),
      grouped(largest->activations),
      grouped(largest->workspace),
      grouped(largest->communication),
      grouped(largest->snapshots),
      grouped(busiest->total()),
      sent,
      grouped(plan.full_checkpoint_bytes),
      grouped(plan.partial_checkpoint_bytes),
      100 * double(plan.partial_checkpoint_bytes) / double(plan.full_checkpoint_bytes));
}

std::string describe(const CheckpointReport& report) {
  Lines lines;
  add_sizes(lines, report.estimate);
  add_sharding(lines, report.estimate);
  lines.section("cost");
  add_cost(lines, "full", report.costs.full);
  if (report.estimate.is_partial()) add_cost(lines, "partial", report.costs.partial);
  if (report.costs.expected_failures) {
    lines.add("{:.3g} failures expected in the training of {:.4g} hours",
              *report.costs.expected_failures,
              *report.costs.expected_failures * *report.figures.mtbf_hours);
  }
  return lines.take();
}

std::string to_json(const TrainPlan& plan, const CheckpointReport& report) {
  ordered_json ranks = ordered_json::array();
  for (const RankMemory& memory : plan.memory) {
    ranks.push_back({{"weights", memory.weights},
                     {"gradients", memory.gradients},
                     {"optimizer", memory.optimizer},
                     {"activations", memory.activations},
                     {"workspace", memory.workspace},
                     {"communication", memory.communication},
                     {"snapshots", memory.snapshots},
                     {"total", memory.total()}});
  }
  ordered_json traffic = ordered_json::array();
  for (const comm::SentBytes& sent : plan.sent) {
    ordered_json purposes = ordered_json::object();
    for (std::size_t i = 0; i < std::size_t(comm::Purpose::kCount); ++i) {
      const auto purpose = comm::Purpose(i);
      if (sent[purpose] > 0) purposes[std::string(comm::name_of(purpose))] = sent[purpose];
    }
    traffic.push_back(purposes);
  }
  const ordered_json json{
      {"schema", 1},
      {"parameters",
       {{"total", plan.parameters.total},
        {"active", plan.parameters.active},
        {"expert", plan.parameters.expert},
        {"non_expert", plan.parameters.non_expert}}},
      {"layout",
       {{"world", plan.mesh.world},
        {"tp", plan.mesh.tp},
        {"dp", plan.mesh.dp},
        {"etp", plan.mesh.etp},
        {"ep", plan.mesh.ep},
        {"edp", plan.mesh.edp},
        {"micro_batches", plan.num_micro_batches}}},
      {"rank_bytes", ranks},
      {"sent_bytes", traffic},
      {"checkpoint_bytes",
       {{"full", plan.full_checkpoint_bytes}, {"partial", plan.partial_checkpoint_bytes}}},
      {"checkpoint", to_json(report)}};
  return json.dump(2) + "\n";
}

}  // namespace pecan::train
