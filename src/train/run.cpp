#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <functional>
#include <numbers>
#include <optional>
#include <ostream>
#include <set>
#include <thread>

#include <fmt/ranges.h>

#include <pecan/core/log.hpp>

#include <pecan/device/backend.hpp>
#include <pecan/device/copy.hpp>
#include <pecan/device/host_context.hpp>

#include <pecan/ops/elementwise.hpp>
#include <pecan/ops/kernel_plan.hpp>
#include <pecan/ops/reduce.hpp>

#include <pecan/parallel/gradients.hpp>

#include <pecan/optim/schedule.hpp>

#include <pecan/checkpoint/checkpointer.hpp>
#include <pecan/checkpoint/exactness.hpp>
#include <pecan/checkpoint/memory.hpp>

#include <pecan/train/metrics.hpp>
#include <pecan/train/placement.hpp>
#include <pecan/train/plan.hpp>
#include <pecan/train/run.hpp>
#include <pecan/train/state.hpp>

#include "train/agreement.hpp"
#include "train/batches.hpp"
#include "train/content.hpp"
#include "train/device_choice.hpp"
#include "train/divergence.hpp"
#include "train/fault_injector.hpp"
#include "train/profile_session.hpp"
#include "train/progress.hpp"
#include "train/replica_check.hpp"
#include "train/rollback.hpp"
#include "train/step_report.hpp"
#include "train/step_sums.hpp"

namespace pecan::train {
namespace {

using Clock = std::chrono::steady_clock;
using comm::Purpose;
using comm::ReduceOp;

// A signal handler has no other way to speak to the loop than an object of static storage.
volatile std::sig_atomic_t stop_requested = 0;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Position in the array of which all ranks take the minimum once a step.
enum FlagIndex : std::size_t { kRunOn, kFirstVote };
using Flags = std::array<std::int64_t, kFirstVote + checkpoint::kVoteSize>;

/// What outlasts a rollback, after which all else is built again.
struct Lasting {
  FaultInjector faults;
  SkippedData skipped = {};
  std::optional<Step> newest_step = {};  ///< of the state that a rollback returns to
  Clock::time_point started = Clock::now();
};

class Trainer {
 public:
  Trainer(const config::Config& config,
          const RunOptions& options,
          FileSystem& fs,
          comm::Group& world,
          Context& ctx,
          const TrainPlan& plan,
          int ranks_here,
          model::Activations& activations,
          ProfileSession* profile,
          Lasting& lasting)
      : config_(config),
        options_(options),
        fs_(fs),
        world_(world),
        ctx_(ctx),
        beside_(ctx),
        host_(beside_.get()),
        plan_(plan),
        ranks_here_(ranks_here),
        profile_(profile),
        lasting_(lasting),
        position_(parallel::position_of(plan.mesh, world.rank())),
        groups_(parallel::make_groups(plan.mesh, world, plan.dims.kv_replicas())),
        state_(ctx, plan, world.rank()),
        squares_(ctx.device, state_.params().buckets().size() * sizeof(double)),
        gather_(state_.params(), groups_, plan.overlap_gather),
        exchange_(state_.params(), groups_, plan.overlap_reduce),
        background_(gather_, exchange_),
        probe_(state_.params(), plan.specs, activations),
        model_(ctx,
               plan.dims,
               state_.params(),
               groups_,
               activations,
               {&lasting.faults, &probe_, &gather_, &exchange_}),
        batches_(config, plan.dims, plan.mesh.dp, position_.dp, lasting.skipped.ranges),
        device_batch_(ctx.device, plan.dims),
        replicas_(plan, state_, world.rank()),
        rollback_(fs, options.run_directory, config.training, lasting.skipped),
        sums_(std::size_t(plan.catalog.num_moe_layers),
              std::size_t(plan.dims.num_experts),
              plan.dims.expert_bias) {
    if (ValidBatches::configured(config))
      valid_.emplace(config, plan.dims, plan.mesh.dp, position_.dp);
    if (TrainState::keeps_state_in_model(plan.dims)) state_.bind_model(model_);
    ctx_.background = &background_;
  }
  ~Trainer() { ctx_.background = nullptr; }
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// Nothing: a rollback is agreed, and another object is to go on from lasting.newest_step.
  std::optional<ExitCode> run() {
    model::initialise(ctx_, state_.params(), std::uint64_t(config_.training.seed));
    enter(RunPhase::kRecovering);
    recover();
    enter(RunPhase::kTraining);
    Progress progress(is_root() ? options_.out : nullptr,
                      options_.terminal,
                      config_.training.train_iters,
                      config_.logging.log_interval);
    while (step_ < config_.training.train_iters) {
      lasting_.faults.begin_step(Step{step_ + 1});
      if (profile_ != nullptr) {
        const Step last{config_.training.train_iters};
        say_profile(progress, profile_->before_step(ctx_, fs_, Step{step_ + 1}, last));
      }
      const StepRecord record = step();
      if (is_root()) {
        metrics_->write(record);
        progress.show(record);
      }
      note_saves();
      if (rollback_.due()) {
        progress.say(roll_back());
        return {};
      }
      const std::int64_t hashed = config_.logging.content_hash_interval;
      if (hashed > 0 && step_ % hashed == 0) write_content(Content::kTrained);
      const bool last = step_ == config_.training.train_iters;
      if (valid_ && (last || (config_.training.eval_interval > 0 &&
                              step_ % config_.training.eval_interval == 0))) {
        const ValidRecord valid = evaluate();
        if (is_root()) {
          metrics_->write(valid);
          progress.show(valid);
        }
      }
      if (stop_agreed_ && !last) {
        finish();
        finish_profile(progress);
        progress.say(fmt::format(
            "stopped on request after step {}; continue with --resume-from-failure", step_));
        return ExitCode::kStoppedOnRequest;
      }
    }
    finish();
    finish_profile(progress);
    if (checkpointer_) checkpointer_->release_memory();
    enter(RunPhase::kDone);
    return ExitCode::kDone;
  }

