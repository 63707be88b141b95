#include "train/rollback.hpp"

#include <algorithm>
#include <utility>

#include "train/agreement.hpp"

namespace pecan::train {
namespace {

std::string skipped_steps(const RollbackRecord& record) {
  return fmt::format("steps {} to {} were skipped in a row", record.first_skipped, record.step);
}

}  // namespace

RollbackKeeper::RollbackKeeper(FileSystem& fs,
                               std::string run_directory,
                               const config::TrainingConfig& config,
                               SkippedData& skipped)
    : fs_(fs),
      run_directory_(std::move(run_directory)),
      after_skips_(config.rollback_after_skips),
      max_rollbacks_(config.max_rollbacks),
      skipped_(skipped) {}

std::string RollbackKeeper::begin(Context& ctx,
                                  comm::Group& world,
                                  const checkpoint::RunIdentity& identity,
                                  Step step,
                                  std::int64_t consumed_samples,
                                  bool recovered) {
  run_id_ = identity.run_id;
  incarnation_ = identity.incarnation;
  now_ = step;
  consumed_at_[step.value] = consumed_samples;
  if (recovered) good_ = step;
  skipped_ = {};
  // A first byte tells an empty file from none.
  const std::string text = from_root(ctx, world, [&]() -> std::string {
    if (!fs_.exists(path())) return {};
    const Result<std::string> read = read_text(fs_, path());
    PECAN_VALIDATE(read.ok(), CheckpointError, "{}", read.status().message);
    return ' ' + read.value();
  });
  if (text.empty()) return {};
  skipped_ = parse_skipped_data(text.substr(1), run_id_, path());
  skipped_.series.passed(step);
  std::int64_t samples = 0;
  for (const SampleRange& range : skipped_.ranges.all()) samples += range.end - range.begin;
  return fmt::format("{} samples are passed over ({})", samples, path());
}

void RollbackKeeper::judged(Step step, bool skipped) {
  streak_.note(step, skipped);
  if (!skipped) skipped_.series.passed(step);
}

void RollbackKeeper::stepped(Step step, std::int64_t consumed_samples) {
  now_ = step;
  if (after_skips_ > 0) consumed_at_[step.value] = consumed_samples;
}

void RollbackKeeper::saved(const checkpoint::SaveRecord& save) {
  if (!save.committed || after_skips_ == 0) return;
  good_ = std::max(good_.value_or(Step{0}), save.version.step);
  consumed_at_.erase(consumed_at_.begin(), consumed_at_.find(good_->value));
}

bool RollbackKeeper::due() const {
  return after_skips_ > 0 && streak_.length >= after_skips_;
}

bool RollbackKeeper::holds_saves() const {
  return after_skips_ > 0 && streak_.length > 0;
}

RollbackRecord RollbackKeeper::roll_back(
    Context& ctx, comm::Group& world, const std::function<void(const RollbackRecord&)>& written) {
  PECAN_EXPECTS(due());
  RollbackRecord record;
  record.incarnation = incarnation_;
  record.step = now_;
  record.first_skipped = streak_.first;
  record.to = good_;
  const SampleRange range{consumed_at_.begin()->second, consumed_at_.at(now_.value)};
  record.begin = range.begin;
  record.end = range.end;
  skipped_.ranges.add(range);
  skipped_.series.add(now_);
  skipped_.rollbacks.push_back({incarnation_, streak_.first, now_, good_, range});
  record.count = skipped_.series.count;
  record.limit = max_rollbacks_;
  // Durable before anything else happens: whoever starts this run next must not feed the same data
  // to the same state, whether or not this process lives to do better.
  (void)from_root(ctx, world, [&]() -> std::string {
    const Status status = write_text_atomically(fs_, path(), to_json(skipped_, run_id_));
    PECAN_VALIDATE(status.ok(), CheckpointError, "{}", status.message);
    if (written) written(record);
    return {};
  });
  return record;
}

void RollbackKeeper::check(const RollbackRecord& record) const {
  PECAN_VALIDATE(record.to.has_value(),
                 DivergenceError,
                 "{}, and there is no checkpoint before them to return to; their data are passed "
                 "over from now on, but before the next --resume-from-failure lower optimizer.lr, "
                 "and let checkpoint.save_interval make the first checkpoint earlier",
                 skipped_steps(record));
  PECAN_VALIDATE(record.count <= record.limit,
                 DivergenceError,
                 "{}, and training.max_rollbacks={} rollbacks did not get past step {}; their data "
                 "are passed over from now on, but before the next --resume-from-failure lower "
                 "optimizer.lr, or look at the data that {} names",
                 skipped_steps(record),
                 record.limit,
                 skipped_.series.step,
                 path());
}

std::string describe(const RollbackRecord& record) {
  return fmt::format("rollback {} of {}: {}; back to step {}, and samples {} to {} are passed over",
                     record.count,
                     record.limit,
                     skipped_steps(record),
                     record.to.value_or(Step{0}),
                     record.begin,
                     record.end - 1);
}

}  // namespace pecan::train
