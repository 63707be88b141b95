#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include <pecan/core/build_info.hpp>
#include <pecan/core/file_system.hpp>
#include <pecan/core/hash.hpp>
#include <pecan/core/log.hpp>
#include <pecan/core/text.hpp>

#include <pecan/checkpoint/exactness.hpp>

#include <pecan/train/metrics.hpp>

namespace pecan::train {
namespace {

using Json = nlohmann::ordered_json;

/// JSON has no NaN or infinity: they become null.
Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

}  // namespace

struct MetricsWriter::Impl {
  std::string path;
  std::ofstream out;
  void write(const Json& line) {
    // The line and its end in one piece: a kill between the two would cut more lines than it must.
    out << line.dump() + '\n';
    out.flush();
    // A full disk must not end a training run whose checkpoints may still fit elsewhere: said once,
    // then dropped.
    if (!out && !failed) {
      failed = true;
      PECAN_LOG(kWarn,
                "[train] {} cannot be written ({}); metrics are lost from here on",
                path,
                errno_text(errno));
    }
  }
  bool failed = false;
};

MetricsWriter::MetricsWriter(const std::string& path, int world_size)
    : impl_(std::make_unique<Impl>()) {
  std::error_code ignored;
  const bool fresh =
      !std::filesystem::exists(path, ignored) || std::filesystem::file_size(path, ignored) == 0;
  const bool cut = ends_within_line(*make_posix_file_system(), path);
  impl_->path = path;
  impl_->out.open(path, std::ios::app);
  PECAN_VALIDATE(
      impl_->out.is_open(),
      CheckpointError,
      "{} cannot be opened for writing: {}; give --run-dir a folder that this user may write",
      path,
      errno_text(errno));
  if (fresh) {
    impl_->write({{"schema", kMetricsSchema},
                  {"build", fmt::format("{} {}", build_info().version, build_info().git_id)},
                  {"world", world_size}});
  } else if (cut) {
    // A line that a kill has cut short must not swallow the next one.
    impl_->out << '\n';
  }
}

MetricsWriter::~MetricsWriter() = default;

void MetricsWriter::write(const StepRecord& r) {
  Json traffic = Json::object();
  for (const PurposeTraffic& sent : r.traffic) {
    traffic[std::string(comm::name_of(sent.purpose))] = {{"calls", sent.measured.calls},
                                                         {"bytes", sent.measured.sent_bytes},
                                                         {"planned_bytes", sent.planned_bytes},
                                                         {"seconds", sent.measured.seconds}};
  }
  impl_->write({{"kind", "step"},
                {"incarnation", r.incarnation.value},
                {"step", r.step.value},
                {"loss", number(r.loss)},
                {"aux_loss", number(r.aux_loss)},
                {"z_loss", number(r.z_loss)},
                {"grad_norm", number(r.grad_norm)},
                {"grad_norm_dense", number(r.grad_norm_dense)},
                {"grad_norm_expert", number(r.grad_norm_expert)},
                {"clip_norm", number(r.clip_norm)},
                {"lr", r.lr},
                {"skipped", r.skipped},
                {"skip_reason", r.skip_reason},
                {"skips_in_row", r.skips_in_row},
                {"bad_tensor", r.bad_tensor},
                {"non_finite", r.non_finite},
                {"tokens", r.tokens},
                {"consumed_samples", r.consumed_samples},
                {"tokens_per_s", r.tokens_per_s},
                {"step_ms", r.step_ms},
                {"ckpt_stall_ms", r.ckpt_stall_ms},
                {"plt", r.plt},
                {"load_max_over_mean", r.load_max_over_mean},
                {"dispatch_chunks_added", r.dispatch_chunks_added},
                {"dropped_slots", r.dropped_slots},
                {"traffic", traffic}});
}

void MetricsWriter::write(const ValidRecord& r) {
  impl_->write({{"kind", "valid"},
                {"incarnation", r.incarnation.value},
                {"step", r.step.value},
                {"valid_loss", number(r.loss)},
                {"valid_bits_per_byte", number(r.bits_per_byte)},
                {"tokens", r.tokens}});
}

void MetricsWriter::write(const RollbackRecord& r) {
  impl_->write({{"kind", "rollback"},
                {"incarnation", r.incarnation.value},
                {"step", r.step.value},
                {"first_skipped", r.first_skipped.value},
                {"to", r.to ? Json(r.to->value) : Json(nullptr)},
                {"passed_over", Json::array({r.begin, r.end})},
                {"count", r.count},
                {"limit", r.limit}});
}

void MetricsWriter::write(const DivergenceRecord& r) {
  impl_->write({{"kind", "divergence"},
                {"incarnation", r.incarnation.value},
                {"step", r.step.value},
                {"reason", r.reason},
                {"repeatable", r.repeatable}});
}

void MetricsWriter::write(Incarnation incarnation, const checkpoint::SaveRecord& r) {
  const bool memory = r.level == checkpoint::SaveLevel::kMemory;
  const double ms = memory ? r.snapshot_ms : r.persist_ms;
  impl_->write({{"kind", memory ? "snapshot" : "checkpoint"},
                {"incarnation", incarnation.value},
                {"step", r.version.step.value},
                {"committed", r.committed},
                {"full", r.full},
                {"failure", r.failure},
                {"bytes_rank0", r.num_bytes},
                {"expert_units", r.num_expert_units},
                {"snapshot_ms", r.snapshot_ms},
                {"replicate_ms", r.replicate_ms},
                {"persist_ms", r.persist_ms},
                {"commit_ms", r.commit_ms},
                {"gb_per_s", ms > 0 ? double(r.num_bytes) / ms * 1e-6 : 0}});
}

void MetricsWriter::write(const checkpoint::Recovered& recovered,
                          const StateCatalog& catalog,
                          const WeightRestore& weights,
                          const LossReport& losses,
                          const checkpoint::ExpertBudget& budget) {
  Json stale = Json::array();
  for (const checkpoint::UnitRestore& restore : recovered.report.plan.restores) {
    if (restore.version == recovered.report.plan.recovery) continue;
    stale.push_back({{"unit", catalog.units[std::size_t(restore.unit.value)].name},
                     {"group", name_of(restore.group)},
                     {"step", restore.version.step.value},
                     {"incarnation", restore.version.incarnation.value},
                     {"from",
                      restore.tier == checkpoint::Tier::kMemory    ? "memory"
                      : restore.tier == checkpoint::Tier::kInitial ? "init"
                                                                   : restore.directory}});
  }
  const checkpoint::Exactness exactness = checkpoint::exactness_of(recovered.report.plan, catalog);
  impl_->write({{"kind", "recovery"},
                {"incarnation", recovered.identity.incarnation.value},
                {"step", recovered.report.plan.recovery.step.value},
                {"from_incarnation", recovered.report.plan.recovery.incarnation.value},
                {"exact", exactness.exact()},
                {"older_experts", exactness.older},
                {"most_steps_older", exactness.most_steps},
                {"stale", stale},
                {"sent_bytes", recovered.report.sent_bytes},
                {"rounded_units", weights.rounded_units},
                {"damages", recovered.report.damages},
                {"lost_slots", losses.lost_slots},
                {"plt_now", losses.plt_now},
                {"plt", losses.plt},
                {"experts_per_checkpoint", budget.checkpoint},
                {"experts_per_snapshot", budget.snapshot},
                {"plt_weights", losses.plt_weights},
                {"scan_ms", recovered.report.scan_ms},
                {"load_ms", recovered.report.load_ms}});
}

void MetricsWriter::write_content(Incarnation incarnation,
                                  Step step,
                                  bool recovered,
                                  const StateCatalog& catalog,
                                  const std::vector<std::uint64_t>& hashes) {
  Json items = Json::object();
  for (std::size_t i = 0; i < hashes.size(); ++i) {
    const StateItem& item = catalog.items[i];
    items[item.path()] = {{"unit", catalog.units[std::size_t(item.unit.value)].name},
                          {"group", name_of(item.group)},
                          {"hash", to_hex(hashes[i])}};
  }
  impl_->write({{"kind", "content"},
                {"incarnation", incarnation.value},
                {"step", step.value},
                {"recovered", recovered},
                {"items", std::move(items)}});
}

}  // namespace pecan::train
