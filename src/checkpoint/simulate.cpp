#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include <pecan/core/error.hpp>
#include <pecan/core/philox.hpp>

#include <pecan/checkpoint/dynamic_k.hpp>
#include <pecan/checkpoint/estimate.hpp>
#include <pecan/checkpoint/select.hpp>
#include <pecan/checkpoint/simulate.hpp>

#include "checkpoint/request.hpp"
#include "checkpoint/triple_buffer.hpp"

namespace pecan::checkpoint {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
/// Layers are alike but for where the rotation starts: so many experts show what all do.
constexpr int kMaxUnits = 256;
/// Saves times trials that one call may follow, some minutes.
constexpr double kMaxSaves = 2e7;

void refuse_unless(bool sound, const std::string& message) {
  PECAN_VALIDATE(sound, ConfigError, "{}", message);
}

void check_seconds(const char* what, double seconds) {
  refuse_unless(std::isfinite(seconds) && seconds >= 0,
                fmt::format("{}={} is no duration; use seconds from 0 on", what, seconds));
}

void validate(const SimulationInput& in) {
  refuse_unless(in.steps > 0, fmt::format("steps={}: use at least 1", in.steps));
  refuse_unless(std::isfinite(in.step_s) && in.step_s > 0,
                fmt::format("step_s={} is no step's duration; use seconds above 0", in.step_s));
  check_seconds("snapshot_s", in.partial.snapshot);
  check_seconds("persist_s", in.partial.persist);
  check_seconds("full_snapshot_s", in.full.snapshot);
  check_seconds("full_persist_s", in.full.persist);
  check_seconds("commit_s", in.commit_s);
  check_seconds("replicate_s", in.replicate_s);
  check_seconds("stall_s", in.stall_s.value_or(0));
  check_seconds("startup_s", in.startup_s);
  check_seconds("detect_s", in.detect_s);
  check_seconds("restart_s", in.restart_s);
  check_seconds("restore_memory_s", in.restore_memory_s);
  check_seconds("restore_storage_s", in.restore_storage_s);
  check_seconds("mtbf", in.mtbf_s);
  for (const GivenFailure& failure : in.failures) {
    check_seconds("a failure's time", failure.at_s);
    const int nodes = failure.nodes.value_or(0);
    refuse_unless(nodes >= 0 && nodes <= in.nodes,
                  fmt::format("a failure takes {} of {} nodes; use 0 (a process dies) to {}",
                              nodes,
                              in.nodes,
                              in.nodes));
    refuse_unless(
        failure.checkpoints >= 0,
        fmt::format("a failure damages {} checkpoints; use 0 or more", failure.checkpoints));
  }
  refuse_unless(std::ranges::is_sorted(in.failures, {}, &GivenFailure::at_s),
                "the times of failures do not ascend; give them in order");
  for (const double stop : in.stops_s) check_seconds("a stop's time", stop);
  refuse_unless(std::ranges::is_sorted(in.stops_s),
                "the times of stops do not ascend; give them in order");
  refuse_unless(in.checkpoints_kept >= 1,
                fmt::format("checkpoints_kept={}: use at least 1", in.checkpoints_kept));
  if (in.num_layers > 0) {
    refuse_unless(in.experts >= 1 && in.experts <= in.num_experts,
                  fmt::format("K={} experts a checkpoint of N={}; use 1 to {}",
                              in.experts,
                              in.num_experts,
                              in.num_experts));
    refuse_unless(
        in.experts_in_snapshot >= in.experts && in.experts_in_snapshot <= in.num_experts,
        fmt::format("K={} experts a snapshot; use at least those of a checkpoint ({}) and at "
                    "most N={}",
                    in.experts_in_snapshot,
                    in.experts,
                    in.num_experts));
    refuse_unless(
        in.ep_size >= 1 && in.num_experts % in.ep_size == 0,
        fmt::format(
            "{} experts do not divide over {} expert-parallel ranks", in.num_experts, in.ep_size));
  }
  refuse_unless(in.save_interval >= 0 && in.memory_interval >= 0,
                fmt::format("intervals of {} and {} steps; use 0 (never) or more",
                            in.save_interval,
                            in.memory_interval));
  refuse_unless(in.save_interval > 0 || in.stops_s.empty(),
                "a stop on request without checkpoints in storage saves nothing; give "
                "checkpoint.save_interval");
  refuse_unless(in.save_interval > 0 || in.memory_interval == 0,
                "snapshots in memory without checkpoints in storage: memory stands on a full "
                "checkpoint, so give checkpoint.save_interval too");
  refuse_unless(in.nodes >= 1, fmt::format("nodes={}: use at least 1", in.nodes));
  refuse_unless(in.replicas >= 1 && in.replicas <= in.nodes,
                fmt::format("checkpoint.replication_factor={} copies of a snapshot do not fit on "
                            "{} nodes, one on each; use 1 to {}",
                            in.replicas,
                            in.nodes,
                            in.nodes));
  refuse_unless(
      in.node_loss_share >= 0 && in.node_loss_share <= 1,
      fmt::format("node_loss_share={} is no share; use 0 (processes die, memory stays) to "
                  "1 (every failure takes a node)",
                  in.node_loss_share));
  refuse_unless(
      in.nodes_at_once >= 1 && in.nodes_at_once <= in.nodes,
      fmt::format(
          "nodes_at_once={} of {} nodes; use 1 to {}", in.nodes_at_once, in.nodes, in.nodes));
  refuse_unless(in.trials >= 2,
                fmt::format("trials={} give no interval; use at least 2", in.trials));
  const std::int64_t shortest =
      in.memory_interval > 0 ? std::min(in.memory_interval, in.save_interval) : in.save_interval;
  const double saves = shortest > 0 ? double(in.trials) * double(in.steps) / double(shortest) : 0;
  refuse_unless(
      saves <= kMaxSaves,
      fmt::format("{} trials of {} steps with a save every {} are {:.2g} saves to follow, "
                  "more than {:.0e}; use fewer trials or steps",
                  in.trials,
                  in.steps,
                  shortest,
                  saves,
                  kMaxSaves));
}

/// What all trials share.
struct Scene {
  const SimulationInput& in;
  ExpertGrid grid;
  std::vector<std::vector<int>> nodes_of;  ///< by unit
  std::uint64_t time_stream = stream_of("simulate.failure.time");
  std::uint64_t kind_stream = stream_of("simulate.failure.kind");
  std::uint64_t node_stream = stream_of("simulate.failure.node");

