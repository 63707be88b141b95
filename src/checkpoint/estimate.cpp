#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include <pecan/checkpoint/dynamic_k.hpp>
#include <pecan/checkpoint/estimate.hpp>

#include "checkpoint/request.hpp"
#include "checkpoint/triple_buffer.hpp"

namespace pecan::checkpoint {
namespace {

using config::WriteSharding;

constexpr WriteSharding kPolicies[] = {
    WriteSharding::kRank0, WriteSharding::kEqual, WriteSharding::kAdaptive};
constexpr ByteMode kModes[] = {ByteMode::kEq6, ByteMode::kMasterFull, ByteMode::kWeightsFull};
/// Two policies are the same where the most loaded rank's bytes differ by less than this share.
constexpr double kSameLoad = 1e-3;

/// Gathers the load of ranks over phases.
class LoadMeter {
 public:
  void add(const std::vector<std::uint64_t>& rank_bytes) {
    const std::uint64_t total =
        std::accumulate(rank_bytes.begin(), rank_bytes.end(), std::uint64_t{0});
    const std::uint64_t most = std::ranges::max(rank_bytes);
    const double mean = double(total) / double(rank_bytes.size());
    load_.total_bytes = std::max(load_.total_bytes, std::int64_t(total));
    load_.max_rank_bytes = std::max(load_.max_rank_bytes, std::int64_t(most));
    if (mean > 0) load_.imbalance = std::max(load_.imbalance, double(most) / mean);
    load_.mean_rank_bytes += (mean - load_.mean_rank_bytes) / double(++num_phases_);
  }
  [[nodiscard]] const WriteLoad& load() const { return load_; }

 private:
  WriteLoad load_;
  std::int64_t num_phases_ = 0;
};

/// One way of saving: what is always saved, of which items, and who writes it.
struct Way {
  const StateCatalog* catalog;
  SelectionSettings settings;
  LoadMeter full = {};
  LoadMeter snapshot = {};
  LoadMeter partial = {};

