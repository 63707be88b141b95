#include "train/fault_injector.hpp"

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/ranges.h>
#include <unistd.h>

#include <pecan/core/log.hpp>
#include <pecan/core/philox.hpp>

#include <pecan/device/copy.hpp>

#include <pecan/checkpoint/shard.hpp>

#include "train/agreement.hpp"

namespace pecan::train {
namespace {

using config::Fault;
using config::FaultKind;

/// One of `count` things, by the fault's seed.
std::int64_t choose(std::uint64_t seed,
                    std::string_view what,
                    std::uint64_t element,
                    std::int64_t count) {
  return std::int64_t(philox_uniform(seed, stream_of(what), element) * double(count));
}

std::string host_name() {
  std::string name(256, '\0');
  // A name that is cut short has no end.
  if (::gethostname(name.data(), name.size() - 1) != 0) return {};
  name.resize(std::strlen(name.c_str()));
  return name;
}

bool ends_process(FaultKind kind) {
  return kind == FaultKind::kKill || kind == FaultKind::kStop || kind == FaultKind::kExit;
}

bool needs_checkpoints(const Fault& fault) {
  return !fault.phase.empty() || fault.kind == FaultKind::kCorrupt ||
         fault.kind == FaultKind::kFillDisk || fault.kind == FaultKind::kSlowDisk;
}

/// Bits of an element's fraction: flipping one of them changes a number and never makes it
/// infinite or NaN.
int fraction_bits(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return 52;
    case DType::kBF16:
      return 7;
    default:
      return 23;
  }
}

/// The element of a stored parameter, as a tensor of one.
TensorView element_of(const device::ParamStorage& storage, std::int64_t stored) {
  return storage.flat().rows(stored, 1);
}

void set_nan(Context& ctx, const TensorView& element) {
  double f64 = std::numeric_limits<double>::quiet_NaN();
  float f32 = std::numeric_limits<float>::quiet_NaN();
  device::upload(
      ctx.stream,
      element.dtype == DType::kF64 ? view_of(std::span(&f64, 1)) : view_of(std::span(&f32, 1)),
      element);
}

void flip_bit(Context& ctx, const TensorView& element, std::int64_t bit) {
  std::array<std::byte, sizeof(double)> bytes{};
  const TensorView host{bytes.data(), element.dtype, element.shape};
  device::download(ctx.stream, element, host);
  ctx.stream.synchronize();
  bytes[std::size_t(bit / 8)] ^= std::byte(1 << (bit % 8));
  device::upload(ctx.stream, host, element);
}

/// Whether the parameter has elements on this rank, padding left out.
bool has_elements(const parallel::Param& param) {
  return param.block.extent.num_elements() > 0;
}

/// Where `bytes` stand in the file; nothing if they do not.
std::optional<std::uint64_t> find_in_file(File& file, std::span<const std::byte> bytes) {
  const Result<std::uint64_t> size = file.size();
  if (!size.ok()) return {};
  std::vector<std::byte> all(std::size_t(size.value()));
  const Result<std::size_t> read = file.read_at(0, all);
  if (!read.ok()) return {};
  const auto found = std::search(all.begin(), all.end(), bytes.begin(), bytes.end());
  if (found == all.end()) return {};
  return std::uint64_t(found - all.begin());
}

/// Flips a bit in the middle of one block's data; returns what was flipped, or the failure.
Result<std::string> corrupt_shard(FileSystem& fs, const std::string& path, std::uint64_t seed) {
  std::vector<std::byte> data;
  checkpoint::ShardBlock chosen;
  {
    checkpoint::ShardReader reader(fs, path);
    if (Status status = reader.open(); !status.ok()) return status;
    Result<std::vector<checkpoint::ShardBlock>> blocks = reader.list();
    if (!blocks.ok()) return blocks.status();
    // Counters are a few bytes that may stand in the file twice.
    std::erase_if(blocks.value(),
                  [](const checkpoint::ShardBlock& block) { return block.dtype == DType::kI64; });
    if (blocks.value().empty())
      return Status::failure(StatusCode::kNotFound, fmt::format("{} holds no tensor", path));
    chosen = blocks.value()[std::size_t(
        choose(seed, "fault block", 0, std::int64_t(blocks.value().size())))];
    data.resize(std::size_t(chosen.block.extent.num_elements()) * size_of(chosen.dtype));
    if (Status status = reader.read(chosen, data); !status.ok()) return status;
  }
  Result<std::unique_ptr<File>> file = fs.open(path, OpenMode::kReadWrite);
  if (!file.ok()) return file.status();
  const std::optional<std::uint64_t> begin = find_in_file(*file.value(), data);
  if (!begin) {
    return Status::failure(StatusCode::kNotFound,
                           fmt::format("{} does not hold {} in one piece", path, chosen.item));
  }
  const std::size_t middle = data.size() / 2;
  const auto bit = choose(seed, "fault bit", 0, 8);
  data[middle] ^= std::byte(1 << bit);
  if (Status status = file.value()->write_at(*begin + middle, std::span(data).subspan(middle, 1));
      !status.ok())
    return status;
  if (Status status = file.value()->sync(); !status.ok()) return status;
  return fmt::format(
      "bit {} of byte {} of {} ({})", bit, *begin + middle, path, chosen.dataset_path());
}

}  // namespace