  explicit Scene(const SimulationInput& input) : in(input) {
    grid.num_layers = 0;
    if (in.num_layers > 0) {
      grid.num_layers = std::clamp(kMaxUnits / in.num_experts, 1, in.num_layers);
      grid.num_experts = in.num_experts;
      grid.ep_size = in.ep_size;
    }
    for (int u = 0; u < grid.num_units(); ++u) {
      if (in.expert_nodes.empty()) {
        const std::int64_t expert = u % grid.num_experts;
        nodes_of.push_back({int(expert * in.nodes / grid.num_experts)});
      } else {
        nodes_of.push_back(in.expert_nodes[std::size_t(u)]);
      }
    }
  }
  [[nodiscard]] bool memory_level() const { return in.memory_interval > 0; }
};

/// The content of an expert: as of a step, without the updates of so many steps before it.
struct Copy {
  std::int64_t step = -1;
  std::int64_t lost = 0;
};

/// A checkpoint that was committed.
struct Stored {
  std::int64_t step = -1;
  std::vector<Copy> copies;  ///< by unit, the newest in storage up to this step
};

/// A save, and what a buffer in memory holds of it.
struct Save {
  std::int64_t step = -1;
  std::int64_t generation = 0;
  bool full = false;
  bool direct = false;
  ForStorage for_storage = ForStorage::kNo;
  std::vector<UnitIndex> units;
  std::vector<UnitIndex> persisted;
  std::vector<std::int64_t> lost;  ///< of all units when it was taken
  SaveSeconds seconds;
  double sealed_at = kNever;
  double replicated_at = kNever;
  std::vector<bool> gone;  ///< nodes whose memory was lost since
};

struct TrialResult {
  double wall_s = 0;
  double downtime_s = 0;
  double stall_s = 0;
  double plt = 0;
  std::int64_t steps = 0;
  std::int64_t lost_steps = 0;
  std::int64_t failures = 0;
  std::int64_t recovered_memory = 0;
  std::int64_t recovered_storage = 0;
  std::int64_t from_scratch = 0;
  std::int64_t committed = 0;
  std::int64_t skipped = 0;
  int last_experts = 0;
  bool finished = false;
};

/// One training from beginning to end.
class Trial {
 public:
  Trial(const Scene& scene, int number)
      : scene_(scene),
        in_(scene.in),
        number_(std::uint64_t(number)),
        lost_(std::size_t(scene.grid.num_units())),
        stored_{.copies = std::vector<Copy>(lost_.size())},
        budget_(first_expert_budget(
            scene.in.experts, scene.in.experts_in_snapshot, scene.in.plt_budget)),
        held_(TripleBuffer::kMaxBuffers) {
    next_random_ = in_.mtbf_s > 0 ? draw_gap() : kNever;
  }