 private:
  [[nodiscard]] bool is_root() const { return world_.rank().value == 0; }

  [[nodiscard]] ProfileSpan phase(std::string_view name) const {
    return {ctx_.profile, {.kind = SpanKind::kPhase, .name = name}};
  }

  static void say_profile(Progress& progress, const std::string& table) {
    if (!table.empty()) progress.say(table);
  }

  void finish_profile(Progress& progress) {
    if (profile_ != nullptr) say_profile(progress, profile_->finish(ctx_, fs_));
  }

  void enter(RunPhase phase) {
    if (options_.heartbeat != nullptr) options_.heartbeat->enter(phase);
  }

  void say(const std::string& text) {
    if (is_root() && options_.out != nullptr) *options_.out << text << std::endl;
  }

  void recover() {
    const std::function<void()> initialise = [this] {
      model::initialise(ctx_, state_.params(), std::uint64_t(config_.training.seed));
    };
    recovered_ = checkpoint::recover(
        fs_,
        options_.run_directory,
        resume_mode(),
        options_.resume_path,
        plan_.catalog,
        state_.binding(),
        host_,
        world_,
        {.memory_dir = config_.checkpoint.memory_dir,
         .node = options_.node,
         .newest_step = lasting_.newest_step,
         .reinitialise = options_.allow_reinit_expert ? initialise : std::function<void()>()});
    if (options_.heartbeat != nullptr) {
      const Status seen = options_.heartbeat->claim(recovered_->identity.incarnation);
      if (!seen.ok())
        PECAN_LOG(kWarn, "[train] who supervises the run cannot see this rank: {}", seen.message);
    }
    const checkpoint::RecoveryReport& report = recovered_->report;
    if (is_root()) {
      write_config();
      metrics_.emplace(options_.run_directory + "/metrics.jsonl", plan_.mesh.world);
    }
    if (report.fresh) {
      say(resume_mode() == checkpoint::ResumeMode::kFreshOnly
              ? fmt::format("fresh start in {}", options_.run_directory)
              : fmt::format("nothing to resume in {}: fresh start", options_.run_directory));
    } else {
      step_ = report.plan.recovery.step.value;
      consumed_samples_ = recovered_->head->consumed_samples;
      if (config_.logging.content_hash_interval > 0) write_content(Content::kRecovered);
      const WeightRestore weights = state_.restore_weights(ctx_, report.plan);
      const LossReport losses = state_.account_for_losses(host_, world_, config_);
      budget_ = budget_after(losses.plt_now);
      restored_ =
          RestoredState{checkpoint::exactness_of(report.plan, plan_.catalog), losses.plt_now};
      if (is_root()) metrics_->write(*recovered_, plan_.catalog, weights, losses, budget_);
      say(describe(*recovered_, plan_.catalog, weights, losses));
      say(describe(budget_, config_));
    }
    model_.gather_default_vectors(ctx_);
    begin_watching();
    gather_.start(ctx_);
    if (!config_.checkpoint.save_interval.never()) {
      if (recovered_->must_secure) {
        note_save(checkpoint::secure(*recovered_,
                                     fs_,
                                     options_.run_directory,
                                     config_.checkpoint,
                                     plan_.catalog,
                                     state_.binding(),
                                     facts(),
                                     host_,
                                     world_));
        say("the recovered state is in storage too, so the snapshots it came from may go");
        // Of the losses that the recovery has booked too.
        if (config_.logging.content_hash_interval > 0) write_content(Content::kTrained);
      }
      const auto memory =
          report.fresh
              ? plan_.snapshots
              : checkpoint::plan_snapshot_memory(
                    plan_.catalog, config_.checkpoint, budget_, recovered_->manifest.has_value());
      replication_factor_ = replication_factor();
      check_memory_directory(memory);
      checkpointer_.emplace(lasting_.faults.disk(),
                            options_.run_directory,
                            config_.checkpoint,
                            plan_.catalog,
                            state_.binding(),
                            world_.rank(),
                            checkpoint::CheckpointerStart{
                                .identity = recovered_->identity,
                                .recovered = recovered_->manifest,
                                .kept = recovered_->kept,
                                .budget = budget_,
                                .memory = memory,
                                .node_of_rank = recovered_->node_of_rank,
                                .state_device = ctx_.device,
                                .replication = {replication_factor_, &host_, &world_},
                                .routed = {state_.routed().begin(), state_.routed().end()},
                                .profiler = profile_ != nullptr ? &profile_->profiler() : nullptr,
                                .on_phase = [this](checkpoint::SavePhase phase, Step step) {
                                  lasting_.faults.in_phase(phase, step);
                                }});
    }
  }