bool ResolvedFault::strikes(Rank this_rank, std::string_view host) const {
  if (!fault.node.empty()) return fault.node == host;
  return rank == Fault::kEveryRank || rank == this_rank.value;
}

std::string ResolvedFault::text() const {
  const std::string where = !fault.node.empty()         ? fmt::format("host {}", fault.node)
                            : rank == Fault::kEveryRank ? "every rank"
                                                        : fmt::format("rank {}", rank);
  const bool from_then_on = needs_checkpoints(fault);
  return fmt::format("{} {} step {}{} on {}",
                     name_of(fault.kind),
                     from_then_on ? "from" : "at",
                     step,
                     fault.phase.empty() ? "" : fmt::format(" in phase {}", fault.phase),
                     where);
}

std::vector<ResolvedFault> resolve_faults(std::span<const config::Fault> faults,
                                          Incarnation start,
                                          int world_size) {
  std::vector<ResolvedFault> resolved;
  for (std::size_t i = 0; i < faults.size(); ++i) {
    const Fault& fault = faults[i];
    if (fault.start != Fault::kEveryStart && fault.start != start.value) continue;
    const std::string stream = fmt::format("fault {}", i);
    const auto draw = [&](std::uint64_t which, std::int64_t count) {
      return choose(fault.seed, stream, 2 * std::uint64_t(start.value) + which, count);
    };
    resolved.push_back({fault,
                        fault.first_step + draw(0, fault.last_step - fault.first_step + 1),
                        fault.rank == Fault::kRandomRank ? int(draw(1, world_size)) : fault.rank});
  }
  return resolved;
}

void check_faults(std::span<const config::Fault> faults, const config::Config& config) {
  for (const Fault& fault : faults) {
    PECAN_VALIDATE(!needs_checkpoints(fault) || !config.checkpoint.save_interval.never(),
                   ConfigError,
                   "the fault {} from step {} strikes checkpoints in storage, but "
                   "checkpoint.save_interval=0 writes none; set an interval or take the fault out",
                   name_of(fault.kind),
                   fault.first_step);
    PECAN_VALIDATE(
        fault.first_step <= config.training.train_iters,
        ConfigError,
        "the fault {} at step {} lies behind the last step, training.train_iters={}, and "
        "would never strike; use an earlier step",
        name_of(fault.kind),
        fault.first_step,
        config.training.train_iters);
    PECAN_VALIDATE(
        fault.phase.empty() || fault.first_step < config.training.train_iters,
        ConfigError,
        "the fault {} in phase {} of a save from step {} on would never strike: the last save, at "
        "the end (training.train_iters={}), has no phases; use an earlier step",
        name_of(fault.kind),
        fault.phase,
        fault.first_step,
        config.training.train_iters);
  }
}