  TrialResult run() {
    const double useful_s = double(in_.steps) * in_.step_s;
    const double hopeless_s = kHopeless * (useful_s + in_.startup_s);
    now_ = in_.startup_s;
    begin_checkpointing({});
    while (step_ < in_.steps && now_ < hopeless_s) {
      std::int64_t num_steps = steps_to_next_event();
      const bool stops = next_stop() < end_of(num_steps);
      if (stops) {
        const double waits_s = next_stop() - now_ - stall_;
        num_steps = std::max<std::int64_t>(1, std::int64_t(std::ceil(waits_s / in_.step_s)));
      }
      if (next_failure() < end_of(num_steps)) {
        fail_while_training();
        continue;
      }
      now_ = end_of(num_steps);
      result_.stall_s += std::exchange(stall_, 0);
      step_ += num_steps;
      if (step_ == in_.steps) break;
      if (stops) {
        stop_on_request();
        continue;
      }
      observe();
      save_if_due();
    }
    result_.finished = step_ == in_.steps;
    result_.steps = step_;
    result_.wall_s = now_;
    result_.last_experts = budget_.checkpoint;
    result_.plt = lost_share(lost_);
    return result_;
  }

 private:
  // ---- failures

  [[nodiscard]] double uniform(std::uint64_t stream, std::uint64_t element) const {
    return philox_uniform(in_.seed, stream, number_ << 32U | element);
  }
  double draw_gap() { return -in_.mtbf_s * std::log1p(-uniform(scene_.time_stream, num_drawn_++)); }
  [[nodiscard]] double next_failure() const {
    const double fixed = num_fixed_ < in_.failures.size() ? in_.failures[num_fixed_].at_s : kNever;
    return std::min(fixed, next_random_);
  }
  [[nodiscard]] double next_stop() const {
    return num_stops_ < in_.stops_s.size() ? in_.stops_s[num_stops_] : kNever;
  }
  [[nodiscard]] double end_of(std::int64_t num_steps) const {
    return now_ + stall_ + double(num_steps) * in_.step_s;
  }

  /// Takes the next failure: its time, and what memory it leaves.
  double strike() {
    const double at = next_failure();
    std::optional<int> given;
    if (at == next_random_) {
      next_random_ += draw_gap();
    } else {
      const GivenFailure& failure = in_.failures[num_fixed_++];
      given = failure.nodes;
      damaged_ += failure.checkpoints;
    }
    const auto failure = std::uint64_t(result_.failures++);
    for (auto& save : held_) {
      if (!save) continue;
      if (save->sealed_at > at) {
        save.reset();
      } else if (save->replicated_at > at) {
        save->replicated_at = kNever;
      }
    }
    const auto lose = [&](int node) {
      for (auto& save : held_) {
        if (save) save->gone[std::size_t(node)] = true;
      }
    };
    if (given) {
      const int first = int(uniform(scene_.node_stream, failure) * double(in_.nodes));
      for (int i = 0; i < *given; ++i) lose((first + i) % in_.nodes);
      return at;
    }
    if (uniform(scene_.kind_stream, failure) >= in_.node_loss_share) return at;
    std::vector<int> nodes(std::size_t(in_.nodes));
    std::iota(nodes.begin(), nodes.end(), 0);
    for (int i = 0; i < in_.nodes_at_once; ++i) {
      const double u = uniform(scene_.node_stream,
                               failure * std::uint64_t(in_.nodes_at_once) + std::uint64_t(i));
      std::swap(nodes[std::size_t(i)], nodes[std::size_t(i + int(u * double(in_.nodes - i)))]);
      lose(nodes[std::size_t(i)]);
    }
    return at;
  }