  /// Nodes that keep each snapshot. A start on fewer nodes than that is a mistake where a run
  /// begins, but must not keep a run from going on that has lost its nodes.
  [[nodiscard]] int replication_factor() const {
    const int wanted = config_.checkpoint.replication_factor;
    const int nodes =
        int(std::set<std::string>(recovered_->node_of_rank.begin(), recovered_->node_of_rank.end())
                .size());
    if (recovered_->report.fresh || wanted <= nodes) return wanted;
    if (is_root()) {
      PECAN_LOG(
          kWarn,
          "[train] checkpoint.replication_factor={}, but the ranks of this start are on {} "
          "node{}: {}; restart on more nodes to be as safe as before",
          wanted,
          nodes,
          nodes == 1 ? "" : "s",
          nodes == 1
              ? std::string("snapshots in memory have no copy, and the loss of the node loses them")
              : fmt::format("each snapshot is kept on {} only", nodes));
    }
    return nodes;
  }

  /// Refuses memory directories that are unfit before anything is reserved in them. Collective.
  void check_memory_directory(std::span<const checkpoint::SnapshotMemory> memory) {
    if (config_.checkpoint.non_persistent_save_interval.never()) return;
    std::uint64_t largest = 0;
    for (const checkpoint::SnapshotMemory& rank : memory)
      largest = std::max(largest, checkpoint::memory_dir_bytes(rank));
    const checkpoint::MemoryCheck found = checkpoint::check_memory_directory(
        config_.checkpoint.memory_dir,
        largest * std::uint64_t(ranks_here_) * std::uint64_t(replication_factor_),
        recovered_->identity.run_id);
    if (is_root()) {
      for (const std::string& warning : found.warnings) PECAN_LOG(kWarn, "[train] {}", warning);
    }
    std::int64_t first_unfit = found.errors.empty() ? world_.size() : world_.rank().value;
    world_
        .all_reduce(
            host_, view_of(std::span(&first_unfit, 1)), ReduceOp::kMin, {Purpose::kCheckpointVote})
        .wait();
    if (first_unfit == world_.size()) return;
    // Rank 0 speaks for all, and the first to end ends the others.
    const Rank unfit{std::int32_t(first_unfit)};
    throw CheckpointError(fmt::format(
        "the node of rank {} cannot hold snapshots in memory: {}",
        unfit,
        from_rank(host_, world_, unfit, fmt::format("{}", fmt::join(found.errors, "; ")))));
  }

  /// Experts a checkpoint from here on, after a recovery that lost `plt`.
  [[nodiscard]] checkpoint::ExpertBudget budget_after(double plt) const {
    const config::PecConfig& pec = config_.checkpoint.pec;
    const checkpoint::ExpertBudget configured = checkpoint::first_expert_budget(
        pec.experts_per_checkpoint, pec.experts_per_snapshot, pec.plt_budget);
    checkpoint::ExpertBudget budget = recovered_->head->budget;
    if (budget.checkpoint == 0) budget = configured;
    if (!pec.dynamic_k) {
      budget.checkpoint = configured.checkpoint;
      budget.snapshot = configured.snapshot;
      budget.lost += plt;
      return budget;
    }
    budget.checkpoint = std::max(budget.checkpoint, configured.checkpoint);
    budget.snapshot = std::max(budget.snapshot, configured.snapshot);
    return checkpoint::after_recovery(budget, plt, pec.plt_budget, config_.moe.num_experts);
  }

  enum class Content : std::uint8_t { kTrained, kRecovered };