FaultInjector::FaultInjector(Context& ctx,
                             comm::Group& world,
                             const config::Config& config,
                             FileSystem& fs)
    : rank_(world.rank()), host_(host_name()), fs_(fs), disk_(fs) {
  // Hosts may differ in what mpirun gave them: one environment counts.
  const std::string environment = from_root(ctx, world, [] {
    const char* value = std::getenv("PECAN_FAULT");
    return std::string(value == nullptr ? "" : value);
  });
  faults_ = config::faults_of(config, environment);
  check_faults(faults_, config);
}

void FaultInjector::begin_start(Context& ctx, comm::Group& world, Incarnation start) {
  disk_.mend();
  pending_.clear();
  if (faults_.empty()) return;
  const std::vector<ResolvedFault> resolved = resolve_faults(faults_, start, world.size());
  std::vector<std::int64_t> struck_ranks;
  std::vector<std::string> texts;
  for (const ResolvedFault& fault : resolved) {
    const bool here = fault.strikes(rank_, host_);
    if (here) pending_.push_back({fault});
    struck_ranks.push_back(here ? 1 : 0);
    texts.push_back(fault.text());
  }
  world
      .all_reduce(
          ctx, view_of(std::span(struck_ranks)), comm::ReduceOp::kSum, {comm::Purpose::kRecovery})
      .wait();
  if (rank_.value != 0) return;
  PECAN_LOG(kWarn,
            "[train] failures are injected on purpose into start {}: {}",
            start,
            texts.empty() ? "none of those configured" : fmt::format("{}", fmt::join(texts, "; ")));
  for (std::size_t i = 0; i < resolved.size(); ++i) {
    if (struck_ranks[i] == 0) {
      PECAN_LOG(
          kWarn,
          "[train] the fault \"{}\" strikes nobody: this start has {} ranks, and none on such "
          "a host",
          texts[i],
          world.size());
    }
  }
}

void FaultInjector::say(const ResolvedFault& resolved, const std::string& what) const {
  PECAN_LOG(
      kWarn, "[train] rank {}: the injected fault \"{}\" strikes{}", rank_, resolved.text(), what);
}

void FaultInjector::end_process(Pending& pending, const std::string& when) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(pending.struck, true)) return;
  }
  say(pending.resolved, when);
  switch (pending.resolved.fault.kind) {
    case FaultKind::kKill:
      std::raise(SIGKILL);
      break;
    case FaultKind::kStop:
      // The whole process, whichever thread this is.
      ::kill(::getpid(), SIGSTOP);
      break;
    default:
      ::_exit(pending.resolved.fault.code);
  }
}

void FaultInjector::begin_step(Step step) {
  step_ = step;
  for (Pending& pending : pending_) {
    const Fault& fault = pending.resolved.fault;
    const std::int64_t at = pending.resolved.step;
    if (ends_process(fault.kind) && fault.phase.empty() && step.value == at)
      end_process(pending, "");
    const bool disk = fault.kind == FaultKind::kFillDisk || fault.kind == FaultKind::kSlowDisk;
    if (!disk || step.value < at || std::exchange(pending.struck, true)) continue;
    say(pending.resolved, "");
    if (fault.kind == FaultKind::kFillDisk) {
      disk_.fill();
    } else {
      disk_.slow_down(fault.bytes_per_s);
    }
  }
}

void FaultInjector::in_phase(checkpoint::SavePhase phase, Step step) {
  for (Pending& pending : pending_) {
    // A save may be skipped, so a phase is that of the first one from the step on.
    if (pending.resolved.fault.phase == checkpoint::name_of(phase) &&
        step.value >= pending.resolved.step)
      end_process(pending, fmt::format(" in the save of step {}", step));
  }
}

FaultInjector::Pending* FaultInjector::due(FaultKind kind) {
  const auto found = std::ranges::find_if(pending_, [&](const Pending& pending) {
    return pending.resolved.fault.kind == kind && pending.resolved.step == step_.value;
  });
  return found == pending_.end() ? nullptr : &*found;
}

