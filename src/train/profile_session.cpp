#include "train/profile_session.hpp"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <tuple>
#include <utility>

#include <pecan/core/file_system.hpp>
#include <pecan/core/log.hpp>

namespace pecan::train {
namespace {

// Without steps to record: the first ones are slower, since their memory is new.
constexpr std::int64_t kWarmUpSteps = 2;
constexpr std::int64_t kRecordedSteps = 10;

double seconds(std::int64_t ns) {
  return double(ns) * 1e-9;
}

/// A rate in units of 10^9, or nothing where there is none.
std::string giga(std::int64_t amount, std::int64_t ns) {
  return amount > 0 && ns > 0 ? fmt::format("{:.1f}", double(amount) / double(ns)) : "";
}

/// The time that the machine needs at least for what a row did, over the time that it took.
std::string share_of_limit(const ProfileRow& row,
                           const std::optional<device::MachineLimits>& limits) {
  if (!limits || row.kind != SpanKind::kOperator || row.self_ns <= 0) return "";
  const double computing = double(row.f32_flops) / limits->flops(DType::kF32) +
                           double(row.f64_flops) / limits->flops(DType::kF64) +
                           double(row.bf16_flops) / limits->flops(DType::kBF16);
  const double moving = double(row.bytes) / limits->memory_bytes;
  const bool computes = computing >= moving;
  return fmt::format("{:.0f}% {}",
                     100 * (computes ? computing : moving) / seconds(row.self_ns),
                     computes ? "flops" : "bytes");
}

void add_rows(std::string& text,
              std::vector<ProfileRow> rows,
              const std::optional<device::MachineLimits>& limits,
              std::int64_t all_ns) {
  std::ranges::sort(rows, [](const ProfileRow& a, const ProfileRow& b) {
    return std::tuple(-a.self_ns, a.name, a.detail) < std::tuple(-b.self_ns, b.name, b.detail);
  });
  for (const ProfileRow& row : rows) {
    const bool collective = row.kind == SpanKind::kCollective;
    std::string name(row.name);
    if (!row.detail.empty()) name += fmt::format(" {}", row.detail);
    // Of what is not an operator, the time outside of the operators in it.
    if (row.kind == SpanKind::kPhase || row.kind == SpanKind::kStep) name += ", rest";
    text += fmt::format("{:<36} {:>8} {:>10.4f} {:>7} {:>9} {:>8} {:>11}\n",
                        name,
                        row.calls,
                        seconds(row.self_ns),
                        all_ns > 0
                            ? fmt::format("{:.1f}%", 100.0 * double(row.self_ns) / double(all_ns))
                            : std::string(),
                        giga(row.flops(), row.self_ns),
                        giga(row.bytes, collective ? row.flight_ns : row.self_ns),
                        share_of_limit(row, limits));
  }
}

}  // namespace

std::string trace_path(const std::string& run_directory, Rank rank) {
  return fmt::format("{}/profile/rank-{:05}.trace.json", run_directory, rank);
}

std::string describe(const std::vector<ProfileRow>& main_rows,
                     const std::vector<ProfileRow>& save_rows,
                     const std::optional<device::MachineLimits>& limits,
                     int threads) {
  const auto step = std::ranges::find(main_rows, SpanKind::kStep, &ProfileRow::kind);
  if (step == main_rows.end()) return "";
  std::int64_t flops = 0;
  for (const ProfileRow& row : main_rows) flops += row.flops();
  std::string text = fmt::format(
      "profile     {} steps of rank 0 with {} threads: {:.4f} s, {} GFLOP/s\n"
      "limits      {}\n"
      "{:<36} {:>8} {:>10} {:>7} {:>9} {:>8} {:>11}\n",
      step->calls,
      threads,
      seconds(step->total_ns),
      giga(flops, step->total_ns),
      limits ? fmt::format("measured at the start: {:.0f} GFLOP/s in fp32, {:.0f} in bf16, {:.1f} "
                           "GB/s",
                           limits->f32_flops * 1e-9,
                           limits->bf16_flops * 1e-9,
                           limits->memory_bytes * 1e-9)
             : "of the device are not measured; each span waits for it, so that nothing overlaps",
      "",
      "calls",
      "seconds",
      "share",
      "GFLOP/s",
      "GB/s",
      "of limit");
  add_rows(text, main_rows, limits, step->total_ns);
  if (!save_rows.empty()) {
    text += "beside the steps, on threads of their own\n";
    add_rows(text, save_rows, limits, 0);
  }
  return text;
}

ProfileSession::ProfileSession(Context& ctx,
                               comm::Group& world,
                               const ProfileOptions& options,
                               std::string run_directory,
                               device::DeviceKind computes_on,
                               int threads)
    : options_(options),
      run_directory_(std::move(run_directory)),
      threads_(threads),
      rank_(world.rank()),
      world_(world.size()) {
  origin_ns_ = std::chrono::duration_cast<std::chrono::nanoseconds>(
                   std::chrono::system_clock::now().time_since_epoch())
                   .count();
  // The earliest clock is everybody's zero; and ranks begin to measure together.
  world
      .all_reduce(
          ctx, view_of(std::span(&origin_ns_, 1)), comm::ReduceOp::kMin, {comm::Purpose::kSetup})
      .wait();
  if (computes_on == device::DeviceKind::kCpu) limits_ = device::measure_limits(threads_);
}

std::string ProfileSession::before_step(Context& ctx, FileSystem& fs, Step next, Step last) {
  if (state_ == State::kOver) return "";
  if (!first_) {
    const std::int64_t first = std::min(next.value + kWarmUpSteps, last.value);
    first_ = options_.first_step.value_or(Step{first});
    last_ = options_.last_step.value_or(Step{first + kRecordedSteps - 1});
  }
  if (next > *last_) return finish(ctx, fs);
  if (next < *first_) return "";
  if (state_ == State::kBefore) {
    state_ = State::kRecording;
    recorded_first_ = next;
    profiler_.start();
    ctx.profile = profiler_.track(ProfileThread::kMain);
    if (ctx.device.kind != device::DeviceKind::kCpu) {
      ctx.profile->settle_with([&stream = ctx.stream] {
        try {
          stream.synchronize();
        } catch (const DeviceError&) {
          // A span's end cannot throw it: the next call of the device fails alike.
        }
      });
    }
  }
  recorded_last_ = std::max(recorded_last_, next);
  return "";
}

std::string ProfileSession::finish(Context& ctx, FileSystem& fs) {
  const State before = std::exchange(state_, State::kOver);
  if (before == State::kOver) return "";
  if (before == State::kBefore) {
    if (rank_.value == 0)
      PECAN_LOG(kWarn,
                "[train] no profile is written: this start trained none of the steps {} to {} "
                "(--profile-steps)",
                first_.value_or(options_.first_step.value_or(Step{})),
                last_.value_or(options_.last_step.value_or(Step{})));
    return "";
  }
  ctx.profile = nullptr;
  profiler_.stop();
  const std::string path = trace_path(run_directory_, rank_);
  Status status = fs.create_directories(run_directory_ + "/profile");
  if (status.ok()) {
    status = profiler_.write_trace(
        fs, path, {rank_, world_, origin_ns_, recorded_first_, recorded_last_});
  }
  if (profiler_.num_cut() > 0) {
    PECAN_LOG(kWarn,
              "[train] {} spans found no room in {}; choose fewer steps (--profile-steps)",
              profiler_.num_cut(),
              path);
  }
  std::string table;
  if (rank_.value == 0) {
    std::vector<ProfileRow> saves;
    for (const auto thread :
         {ProfileThread::kCopier, ProfileThread::kWriter, ProfileThread::kKeeper})
      std::ranges::copy(profiler_.rows(thread), std::back_inserter(saves));
    table = describe(profiler_.rows(ProfileThread::kMain), saves, limits_, threads_);
    if (status.ok())
      status = write_text_atomically(fs, run_directory_ + "/profile/operators.txt", table);
    table += fmt::format("traces of each rank in {}/profile\n", run_directory_);
  }
  if (!status.ok())
    PECAN_LOG(kWarn, "[train] the profile of rank {} was not written: {}", rank_, status.message);
  return table;
}

}  // namespace pecan::train