  void fail_while_training() {
    const double trained_s = std::max(0.0, next_failure() - now_ - stall_);
    result_.stall_s += std::min(stall_, next_failure() - now_);
    fail(step_ + std::int64_t(trained_s / in_.step_s));
  }

  /// The next failure, after step `reached`, and the recovery from it.
  void fail(std::int64_t reached) {
    now_ = strike();
    // A commit that the ranks had not heard of yet counts; what was being written does not.
    if (closing_ && closing_at_ <= now_) commit(*closing_);
    closing_.reset();
    writing_.reset();
    stall_ = 0;

    const double failed_at = now_;
    double ready = 0;
    while (true) {
      const double up = now_ + in_.detect_s + in_.restart_s;
      if (next_failure() < up) {
        now_ = strike();
        continue;
      }
      choose_sources();
      ready = up + (reads_storage_ ? in_.restore_storage_s : in_.restore_memory_s);
      if (next_failure() >= ready) break;
      now_ = strike();
    }
    now_ = ready;
    result_.downtime_s += now_ - failed_at;
    restore(reached);
  }

  /// Saves all that there is when what is under way is done, and begins again from there.
  void stop_on_request() {
    ++num_stops_;
    double saved_at = now_;
    if (writing_) saved_at = std::max(saved_at, written_at_ + in_.commit_s);
    if (closing_) saved_at = std::max(saved_at, closing_at_);
    saved_at += in_.full.snapshot + in_.full.persist + in_.commit_s;
    const double restarted_at = saved_at + in_.restart_s + in_.restore_storage_s;
    if (next_failure() < saved_at) {
      fail(step_);
      return;
    }
    result_.downtime_s += saved_at - now_;
    now_ = saved_at;
    if (closing_) commit(*std::exchange(closing_, std::nullopt));
    if (writing_) commit(*std::exchange(writing_, std::nullopt));
    Save all;
    all.step = step_;
    all.lost = lost_;
    for (int u = 0; u < scene_.grid.num_units(); ++u) all.persisted.push_back(UnitIndex{1 + u});
    commit(all);
    std::ranges::fill(held_, std::nullopt);
    if (next_failure() < restarted_at) {
      fail(step_);
      return;
    }
    result_.downtime_s += restarted_at - now_;
    now_ = restarted_at;
    begin_checkpointing({});
  }

  // ---- recovery

  /// Whether what node `node` held of a snapshot is still on some node.
  [[nodiscard]] bool has_part(const Save& save, int node) const {
    const int copies = save.replicated_at < kNever ? in_.replicas : 1;
    for (int i = 0; i < copies; ++i) {
      if (!save.gone[std::size_t((node + i) % in_.nodes)]) return true;
    }
    return false;
  }
  [[nodiscard]] bool is_whole(const Save& save) const {
    for (int node = 0; node < in_.nodes; ++node) {
      if (!has_part(save, node)) return false;
    }
    // A partial snapshot needs storage beneath it.
    return save.full || stored_.step >= 0;
  }
  [[nodiscard]] bool reads_memory() const {
    return scene_.memory_level() && in_.recovery == RecoveryMode::kTwoLevel;
  }