void FaultInjector::begin_pass(parallel::ParamSet& params) {
  Pending* nan = due(FaultKind::kNan);
  if (nan == nullptr || (nan->struck && !nan->resolved.fault.repeats)) return;
  std::vector<const parallel::Param*> candidates;
  for (const parallel::Param& param : params.params()) {
    if (has_elements(param)) candidates.push_back(&param);
  }
  poisoned_ = candidates[std::size_t(
      choose(nan->resolved.fault.seed, "fault gradient", 0, std::int64_t(candidates.size())))];
  if (!std::exchange(nan->struck, true))
    say(nan->resolved, fmt::format(": the gradient of {}", poisoned_->spec.name));
}

void FaultInjector::after_backward(Context& ctx, int stage) {
  if (poisoned_ == nullptr || poisoned_->spec.first_stage != stage) return;
  const device::ParamStorage& grad = poisoned_->grad;
  set_nan(ctx, element_of(grad, grad.stored_index(0)));
  poisoned_ = nullptr;
}

double FaultInjector::loss_factor() {
  const Pending* spike = due(FaultKind::kSpike);
  if (spike == nullptr) return 1;
  say(spike->resolved, "");
  return spike->resolved.fault.factor;
}

void FaultInjector::flip_weight(Context& ctx,
                                std::span<parallel::Param> params,
                                std::span<const std::string> replicated) {
  const Pending* flip = due(FaultKind::kFlip);
  if (flip == nullptr) return;
  std::vector<const parallel::Param*> all, shared;
  for (const parallel::Param& param : params) {
    if (!has_elements(param)) continue;
    all.push_back(&param);
    if (std::ranges::count(replicated, param.spec.name) > 0) shared.push_back(&param);
  }
  const auto& candidates = shared.empty() ? all : shared;
  const std::uint64_t seed = flip->resolved.fault.seed;
  const parallel::Param& param =
      *candidates[std::size_t(choose(seed, "fault weight", 0, std::int64_t(candidates.size())))];
  const device::ParamStorage& weight = param.weight;
  const std::int64_t element = choose(seed, "fault weight", 1, param.block.extent.num_elements());
  const auto bit = choose(seed, "fault weight", 2, fraction_bits(weight.dtype()));
  flip_bit(ctx, element_of(weight, weight.stored_index(element)), bit);
  say(flip->resolved, fmt::format(": bit {} of element {} of {}", bit, element, param.spec.name));
}

void FaultInjector::saved(const std::string& run_directory, const checkpoint::SaveRecord& record) {
  if (!record.committed || record.level != checkpoint::SaveLevel::kStorage) return;
  for (Pending& pending : pending_) {
    if (pending.resolved.fault.kind != FaultKind::kCorrupt || pending.struck ||
        record.version.step.value < pending.resolved.step)
      continue;
    const std::string directory = fmt::format(
        "{}/checkpoints/{}", run_directory, checkpoint::step_directory_name(record.version.step));
    std::vector<std::string> shards;
    const Result<std::vector<DirEntry>> entries = fs_.list(directory);
    if (entries.ok()) {
      for (const DirEntry& entry : entries.value()) {
        if (entry.name.starts_with(fmt::format("rank-{:05}.", rank_.value)) &&
            entry.name.ends_with(".h5"))
          shards.push_back(directory + "/" + entry.name);
      }
    }
    if (shards.empty()) {
      PECAN_LOG(kWarn,
                "[train] rank {} has written no shard of step {}: \"{}\" waits for the next "
                "checkpoint",
                rank_,
                record.version.step,
                pending.resolved.text());
      continue;
    }
    const std::uint64_t seed = pending.resolved.fault.seed;
    const Result<std::string> done = corrupt_shard(
        fs_,
        shards[std::size_t(choose(seed, "fault shard", 0, std::int64_t(shards.size())))],
        seed);
    pending.struck = true;
    say(pending.resolved,
        done.ok() ? fmt::format(": {}", done.value())
                  : fmt::format(", but nothing could be changed: {}", done.status().message));
  }
}

}  // namespace pecan::train