  /// Collective.
  void write_content(Content content) {
    gather_.finish();
    const std::vector<std::uint64_t> hashes =
        content_hashes(host_, world_, plan_.catalog, state_.binding());
    if (is_root()) {
      metrics_->write_content(recovered_->identity.incarnation,
                              Step{step_},
                              content == Content::kRecovered,
                              plan_.catalog,
                              hashes);
    }
  }

  void write_config() {
    const Status status = write_text_atomically(
        fs_, options_.run_directory + "/config.yaml", config::dump_config(config_));
    PECAN_VALIDATE(status.ok(), CheckpointError, "{}", status.message);
  }

  [[nodiscard]] checkpoint::ResumeMode resume_mode() const {
    return lasting_.newest_step ? checkpoint::ResumeMode::kFromFailure : options_.resume;
  }

  /// Faults and what is made of them, from the state that is there now. Collective.
  void begin_watching() {
    const checkpoint::RunIdentity& identity = recovered_->identity;
    lasting_.faults.begin_start(host_, world_, identity.incarnation);
    const std::string passed_over = rollback_.begin(
        host_, world_, identity, Step{step_}, consumed_samples_, !recovered_->report.fresh);
    if (!passed_over.empty()) say(passed_over);
    if (replica_interval() > 0 && replicas_.num_blocks() == 0 && is_root()) {
      PECAN_LOG(
          kWarn,
          "[train] training.check_weight_hash_across_dp_replicas_interval={} compares nothing: "
          "no two ranks hold the same parameters in this layout",
          replica_interval());
    }
  }

  [[nodiscard]] std::int64_t replica_interval() const {
    return config_.training.check_weight_hash_across_dp_replicas_interval;
  }

  /// All tokens of the global batch over those that are learned: with it the loss is the mean over
  /// the latter, however the batch is cut.
  double masked_loss_weight() {
    // Ranks of tp have the same tokens.
    std::int64_t learned = position_.tp == 0 ? batches_.learned_tokens(consumed_samples_) : 0;
    world_
        .all_reduce(host_, view_of(std::span(&learned, 1)), ReduceOp::kSum, {Purpose::kLossWeight})
        .wait();
    const double tokens =
        double(config_.training.global_batch_size) * double(config_.training.seq_length);
    return learned > 0 ? tokens / double(learned) : 0;
  }

  void forward_backward() {
    sums_.clear();
    lasting_.faults.begin_pass(state_.params());
    model_.begin_step(ctx_);
    exchange_.begin_step(ctx_);
    const double scale = parallel::gradient_scale(plan_.mesh, plan_.num_micro_batches);
    const double share = scale / double(plan_.dims.tokens());
    const double loss_weight = batches_.masks_tokens() ? masked_loss_weight() : 1;
    for (int micro = 0; micro < plan_.num_micro_batches; ++micro) {
      model::Batch batch = [&] {
        const ProfileSpan timed = phase("data");
        return device_batch_.of(ctx_, batches_.load(consumed_samples_, micro));
      }();
      batch.loss_weight = loss_weight;
      exchange_.begin_micro_batch(micro + 1 == plan_.num_micro_batches
                                      ? parallel::MicroBatch::kLast
                                      : parallel::MicroBatch::kMoreFollow);
      probe_.begin_micro_batch(micro);
      const model::BatchResult result = model_.forward_backward(ctx_, batch, scale);
      probe_.loss(result.loss_sum);
      sums_.loss() += result.loss_sum * share * loss_weight;
      for (std::size_t layer = 0; layer < result.routing.size(); ++layer) {
        sums_.aux_loss() += result.routing[layer].aux_loss * scale / double(result.routing.size());
        sums_.z_loss() += result.routing[layer].z_loss * scale / double(result.routing.size());
        sums_.dropped() += double(result.routing[layer].dropped_slots);
        sums_.chunks_added() += result.routing[layer].dispatch_chunks - 1;
        const auto counts = model_.expert_counts(int(layer));
        for (std::size_t e = 0; e < counts.size(); ++e)
          sums_.slots()[layer * counts.size() + e] += double(counts[e]);
        if (sums_.chosen().empty()) continue;
        const auto chosen = model_.chosen_counts(int(layer));
        for (std::size_t e = 0; e < chosen.size(); ++e)
          sums_.chosen()[layer * chosen.size() + e] += double(chosen[e]);
      }
    }
  }