  /// Finds t*, -1 if there is none, and each expert's newest copy up to it.
  void choose_sources() {
    for (; damaged_ > 0; --damaged_) {
      if (older_.empty()) older_.push_back({.copies = std::vector<Copy>(lost_.size())});
      stored_ = std::move(older_.back());
      older_.pop_back();
    }
    std::int64_t in_memory = -1;
    if (reads_memory()) {
      for (const auto& save : held_) {
        if (save && is_whole(*save)) in_memory = std::max(in_memory, save->step);
      }
    }
    recovery_step_ = std::max(in_memory, stored_.step);
    reads_storage_ = in_memory < recovery_step_ || recovery_step_ < 0;
    sources_ = stored_.copies;
    std::vector<bool> from_memory(sources_.size());
    if (reads_memory()) {
      for (const auto& save : held_) {
        if (!save || save->step > recovery_step_) continue;
        for (const UnitIndex unit : save->units) {
          const std::size_t u = ExpertGrid::index(unit);
          const bool there = std::ranges::all_of(scene_.nodes_of[u],
                                                 [&](int node) { return has_part(*save, node); });
          if (!there || save->step < sources_[u].step) continue;
          sources_[u] = {save->step, save->lost[u]};
          from_memory[u] = true;
        }
      }
    }
    reads_storage_ = reads_storage_ || std::ranges::count(from_memory, false) > 0;
  }

  /// Goes on from t*; `reached`: the step that the failure struck after.
  void restore(std::int64_t reached) {
    const double before = lost_share(lost_);
    if (recovery_step_ < 0) {
      ++result_.from_scratch;
      std::ranges::fill(lost_, 0);
      step_ = 0;
    } else {
      ++(recovery_step_ > stored_.step ? result_.recovered_memory : result_.recovered_storage);
      step_ = recovery_step_;
      for (std::size_t u = 0; u < lost_.size(); ++u)
        lost_[u] = step_ - sources_[u].step + sources_[u].lost;
    }
    result_.lost_steps += reached - step_;
    if (in_.dynamic_k && scene_.grid.num_units() > 0) {
      budget_ = after_recovery(
          budget_, std::max(0.0, lost_share(lost_) - before), in_.plt_budget, in_.num_experts);
    }
    std::array<int, TripleBuffer::kMaxBuffers> order{};
    for (std::size_t b = 0; b < held_.size(); ++b) {
      auto& save = held_[b];
      if (save && (!reads_memory() || !is_whole(*save) || save->step > step_)) save.reset();
    }
    for (std::size_t b = 0; b < held_.size(); ++b) {
      if (!held_[b]) continue;
      order[b] = 1 + int(std::ranges::count_if(held_, [&](const auto& other) {
                   return other && other->step < held_[b]->step;
                 }));
    }
    begin_checkpointing(order);
  }

  [[nodiscard]] double lost_share(const std::vector<std::int64_t>& lost) const {
    if (lost.empty()) return 0;
    const double sum = std::accumulate(lost.begin(), lost.end(), 0.0);
    return sum / double(lost.size()) / double(in_.steps);
  }

  // ---- the checkpointer

  void begin_checkpointing(const std::array<int, TripleBuffer::kMaxBuffers>& order) {
    storage_ = SelectionHistory::uniform(scene_.grid, in_.experts, Step{-1});
    for (std::size_t u = 0; u < lost_.size(); ++u)
      storage_.newest[u] = Step{stored_.copies[u].step};
    memory_ = storage_;
    memory_.first_budget = in_.experts_in_snapshot;
    cycle_ = TripleBuffer(1);
    cycle_.adopt(order);
    if (stored_.step >= 0 && scene_.memory_level()) cycle_.use_all();
  }

  [[nodiscard]] bool partial() const {
    return scene_.grid.num_units() > 0 && budget_.checkpoint < in_.num_experts;
  }

  /// Seconds of a save with K of N experts: as given for the first K, for all, and in between.
  [[nodiscard]] SaveSeconds seconds_of(bool full) const {
    const int first = in_.experts, all = in_.num_experts;
    if (full || all == first) return in_.full;
    const double share = double(budget_.checkpoint - first) / double(all - first);
    return {std::lerp(in_.partial.snapshot, in_.full.snapshot, share),
            std::lerp(in_.partial.persist, in_.full.persist, share)};
  }

  [[nodiscard]] static bool is_due(std::int64_t interval, std::int64_t step) {
    return interval > 0 && step % interval == 0;
  }
  [[nodiscard]] bool reached(double at) const { return at <= now_ + 1e-6 * in_.step_s; }