  void add_full(const ExpertGrid& grid) {
    full.add(plan_save(*catalog, full_request(grid, settings, settings.storage.experts, Step{0}))
                 .rank_bytes);
  }
  /// Returns the number of planned writes.
  std::size_t add_phase(const LevelSelection& selection) {
    const LevelPlans plans = plan_levels(*catalog, settings, selection);
    snapshot.add(plans.snapshot.rank_bytes);
    partial.add(plans.persist.rank_bytes);
    return plans.snapshot.writes.size();
  }
};

StateCatalog without_derived(StateCatalog catalog) {
  std::erase_if(catalog.items, [](const StateItem& item) { return item.derived; });
  return catalog;
}

bool has_group(const StateCatalog& catalog, RoleGroup group) {
  return std::ranges::any_of(catalog.items, [&](const StateItem& item) {
    return item.unit.value > 0 && item.group == group;
  });
}

std::vector<RoleGroup> groups_of(ByteMode mode, const StateCatalog& catalog) {
  std::vector<RoleGroup> groups;
  switch (mode) {
    case ByteMode::kEq6:
      return groups;
    case ByteMode::kMasterFull:  // without a master of its own the weight is it
      groups = {has_group(catalog, RoleGroup::kMaster) ? RoleGroup::kMaster : RoleGroup::kWeight};
      break;
    case ByteMode::kWeightsFull:
      groups = {RoleGroup::kWeight};
      break;
  }
  if (has_group(catalog, RoleGroup::kDefaultVector)) groups.push_back(RoleGroup::kDefaultVector);
  return groups;
}

/// The figures in seconds, and what they are applied to.
struct Scene {
  const CheckpointEstimate& estimate;
  const config::CheckpointConfig& config;
  double num_steps;
  std::optional<double> step_s;
  std::optional<double> failures_per_s;
  double restart_s;
};

IntervalCost cost_of_interval(const Scene& scene,
                              int experts,
                              double steps,
                              double save_steps,
                              std::optional<double> overhead_s) {
  IntervalCost cost{.steps = steps, .lost_steps = steps / 2};
  if (scene.estimate.num_experts > 0)
    cost.plt = expected_plt(scene.estimate.num_experts, experts, steps, scene.num_steps);
  if (!scene.step_s) return cost;
  cost.seconds = steps * *scene.step_s;
  if (!scene.failures_per_s || !overhead_s) return cost;
  const double total_s = scene.num_steps * *scene.step_s;
  cost.total_overhead_s =
      total_overhead_s(*overhead_s, *cost.seconds, total_s, *scene.failures_per_s, scene.restart_s);
  // Snapshots between checkpoints cost what those for storage cost.
  *cost.total_overhead_s += *overhead_s * scene.num_steps * (1 / save_steps - 1 / steps);
  cost.overhead_share = *cost.total_overhead_s / total_s;
  return cost;
}

SaveCost cost_of(const Scene& scene,
                 int experts,
                 const WriteLoad& snapshot,
                 const WriteLoad& persist,
                 const RunFigures& figures) {
  SaveCost cost;
  const bool three_buffers = !scene.config.non_persistent_save_interval.never();
  if (figures.copy_gb_per_s)
    cost.snapshot_s = double(snapshot.max_rank_bytes) / (*figures.copy_gb_per_s * 1e9);
  if (figures.write_gb_per_s)
    cost.persist_s = double(persist.max_rank_bytes) / (*figures.write_gb_per_s * 1e9);
  if (cost.persist_s && (three_buffers || cost.snapshot_s)) {
    const double copy_s = cost.snapshot_s.value_or(0);
    cost.min_interval_s =
        three_buffers ? std::max(copy_s, *cost.persist_s) : copy_s + *cost.persist_s;
  }
  if (cost.snapshot_s && scene.step_s)
    cost.overhead_s = save_overhead_s(*cost.snapshot_s, *scene.step_s);

  if (const auto steps = interval_steps(scene.config.save_interval, scene.step_s)) {
    const auto memory = interval_steps(scene.config.non_persistent_save_interval, scene.step_s);
    cost.configured = cost_of_interval(
        scene, experts, *steps, std::min(*steps, memory.value_or(*steps)), cost.overhead_s);
  }
  if (cost.overhead_s && scene.failures_per_s) {
    const double best_s = optimal_interval_s(*cost.overhead_s, *scene.failures_per_s);
    const double least = std::ceil(cost.min_interval_s.value_or(0) / *scene.step_s);
    const double steps = std::max({1.0, least, std::round(best_s / *scene.step_s)});
    cost.optimal = cost_of_interval(scene, experts, steps, steps, cost.overhead_s);
  }
  return cost;
}

}  // namespace

std::string_view name_of(ByteMode mode) {
  switch (mode) {
    case ByteMode::kEq6:
      return "eq6";
    case ByteMode::kMasterFull:
      return "master_full";
    case ByteMode::kWeightsFull:
      return "weights_full";
  }
  return "?";
}

StateParameters count_parameters(const StateCatalog& catalog) {
  StateParameters parameters;
  for (const StateItem& item : catalog.items) {
    const bool parameter =
        !item.derived && (item.role == Role::kWeight || item.role == Role::kMaster);
    if (!parameter) continue;
    const bool expert = catalog.units[std::size_t(item.unit.value)].is_expert();
    (expert ? parameters.expert : parameters.non_expert) += item.global_shape.num_elements();
  }
  return parameters;
}

int papers_rotating_bytes(ByteMode mode) {
  switch (mode) {
    case ByteMode::kEq6:
      return kPapersBytes;
    case ByteMode::kMasterFull:  // weight and moments; an inference from the published shares
      return kPapersBytes - 4;
    case ByteMode::kWeightsFull:
      return kPapersBytes - 2;
  }
  throw InternalError("an unknown byte mode");
}

std::int64_t papers_bytes(const StateParameters& parameters,
                          int rotating,
                          int experts,
                          int num_experts) {
  std::int64_t bytes = kPapersBytes * parameters.total();
  // Layers are equal in experts, so that K of N is an exact share of all.
  if (num_experts > 0)
    bytes -= parameters.expert / num_experts * (num_experts - experts) * rotating;
  return bytes;
}

CheckpointEstimate estimate_checkpoints(const StateCatalog& catalog,
                                        const config::CheckpointConfig& config,
                                        std::size_t max_planned_writes) {
  const StateCatalog plain = without_derived(catalog);
  const auto catalog_of = [&](const std::vector<RoleGroup>& always_saved) {
    return std::ranges::count(always_saved, RoleGroup::kWeight) > 0 ? &catalog : &plain;
  };
  const std::vector<RoleGroup> always_saved = always_saved_groups(config.pec.always_saved);
  const StateCatalog& saved = *catalog_of(always_saved);
  const ExpertGrid grid = expert_grid(saved, always_saved);
  const SelectionSettings settings = selection_settings(config, grid, {});
  const StateParameters parameters = count_parameters(plain);

  CheckpointEstimate estimate;
  estimate.num_experts = grid.num_experts;
  estimate.experts = settings.storage.experts;
  estimate.experts_in_snapshot = settings.memory.experts;
  estimate.follows_tokens = settings.partial(grid) && settings.policy != select_sequential;
  estimate.papers_full_bytes = papers_bytes(parameters, 0, 0, 0);
  estimate.replicated_bytes = std::int64_t(replicated_bytes(saved));
  for (const StateItem& item : plain.items)
    estimate.plain_full_bytes += std::int64_t(item.num_bytes());

  std::vector<Way> policies;
  for (const WriteSharding sharding : kPolicies) {
    policies.push_back({&saved, settings});
    policies.back().settings.sharding = sharding;
    policies.back().add_full(grid);
  }
  std::vector<Way> modes;
  if (estimate.is_partial()) {
    for (const ByteMode mode : kModes) {
      modes.push_back({catalog_of(groups_of(mode, plain)), settings});
      modes.back().settings.always_saved = groups_of(mode, plain);
    }
    Rotation rotation(grid, settings, select_sequential, 1);
    estimate.num_phases = rotation.size();
    estimate.phases_seen = 0;
    for (std::size_t work = 0; estimate.phases_seen < estimate.num_phases &&
                               (estimate.phases_seen < 2 || work < max_planned_writes);
         ++estimate.phases_seen) {
      const LevelSelection selection = rotation.next();
      for (Way& way : policies) work += way.add_phase(selection);
      for (Way& way : modes) work += way.add_phase(selection);
    }
  }

  for (std::size_t i = 0; i < policies.size(); ++i) {
    const Way& way = policies[i];
    const bool partial = estimate.is_partial();
    estimate.policies.push_back(
        {kPolicies[i], way.full.load(), (partial ? way.partial : way.full).load()});
    if (kPolicies[i] != settings.sharding) continue;
    estimate.full = way.full.load();
    estimate.partial = estimate.policies.back().partial;
    estimate.snapshot = (partial ? way.snapshot : way.full).load();
  }
  for (std::size_t i = 0; i < modes.size(); ++i) {
    ModeEstimate mode{.mode = kModes[i],
                      .always_saved = modes[i].settings.always_saved,
                      .partial = modes[i].partial.load()};
    for (const StateItem& item : modes[i].catalog->items)
      mode.full_bytes += std::int64_t(item.num_bytes());
    mode.papers_bytes = papers_bytes(
        parameters, papers_rotating_bytes(kModes[i]), estimate.experts, estimate.num_experts);
    estimate.modes.push_back(std::move(mode));
  }
  return estimate;
}

std::string sharding_remark(const CheckpointEstimate& estimate) {
  if (estimate.replicated_bytes == 0)
    return "no policy changes anything: one rank alone holds each block";
  const auto same = [&](const PolicyEstimate& a, const PolicyEstimate& b) {
    const auto near = [](const WriteLoad& x, const WriteLoad& y) {
      const double most = double(std::max(x.max_rank_bytes, y.max_rank_bytes));
      return std::abs(double(x.max_rank_bytes - y.max_rank_bytes)) < kSameLoad * most;
    };
    return near(a.full, b.full) && near(a.partial, b.partial);
  };
  const auto& [rank0, equal, adaptive] =
      std::tie(estimate.policies[0], estimate.policies[1], estimate.policies[2]);
  const bool none = same(rank0, equal);
  const bool no_more = same(equal, adaptive);
  const double share = 100 * double(estimate.replicated_bytes) / double(estimate.full.total_bytes);
  if (none && no_more)
    return fmt::format("no policy changes anything: {:.2g} % of the bytes have several holders",
                       share);
  if (none) return "equal changes nothing against rank0";
  if (no_more) return "adaptive changes nothing against equal";
  return "";
}

std::optional<double> interval_steps(const config::Interval& interval,
                                     std::optional<double> step_s) {
  if (interval.steps > 0) return double(interval.steps);
  if (interval.seconds > 0 && step_s) return std::max(1.0, std::ceil(interval.seconds / *step_s));
  return {};
}

double save_overhead_s(double snapshot_s, double forward_backward_s) {
  return std::max(0.0, snapshot_s - forward_backward_s);
}

double optimal_interval_s(double save_overhead_s, double failures_per_s) {
  return std::sqrt(2 * save_overhead_s / failures_per_s);
}

double total_overhead_s(double save_overhead_s,
                        double interval_s,
                        double total_s,
                        double failures_per_s,
                        double restart_s) {
  return save_overhead_s * total_s / interval_s +
         failures_per_s * total_s * (restart_s + interval_s / 2);
}

CostEstimate estimate_costs(const CheckpointEstimate& estimate,
                            const config::CheckpointConfig& config,
                            std::int64_t train_iters,
                            const RunFigures& figures) {
  Scene scene{estimate, config, double(train_iters), {}, {}, figures.restart_s.value_or(0)};
  if (figures.step_ms) scene.step_s = *figures.step_ms / 1e3;
  if (figures.mtbf_hours) scene.failures_per_s = 1 / (*figures.mtbf_hours * 3600);
  CostEstimate costs;
  costs.full = cost_of(scene, estimate.num_experts, estimate.full, estimate.full, figures);
  costs.partial = cost_of(scene, estimate.experts, estimate.snapshot, estimate.partial, figures);
  if (scene.step_s && scene.failures_per_s)
    costs.expected_failures = scene.num_steps * *scene.step_s * *scene.failures_per_s;
  return costs;
}

}  // namespace pecan::checkpoint