  void sum_over_ranks() {
    const ProfileSpan timed = phase("norms");
    sums_.loss() *= lasting_.faults.loss_factor();
    const parallel::ParamSet& params = state_.params();
    // The shares of data-parallel ranks, whether or not anything is sharded: the same bits.
    const auto num_buckets = std::int64_t(params.buckets().size());
    const TensorView squares_B{squares_.data(), DType::kF64, Shape{num_buckets}};
    ops::fill(ctx_, 0, squares_B);
    for (std::int64_t b = 0; b < num_buckets; ++b) {
      const parallel::Bucket& bucket = params.buckets()[std::size_t(b)];
      if (params.counts(bucket))
        ops::sum_of_squares(ctx_, params.summed_share(bucket), squares_B.rows(b, 1));
    }
    const device::HostCopy<double> found(ctx_, squares_B);
    for (std::int64_t b = 0; b < num_buckets; ++b) {
      const parallel::Bucket& bucket = params.buckets()[std::size_t(b)];
      const double squares = found.values()[std::size_t(b)];
      (bucket.expert ? sums_.expert_squares() : sums_.dense_squares()) += squares;
      // Squares of finite f32 do not overflow a double: a second pass only where it finds
      // something.
      if (!std::isfinite(squares))
        sums_.non_finite() += double(ops::count_non_finite(ctx_, params.summed_share(bucket)));
    }
    world_.all_reduce(host_, view_of(sums_.all()), ReduceOp::kSum, {Purpose::kGradNorm}).wait();
  }

  enum class StopVote : std::uint8_t { kAsk, kDoNotAsk };

  /// The one decision round: every rank learns the same about stopping and about saves.
  void exchange_flags(StopVote stop_vote) {
    const ProfileSpan timed = phase("vote");
    Flags flags{};
    flags[kRunOn] = stop_vote == StopVote::kAsk && wants_to_stop() ? 0 : 1;
    if (checkpointer_) std::ranges::copy(checkpointer_->vote(), flags.begin() + kFirstVote);
    world_.all_reduce(host_, view_of(std::span(flags)), ReduceOp::kMin, {Purpose::kStepFlags})
        .wait();
    stop_agreed_ = stop_agreed_ || flags[kRunOn] == 0;
    if (checkpointer_) {
      checkpoint::Vote vote;
      std::copy_n(flags.begin() + kFirstVote, vote.size(), vote.begin());
      checkpointer_->observe(vote);
    }
  }

  [[nodiscard]] bool wants_to_stop() const {
    const config::TrainingConfig& training = config_.training;
    const bool interval = training.exit_interval > 0 && (step_ + 1) % training.exit_interval == 0;
    const bool duration = training.exit_duration_in_mins > 0 &&
                          ms_since(lasting_.started) > training.exit_duration_in_mins * 60'000.0;
    return stop_requested != 0 || interval || duration;
  }

  /// Computes the step once more, looking at every tensor. Collective.
  [[nodiscard]] std::string locate_divergence() {
    const StepSums kept = sums_;
    model_.undo_step(ctx_);
    probe_.arm(ctx_);
    forward_backward();
    exchange_.finish(ctx_);
    probe_.disarm();
    sums_ = kept;
    return probe_.report(host_, world_);
  }

  /// Runs `body`. A DivergenceError of it, which all ranks throw alike, is in the records before
  /// any of them ends the job: whoever starts the run again goes by it. Collective.
  void tell_divergence(std::int64_t step,
                       const std::string& reason,
                       bool repeatable,
                       const std::function<void()>& body) {
    try {
      body();
    } catch (const DivergenceError&) {
      (void)from_root(host_, world_, [&]() -> std::string {
        metrics_->write(
            DivergenceRecord{recovered_->identity.incarnation, Step{step}, reason, repeatable});
        return {};
      });
      throw;
    }
  }

  /// Whether the step's numbers are to be believed, and what follows by the policy where they are
  /// not. From sums over all ranks, so the same on each. Collective.
  void judge(StepRecord& record) {
    const config::TrainingConfig& training = config_.training;
    std::string what;
    if (record.non_finite > 0 || !std::isfinite(record.loss) || !std::isfinite(record.grad_norm)) {
      record.skip_reason = "non_finite";
      record.bad_tensor = locate_divergence();
      what = describe_non_finite(record);
    } else if (losses_.is_spike(record.loss, training.spiky_loss_sigmas)) {
      record.skip_reason = "spike";
      what = losses_.describe_spike(record.loss, training.spiky_loss_sigmas);
    }
    record.skipped = !record.skip_reason.empty();
    rollback_.judged(Step{step_ + 1}, record.skipped);
    record.skips_in_row = rollback_.skips_in_row();
    if (!record.skipped) {
      losses_.accept(record.loss);
      return;
    }
    const bool by_hardware = record.skip_reason == "non_finite" && record.bad_tensor.empty();
    tell_divergence(step_ + 1, record.skip_reason, !by_hardware, [&] {
      PECAN_VALIDATE(training.check_for_nan_in_loss_and_grad == config::NanPolicy::kSkip,
                     DivergenceError,
                     "step {} {}; training stops by training.check_for_nan_in_loss_and_grad=stop "
                     "(lower optimizer.lr, or set it to skip)",
                     step_ + 1,
                     what);
    });
    if (is_root()) PECAN_LOG(kWarn, "[train] step {} {}; its update is skipped", step_ + 1, what);
  }