  [[nodiscard]] std::int64_t steps_to_next_event() const {
    std::int64_t num_steps = in_.steps - step_;
    for (const std::int64_t interval : {in_.save_interval, in_.memory_interval}) {
      if (interval > 0) num_steps = std::min(num_steps, interval - step_ % interval);
    }
    const auto until = [&](double at) {
      const double steps = std::ceil((at - now_ - stall_) / in_.step_s - 1e-6);
      if (steps < double(num_steps)) num_steps = std::max<std::int64_t>(1, std::int64_t(steps));
    };
    if (const auto filling = cycle_.filling()) until(held_[std::size_t(*filling)]->replicated_at);
    if (closing_) until(closing_at_);
    if (writing_ && !closing_) until(written_at_);
    return num_steps;
  }

  /// What the ranks learn by the votes of a step.
  void observe() {
    if (const auto filling = cycle_.filling();
        filling && reached(held_[std::size_t(*filling)]->replicated_at)) {
      const Save& save = *held_[std::size_t(*filling)];
      cycle_.end_snapshot(SnapshotEnd::kWhole, save.for_storage);
      if (save.direct) static_cast<void>(cycle_.begin_persist());
      memory_.saved(save.units, Step{save.step});
    }
    if (closing_ && reached(closing_at_)) finish();
    // Files may be written before copies have reached other nodes.
    const auto filling = cycle_.filling();
    const bool snapshot_ended =
        !writing_ || !filling || held_[std::size_t(*filling)]->generation != writing_->generation;
    if (writing_ && snapshot_ended && !closing_ && reached(written_at_)) {
      closing_ = *std::exchange(writing_, std::nullopt);
      closing_at_ = now_ + in_.commit_s;
      cycle_.end_persist();
    }
    if (writing_) return;
    if (const auto next = cycle_.begin_persist()) {
      writing_ = *held_[std::size_t(*next)];
      written_at_ = now_ + writing_->seconds.persist;
    }
  }

  void commit(const Save& save) {
    older_.push_back(stored_);
    if (std::ssize(older_) == in_.checkpoints_kept) older_.erase(older_.begin());
    stored_.step = save.step;
    for (const UnitIndex unit : save.persisted) {
      const std::size_t u = ExpertGrid::index(unit);
      stored_.copies[u] = {save.step, save.lost[u]};
    }
    ++result_.committed;
  }

  void finish() {
    const Save save = *std::exchange(closing_, std::nullopt);
    commit(save);
    storage_.saved(save.persisted, Step{save.step});
    cycle_.committed(save.generation);
    if (scene_.memory_level()) cycle_.use_all();
  }

  void save_if_due() {
    const bool storage = is_due(in_.save_interval, step_);
    if (!storage && !is_due(in_.memory_interval, step_)) return;
    ForStorage for_storage = storage || stored_.step < 0 ? ForStorage::kYes : ForStorage::kNo;
    const bool direct = !writing_ && !cycle_.waiting();
    const std::optional<Begun> begun =
        stored_.step >= 0 || !closing_ ? cycle_.begin_snapshot() : std::nullopt;
    if (!begun) {
      ++result_.skipped;
      return;
    }
    if (begun->owes_storage) for_storage = ForStorage::kYes;
    Save& save = held_[std::size_t(begun->buffer)].emplace();
    save.step = step_;
    save.generation = cycle_[begun->buffer].generation;
    save.for_storage = for_storage;
    save.direct = direct && for_storage == ForStorage::kYes;
    save.full = stored_.step < 0 || !partial();
    save.seconds = seconds_of(save.full);
    save.lost = lost_;
    save.gone.resize(std::size_t(in_.nodes));
    save.sealed_at = now_ + save.seconds.snapshot;
    save.replicated_at = save.sealed_at + in_.replicate_s;
    choose(save);
    stall_ = in_.stall_s.value_or(save_overhead_s(save.seconds.snapshot, in_.step_s));
    if (!save.direct) return;
    writing_ = save;
    written_at_ = save.sealed_at + save.seconds.persist;
    if (in_.async_save) return;
    // Training stands still until all have voted on it.
    stall_ = save.seconds.snapshot + save.seconds.persist + in_.commit_s;
    closing_at_ = now_ + stall_;
    closing_ = *std::exchange(writing_, std::nullopt);
    cycle_.end_snapshot(SnapshotEnd::kWhole, ForStorage::kYes);
    static_cast<void>(cycle_.begin_persist());
    cycle_.end_persist();
    memory_.saved(save.units, Step{save.step});
  }