  /// Leaves things so that another object goes on before the skipped steps, and says it.
  /// DivergenceError if that is not to be. Collective.
  [[nodiscard]] std::string roll_back() {
    gather_.finish();
    settle_saves();
    note_saves();
    const RollbackRecord record = rollback_.roll_back(
        host_, world_, [&](const RollbackRecord& written) { metrics_->write(written); });
    tell_divergence(step_, "rollbacks", /*repeatable=*/true, [&] { rollback_.check(record); });
    lasting_.newest_step = Step{record.first_skipped.value - 1};
    return describe(record);
  }

  StepRecord step() {
    const auto start = Clock::now();
    const std::vector<comm::Traffic> before = traffic(groups_);
    world_.set_step(Step{step_ + 1});
    const ProfileSpan timed(ctx_.profile,
                            {.kind = SpanKind::kStep, .name = "step", .step = Step{step_ + 1}});
    forward_backward();
    {
      const ProfileSpan exchange = phase("exchange");
      exchange_.finish(ctx_);
      gather_.finish();
    }
    sum_over_ranks();
    exchange_flags(StopVote::kAsk);

    StepRecord record;
    record.incarnation = recovered_->identity.incarnation;
    record.loss = sums_.loss();
    record.aux_loss = sums_.aux_loss();
    record.z_loss = sums_.z_loss();
    record.grad_norm_dense = std::sqrt(sums_.dense_squares());
    record.grad_norm_expert = std::sqrt(sums_.expert_squares());
    record.grad_norm = std::sqrt(sums_.dense_squares() + sums_.expert_squares());
    record.non_finite = std::int64_t(sums_.non_finite());
    record.lr = optim::learning_rate(config_.optimizer, step_);
    judge(record);
    const double factor = optim::clip_factor(config_.optimizer.clip_grad, record.grad_norm);
    record.clip_norm = factor < 1 ? record.grad_norm : config_.optimizer.clip_grad;

    forward_backward_ms_ = ms_since(start);
    double stall_ms = 0;
    if (checkpointer_) {
      const ProfileSpan wait = phase("wait for snapshot");
      stall_ms = checkpointer_->before_update();  // (A)
    }
    if (record.skipped) {
      model_.undo_step(ctx_);
    } else {
      const ProfileSpan update = phase("update");
      state_.optimizer().update(ctx_, config_.optimizer, record.lr, factor);
      gather_.start(ctx_);
      std::vector<std::int64_t> slots(sums_.slots().size());
      std::ranges::transform(
          sums_.slots(), slots.begin(), [](double count) { return std::int64_t(count); });
      state_.count_tokens(slots);
      update_expert_bias();
    }
    if (lasting_.faults.flips()) {
      gather_.finish();
      lasting_.faults.flip_weight(ctx_, state_.params().params(), replicas_.shared_weights());
    }
    ++step_;
    consumed_samples_ = batches_.position_after(consumed_samples_);
    rollback_.stepped(Step{step_}, consumed_samples_);
    // Before a save: what is written was compared.
    if (replica_interval() > 0 && step_ % replica_interval() == 0) {
      gather_.finish();
      tell_divergence(step_, "replicas", /*repeatable=*/false, [&] {
        replicas_.compare(ctx_, world_, Step{step_});
      });
    }
    const bool last = stop_agreed_ || step_ == config_.training.train_iters;  // finish() saves it
    if (checkpointer_ && !rollback_.due() && !rollback_.holds_saves() && !last) {  // (B)
      const ProfileSpan begin_save = phase("begin save");
      stall_ms += checkpointer_->after_update(facts());
      if (!config_.checkpoint.async_save && last_saved_step() == step_) {
        const auto settling = Clock::now();
        settle_saves();
        stall_ms += ms_since(settling);
      }
    }

    record.step = Step{step_};
    record.tokens = std::int64_t(config_.training.global_batch_size) * config_.training.seq_length;
    record.consumed_samples = consumed_samples_;
    record.step_ms = ms_since(start);
    record.tokens_per_s = double(record.tokens) / record.step_ms * 1000;
    record.ckpt_stall_ms = stall_ms;
    record.plt = state_.plt(planned_slots(config_, plan_));
    record.load_max_over_mean = load_imbalance();
    record.dispatch_chunks_added = std::int64_t(sums_.chunks_added());
    record.dropped_slots = std::int64_t(sums_.dropped());
    record.traffic =
        traffic_between(before, traffic(groups_), plan_.sent[std::size_t(world_.rank().value)]);
    return record;
  }

  void update_expert_bias() {
    if (!plan_.dims.expert_bias) return;
    const std::size_t experts = std::size_t(plan_.dims.num_experts);
    for (int layer = 0; layer < plan_.catalog.num_moe_layers; ++layer) {
      model::update_expert_bias(model_.moe_layer(layer).expert_bias(),
                                sums_.chosen().subspan(std::size_t(layer) * experts, experts),
                                config_.moe.moe_router_bias_update_rate);
    }
  }

  [[nodiscard]] double load_imbalance() {
    double worst = 0;
    const std::size_t experts = std::size_t(plan_.dims.num_experts);
    for (std::size_t first = 0; first < sums_.slots().size(); first += experts) {
      const auto layer = sums_.slots().subspan(first, experts);
      double sum = 0;
      for (const double count : layer) sum += count;
      if (sum > 0)
        worst = std::max(worst, *std::ranges::max_element(layer) * double(experts) / sum);
    }
    return worst;
  }

  [[nodiscard]] checkpoint::StepFacts facts() const {
    return {Step{step_},
            consumed_samples_,
            manifest_extra(config_, plan_, state_, budget_, restored_),
            {state_.routed().begin(), state_.routed().end()},
            forward_backward_ms_};
  }

  ValidRecord evaluate() {
    const ProfileSpan timed = phase("evaluate");
    double loss = 0;
    for (int i = 0; i < valid_->num_batches(); ++i)
      loss += model_.forward(ctx_, device_batch_.of(ctx_, valid_->load(i))).loss_sum;
    // Every dp position has its own windows, and the first rank of tp tells their loss.
    world_.all_reduce(host_, view_of(std::span(&loss, 1)), ReduceOp::kSum, {Purpose::kEvaluation})
        .wait();
    ValidRecord record;
    record.incarnation = recovered_->identity.incarnation;
    record.step = Step{step_};
    record.tokens = valid_->predicted_tokens();
    record.loss = loss / double(record.tokens);
    record.bits_per_byte =
        valid_->text_bytes() > 0 ? loss / (double(valid_->text_bytes()) * std::numbers::ln2) : NAN;
    return record;
  }

  void note_saves() {
    if (!checkpointer_) return;
    for (const checkpoint::SaveRecord& save : checkpointer_->take_records()) note_save(save);
  }

  void note_save(const checkpoint::SaveRecord& save) {
    if (is_root()) metrics_->write(recovered_->identity.incarnation, save);
    lasting_.faults.saved(options_.run_directory, save);
    rollback_.saved(save);
  }

  /// Votes until no rank has a save under way.
  void settle_saves() {
    const auto start = Clock::now();
    const auto limit = std::chrono::seconds(config_.comm.timeout_s);
    while (true) {
      std::int64_t idle = checkpointer_->busy() ? 0 : 1;
      world_
          .all_reduce(
              host_, view_of(std::span(&idle, 1)), ReduceOp::kMin, {Purpose::kCheckpointVote})
          .wait();
      if (idle == 1) return;
      exchange_flags(StopVote::kDoNotAsk);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      PECAN_VALIDATE(Clock::now() - start < limit,
                     CheckpointError,
                     "a save was not durable after {} s (comm.timeout_s); the newest committed "
                     "checkpoint stays valid",
                     config_.comm.timeout_s);
    }
  }

  /// The last state is saved, and saves under way come to an end that all ranks have seen.
  void finish() {
    enter(RunPhase::kDraining);
    gather_.finish();
    if (!checkpointer_) return;
    settle_saves();
    note_saves();
    if (last_saved_step() == step_) return;
    // Room for the buffer of everything; snapshots in memory stay until it is in storage.
    if (config_.checkpoint.non_persistent_save_interval.never()) checkpointer_.reset();
    // Planned ends lose nothing, so they hold all experts.
    const checkpoint::FullSave saved = checkpoint::save_full(lasting_.faults.disk(),
                                                             options_.run_directory,
                                                             config_.checkpoint,
                                                             plan_.catalog,
                                                             state_.binding(),
                                                             recovered_->identity,
                                                             recovered_->node_of_rank,
                                                             budget_,
                                                             facts(),
                                                             host_,
                                                             world_);
    note_save(saved.record);
    if (saved.status.ok()) return;
    // All have failed alike, and the first to end ends the others: not before the record is
    // written.
    (void)from_root(host_, world_, [] { return std::string(); });
    throw CheckpointError(saved.status.message);
  }

  [[nodiscard]] std::int64_t last_saved_step() const { return checkpointer_->last_started().value; }