  void choose(Save& save) const {
    const ExpertGrid& grid = scene_.grid;
    if (grid.num_units() == 0) return;
    if (save.full) {
      for (int u = 0; u < grid.num_units(); ++u) save.units.push_back(UnitIndex{1 + u});
      save.persisted = save.units;
      return;
    }
    Level in_memory{memory_, {.experts = budget_.snapshot}};
    Level in_storage{storage_, {.experts = budget_.checkpoint}};
    if (closing_) in_storage.history.saved(closing_->persisted, Step{closing_->step});
    if (writing_) in_storage.history.saved(writing_->persisted, Step{writing_->step});
    if (!scene_.memory_level()) in_memory.budget.experts = in_storage.budget.experts;
    LevelSelection selection = select_levels(
        grid, select_sequential, in_memory, in_storage, save.for_storage, Step{save.step});
    save.units = std::move(selection.snapshot);
    save.persisted = std::move(selection.persist);
  }

  const Scene& scene_;
  const SimulationInput& in_;
  std::uint64_t number_;
  std::uint64_t num_drawn_ = 0;
  std::size_t num_fixed_ = 0;
  std::size_t num_stops_ = 0;
  double next_random_ = kNever;

  double now_ = 0;
  double stall_ = 0;  ///< that the next step begins with
  std::int64_t step_ = 0;
  std::vector<std::int64_t> lost_;  ///< by unit, steps whose updates it lacks

  Stored stored_;              ///< newest checkpoint
  std::vector<Stored> older_;  ///< that recovery may go on from, ascending
  int damaged_ = 0;            ///< newest checkpoints that cannot be read any more

  ExpertBudget budget_;
  SelectionHistory memory_;
  SelectionHistory storage_;
  TripleBuffer cycle_{1};
  std::vector<std::optional<Save>> held_;  ///< by buffer
  std::optional<Save> writing_;
  std::optional<Save> closing_;
  double written_at_ = 0;
  double closing_at_ = 0;

  std::int64_t recovery_step_ = -1;
  bool reads_storage_ = false;
  std::vector<Copy> sources_;
  TrialResult result_;
};

/// 97.5 % quantile of Student's t, by its expansion around the normal one: to 0.1 % from 9 degrees
/// of freedom on.
double student_t(int degrees) {
  constexpr double z = 1.959963984540054;
  const double z3 = z * z * z, z5 = z3 * z * z, z7 = z5 * z * z, n = degrees;
  return z + (z3 + z) / (4 * n) + (5 * z5 + 16 * z3 + 3 * z) / (96 * n * n) +
         (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * n * n * n);
}

template <typename Value>
Spread spread_of(const std::vector<TrialResult>& trials, Value value) {
  std::vector<double> values;
  values.reserve(trials.size());
  for (const TrialResult& trial : trials) values.push_back(double(value(trial)));
  std::ranges::sort(values);
  const double n = double(values.size());
  Spread spread;
  spread.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (const double v : values) squares += (v - spread.mean) * (v - spread.mean);
  const double half = student_t(int(values.size()) - 1) * std::sqrt(squares / (n - 1) / n);
  spread.low = spread.mean - half;
  spread.high = spread.mean + half;
  const auto quantile = [&](double q) { return values[std::size_t(std::lround(q * (n - 1)))]; };
  spread.p2_5 = quantile(0.025);
  spread.p97_5 = quantile(0.975);
  return spread;
}

}  // namespace