  const config::Config& config_;
  const RunOptions& options_;
  FileSystem& fs_;
  comm::Group& world_;
  Context& ctx_;  ///< where the model is
  device::HostContext beside_;
  Context& host_;  ///< for what the host alone has; with training on the CPU the same
  const TrainPlan& plan_;
  int ranks_here_;           ///< on this node
  ProfileSession* profile_;  ///< may be none
  Lasting& lasting_;
  parallel::MeshPosition position_;
  parallel::MeshGroups groups_;
  TrainState state_;
  device::Buffer squares_;  ///< of the gradients, by bucket
  parallel::WeightGather gather_;
  parallel::GradientExchange exchange_;
  parallel::StepBackground background_;
  TensorProbe probe_;
  model::Transformer model_;
  TrainBatches batches_;
  DeviceBatch device_batch_;
  int replication_factor_ = 1;  ///< of this start
  ReplicaCheck replicas_;
  RollbackKeeper rollback_;
  LossWindow losses_;
  std::optional<ValidBatches> valid_;
  StepSums sums_;
  std::optional<checkpoint::Recovered> recovered_;
  std::optional<checkpoint::Checkpointer> checkpointer_;
  std::optional<MetricsWriter> metrics_;
  checkpoint::ExpertBudget budget_;        ///< K in force; K = 0 in a fresh run: as configured
  std::optional<RestoredState> restored_;  ///< what this start continues from
  double forward_backward_ms_ = 0;         ///< of the last step: what a snapshot can hide under
  std::int64_t step_ = 0;
  std::int64_t consumed_samples_ = 0;
  bool stop_agreed_ = false;
};

/// What of a model a device has no kernels for; empty: nothing.
std::string without_kernels(const model::ModelDims& dims, const device::DeviceProperties& device) {
  const std::string missing =
      ops::describe_missing_attention(dims.head_dim, dims.dtype, device.shared_bytes);
  return missing.empty() ? missing
                         : fmt::format("model.kv_channels={}: {}", dims.head_dim, missing);
}

}  // namespace

void request_stop() noexcept {
  stop_requested = 1;
}

ExitCode run(const config::Config& config,
             const RunOptions& options,
             FileSystem& fs,
             comm::Group& job) {
  config::Config placed = config;
  device::Stream host_stream{device::cpu()};
  device::Arena no_workspace;
  Context at_start{device::cpu(), host_stream, no_workspace};
  // Refused before anything is exchanged, alike on all ranks.
  const model::ModelDims dims = make_plan(config, resolve_vocab_size(config), job.size()).dims;
  if (options.heartbeat != nullptr) options.heartbeat->start();
  Lasting lasting{FaultInjector(at_start, job, config, fs)};
  const Placement placement = place_threads(at_start, job, config.training.threads);
  if (!placement.complaint.empty()) PECAN_LOG(kWarn, "[train] {}", placement.complaint);
  const device::Device where = choose_device(
      at_start, job, config.training.device, placement, [&](const device::DeviceProperties& found) {
        return without_kernels(dims, found);
      });
  const bool on_cpu = where.kind == device::DeviceKind::kCpu;
  const std::unique_ptr<comm::Group> between_devices =
      on_cpu ? nullptr : comm::make_device_group(job, where, options.device_groups);
  comm::Group& untimed = between_devices ? *between_devices : job;
  const std::unique_ptr<comm::Group> timed =
      options.profile ? comm::make_profiled_group(untimed) : nullptr;
  comm::Group& world = timed ? *timed : untimed;
  placed.training.threads = placement.threads;
  placed.training.device = on_cpu ? config::DeviceChoice::kCpu : config::DeviceChoice::kCuda;
  const TrainPlan plan = make_plan(placed, resolve_vocab_size(config), world.size());
  if (world.rank().value == 0 && options.out != nullptr) {
    *options.out << describe(plan)
                 << fmt::format(
                        "threads     {} a rank; {} ranks on the {} cores of the first host\n",
                        placement.threads,
                        placement.ranks_here,
                        placement.cores_here);
    if (!on_cpu)
      *options.out << fmt::format("device      {}\n",
                                  where.backend->properties(where.ordinal).name);
    *options.out << std::flush;
  }
  const RankMemory& memory = plan.memory[std::size_t(world.rank().value)];
  device::Arena workspace(where, memory.workspace);
  device::Arena arena(where, memory.activations);
  device::Stream stream{where};
  stream.prepare_products();
  std::optional<ProfileSession> profile;
  if (options.profile) {
    profile.emplace(
        at_start, world, *options.profile, options.run_directory, where.kind, placement.threads);
  }
  Context ctx{where, stream, workspace, placement.threads};
  model::Activations activations = model::Activations::plan(plan.dims, arena);
  while (true) {
    Trainer trainer(config,
                    options,
                    fs,
                    world,
                    ctx,
                    plan,
                    placement.ranks_here,
                    activations,
                    profile ? &*profile : nullptr,
                    lasting);
    if (const std::optional<ExitCode> code = trainer.run()) return *code;
  }
}

}  // namespace pecan::train