std::vector<std::vector<int>> expert_nodes(const StateCatalog& catalog,
                                           const config::CheckpointConfig& config,
                                           int nodes) {
  refuse_unless(nodes >= 1 && catalog.world_size % nodes == 0,
                fmt::format("{} processes do not divide over {} nodes; use a number of nodes that "
                            "divides them",
                            catalog.world_size,
                            nodes));
  const int ranks_per_node = catalog.world_size / nodes;
  const ExpertGrid grid = expert_grid(catalog, always_saved_groups(config.pec.always_saved));
  std::vector<std::vector<int>> nodes_of(std::size_t(grid.num_units()));
  if (nodes_of.empty()) return nodes_of;
  const SelectionSettings settings = selection_settings(config, grid, {});
  const SavePlan plan =
      plan_save(catalog, full_request(grid, settings, settings.storage.experts, Step{0}));
  std::vector<std::set<int>> found(nodes_of.size());
  for (const PlannedWrite& write : plan.writes) {
    const UnitIndex unit = catalog.items[std::size_t(write.item.value)].unit;
    if (unit.value > 0) found[ExpertGrid::index(unit)].insert(write.writer.value / ranks_per_node);
  }
  for (std::size_t u = 0; u < found.size(); ++u)
    nodes_of[u].assign(found[u].begin(), found[u].end());
  return nodes_of;
}

SimulationResult simulate(const SimulationInput& input) {
  validate(input);
  const Scene scene(input);
  std::vector<TrialResult> trials;
  trials.reserve(std::size_t(input.trials));
  for (int t = 0; t < input.trials; ++t) trials.push_back(Trial(scene, t).run());

  const auto over = [&](auto value) { return spread_of(trials, value); };
  const auto useful_s = [&](const TrialResult& t) { return double(t.steps) * input.step_s; };
  SimulationResult result;
  result.ettr =
      over([&](const TrialResult& t) { return t.wall_s > 0 ? useful_s(t) / t.wall_s : 0; });
  result.plt = over([](const TrialResult& t) { return t.plt; });
  result.failures = over([](const TrialResult& t) { return t.failures; });
  result.lost_steps = over([](const TrialResult& t) { return t.lost_steps; });
  result.recovered_memory = over([](const TrialResult& t) { return t.recovered_memory; });
  result.recovered_storage = over([](const TrialResult& t) { return t.recovered_storage; });
  result.from_scratch = over([](const TrialResult& t) { return t.from_scratch; });
  result.wall_s = over([](const TrialResult& t) { return t.wall_s; });
  result.downtime_s = over([](const TrialResult& t) { return t.downtime_s; });
  result.stall_s = over([](const TrialResult& t) { return t.stall_s; });
  result.repeated_s = over([&](const TrialResult& t) {
    return t.wall_s - useful_s(t) - t.downtime_s - t.stall_s - input.startup_s;
  });
  result.committed = over([](const TrialResult& t) { return t.committed; });
  result.skipped = over([](const TrialResult& t) { return t.skipped; });
  result.last_experts = over([](const TrialResult& t) { return t.last_experts; });
  result.trials = input.trials;
  result.unfinished = int(std::ranges::count(trials, false, &TrialResult::finished));
  result.layers_followed = scene.grid.num_layers;
  return result;
}

double expected_ettr(const SimulationInput& input) {
  const bool memory = input.memory_interval > 0 && input.memory_interval < input.save_interval;
  const double interval_steps = double(memory ? input.memory_interval : input.save_interval);
  double saving = 1;
  if (interval_steps > 0) {
    const bool partial = input.num_layers > 0 && input.experts < input.num_experts;
    const SaveSeconds& save = partial ? input.partial : input.full;
    const double overhead_s =
        !input.async_save ? save.snapshot + save.persist + input.commit_s
                          : input.stall_s.value_or(save_overhead_s(save.snapshot, input.step_s));
    saving = 1 / (1 + overhead_s / (interval_steps * input.step_s));
  }
  if (input.mtbf_s <= 0) return saving;
  // One lost node at a time leaves memory whole where there are replicas.
  const bool two_level = memory && input.recovery == RecoveryMode::kTwoLevel;
  const double from_storage = !two_level                             ? 1
                              : input.replicas > input.nodes_at_once ? 0
                                                                     : input.node_loss_share;
  const double lost_steps =
      from_storage * double(input.save_interval) / 2 + (1 - from_storage) * interval_steps / 2;
  const double restore_s =
      from_storage * input.restore_storage_s + (1 - from_storage) * input.restore_memory_s;
  const double recovery_s =
      input.detect_s + input.restart_s + restore_s + lost_steps * input.step_s;
  return saving / (1 + recovery_s / input.mtbf_s);
}

}  // namespace pecan::checkpoint
