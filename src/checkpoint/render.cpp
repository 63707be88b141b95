#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <pecan/checkpoint/render.hpp>

namespace pecan::checkpoint {
namespace {

using Json = nlohmann::ordered_json;
constexpr int kInspectSchema = 1;  // on-disk: raise with every change of meaning

std::string finish(Json json) {
  json["schema"] = kInspectSchema;
  return json.dump(2) + "\n";
}

double megabytes(std::uint64_t bytes) {
  return double(bytes) / 1e6;
}

const CheckpointReport* newest(const RunReport& report) {
  const CheckpointReport* best = nullptr;
  for (const CheckpointReport& checkpoint : report.checkpoints) {
    if (!checkpoint.retired) best = &checkpoint;
  }
  return best;
}

const char* state_of(const CheckpointReport& checkpoint) {
  if (checkpoint.retired) return "experts only";
  return checkpoint.full ? "full" : "partial";
}

struct KeptName {
  const char* word;  ///< in JSON
  const char* text;
};
KeptName name_of(KeptAs kept) {
  switch (kept) {
    case KeptAs::kLatest:
      return {"latest", "one of the newest that are kept"};
    case KeptAs::kNewestWhole:
      return {"newest_whole", "the newest of which all is there"};
    case KeptAs::kForever:
      return {"forever", "kept for ever"};
    case KeptAs::kFallback:
      return {"fallback", "fallback of the newer ones"};
    case KeptAs::kSource:
      return {"source", "its experts, for newer ones"};
    case KeptAs::kUnknown:
      break;
  }
  return {"unknown", ""};
}

/// Why a file stays.
std::string reason(const FileReport& file) {
  if (!file.needed) return "fallback copies, which no checkpoint counts on";
  std::vector<std::int64_t> steps;
  for (const Step step : file.named_by) steps.push_back(step.value);
  return fmt::format("needed by step {}", fmt::join(steps, ", "));
}

Json to_json(const std::optional<RecoveryFacts>& recovery) {
  if (!recovery) return nullptr;
  const Exactness& exactness = recovery->exactness;
  return {{"step", exactness.step.value},
          {"exact", exactness.exact()},
          {"experts", exactness.experts},
          {"older_experts", exactness.older},
          {"most_steps_older", exactness.most_steps},
          {"plt", recovery->plt ? Json(*recovery->plt) : Json(nullptr)},
          {"meaning", describe(exactness, recovery->plt)}};
}

Json to_json(const CheckpointReport& checkpoint) {
  return {{"directory", checkpoint.directory},
          {"step", checkpoint.version.step.value},
          {"incarnation", checkpoint.version.incarnation.value},
          {"full", checkpoint.full},
          {"retired", checkpoint.retired},
          {"kept_as", name_of(checkpoint.kept_as).word},
          {"expert_units", checkpoint.expert_units},
          {"bytes", checkpoint.num_bytes},
          {"recovery", to_json(checkpoint.recovery)}};
}

std::uint64_t total_bytes(const RunReport& report) {
  return std::accumulate(
      report.checkpoints.begin(),
      report.checkpoints.end(),
      std::uint64_t{0},
      [](std::uint64_t sum, const CheckpointReport& c) { return sum + c.num_bytes; });
}

std::string file_lines(const CheckpointReport& checkpoint) {
  std::string text;
  for (const FileReport& file : checkpoint.files) {
    text += fmt::format("  {:<28} {:<8} {:>12.3f} MB  {}\n",
                        file.path.substr(file.path.rfind('/') + 1),
                        file.kind,
                        megabytes(file.num_bytes),
                        reason(file));
  }
  return text;
}

std::vector<std::string> all_problems(const RunReport& report) {
  std::vector<std::string> problems = report.problems;
  for (const CheckpointReport& checkpoint : report.checkpoints) {
    for (const FileReport& file : checkpoint.files) {
      problems.insert(problems.end(), file.problems.begin(), file.problems.end());
    }
  }
  return problems;
}

std::string state_of(const SegmentReport& segment) {
  const char* const content = !segment.problem.empty() ? "damaged"
                              : segment.committed      ? "whole"
                                                       : "no snapshot";
  return fmt::format("{}{}", content, segment.in_use ? ", in use" : "");
}

Json to_json(const SegmentReport& segment) {
  const bool committed = segment.committed;
  return {{"run_id", segment.run_id},
          {"host", segment.host},
          {"rank", segment.rank.value},
          {"buffer", segment.buffer},
          {"copy", segment.copy},
          {"path", segment.path},
          {"bytes", segment.num_bytes},
          {"in_use", segment.in_use},
          {"step", committed ? Json(segment.version.step.value) : Json(nullptr)},
          {"incarnation", committed ? Json(segment.version.incarnation.value) : Json(nullptr)},
          {"expert_units", segment.expert_units},
          {"problem", segment.problem.empty() ? Json(nullptr) : Json(segment.problem)}};
}

}  // namespace

std::string render_summary(const RunReport& report, Format format) {
  const CheckpointReport* head = newest(report);
  const auto stalest = std::ranges::max_element(report.experts, {}, &ExpertAge::stale_steps);
  const bool has_experts = stalest != report.experts.end();
  const int problems = count_problems(report);
  if (format == Format::kJson) {
    Json json{{"run_id", report.run_id},
              {"starts", report.lineage.size()},
              {"checkpoints", report.checkpoints.size()},
              {"bytes", total_bytes(report)},
              {"bytes_of_newest", report.newest_bytes},
              {"bytes_of_older", report.older_bytes},
              {"bytes_of_fallback_copies", report.fallback_bytes},
              {"plt", report.plt < 0 ? Json(nullptr) : Json(report.plt)},
              {"experts_per_checkpoint",
               report.budget.checkpoint > 0 ? Json(report.budget.checkpoint) : Json(nullptr)},
              {"last_recovery", to_json(report.last_recovery)},
              {"newest", head == nullptr ? Json(nullptr) : to_json(*head)},
              {"moe_layers", report.num_layers},
              {"experts", report.num_experts},
              {"stalest_steps", has_experts ? Json(stalest->stale_steps) : Json(nullptr)},
              {"problems", problems}};
    return finish(std::move(json));
  }
  std::string text = fmt::format("run {}\n", report.run_id);
  if (head == nullptr) {
    text += "  no checkpoint can be continued from\n";
  } else {
    text += fmt::format("  newest checkpoint  step {} ({}, {:.3f} MB, start {} of the run)\n",
                        head->version.step,
                        state_of(*head),
                        megabytes(head->num_bytes),
                        head->version.incarnation.value + 1);
  }
  text += fmt::format("  on disk            {} checkpoints, {:.3f} MB\n",
                      report.checkpoints.size(),
                      megabytes(total_bytes(report)));
  text += fmt::format(
      "                     {:.3f} MB that the newest counts on, {:.3f} MB for older ones, "
      "{:.3f} MB of fallback copies\n",
      megabytes(report.newest_bytes),
      megabytes(report.older_bytes),
      megabytes(report.fallback_bytes));
  if (has_experts) {
    const auto current = std::ranges::count(report.experts, 0, &ExpertAge::stale_steps);
    text += fmt::format(
        "  experts            {} layers x {}: {} of {} current, the stalest {} steps old\n",
        report.num_layers,
        report.num_experts,
        current,
        report.experts.size(),
        stalest->stale_steps);
  }
  if (report.plt >= 0) {
    text += fmt::format(
        "  lost tokens        PLT {:.3f} % of the planned training; {} experts of a "
        "layer in a checkpoint\n",
        100 * report.plt,
        report.budget.checkpoint);
  }
  if (report.last_recovery) {
    text += fmt::format("  last recovery      {}\n",
                        describe(report.last_recovery->exactness, report.last_recovery->plt));
  }
  if (head != nullptr && head->recovery) {
    text += fmt::format("  recovery now       {}\n",
                        describe(head->recovery->exactness, head->recovery->plt));
  }
  for (const LineageEntry& entry : report.lineage) {
    text += entry.fresh ? fmt::format("  start {:<12} fresh\n", entry.incarnation.value + 1)
                        : fmt::format("  start {:<12} continued from step {} of start {}\n",
                                      entry.incarnation.value + 1,
                                      entry.parent.step,
                                      entry.parent.incarnation.value + 1);
  }
  text += problems == 0 ? "  problems           none seen (verify reads every byte)\n"
                        : fmt::format("  problems           {} (see verify)\n", problems);
  return text;
}

std::string render_list(const RunReport& report, Format format) {
  if (format == Format::kJson) {
    Json list = Json::array();
    for (const CheckpointReport& checkpoint : report.checkpoints)
      list.push_back(to_json(checkpoint));
    return finish({{"checkpoints", std::move(list)}});
  }
  std::string text =
      "step       start  kind          experts written           bytes  why it stays\n";
  for (const CheckpointReport& checkpoint : report.checkpoints) {
    text += fmt::format("{:<10} {:<6} {:<13} {:>15} {:>12.3f} MB  {}\n",
                        checkpoint.version.step,
                        checkpoint.version.incarnation.value + 1,
                        state_of(checkpoint),
                        checkpoint.expert_units,
                        megabytes(checkpoint.num_bytes),
                        name_of(checkpoint.kept_as).text);
  }
  return text;
}

std::string render_show(const RunReport& report, Step step, Format format) {
  const auto it = std::ranges::find(
      report.checkpoints, step, [](const CheckpointReport& c) { return c.version.step; });
  PECAN_VALIDATE(it != report.checkpoints.end(),
                 CheckpointError,
                 "the run has no checkpoint of step {}; `list` shows those that it has",
                 step);
  if (format == Format::kJson) {
    Json json = to_json(*it);
    Json files = Json::array();
    for (const FileReport& file : it->files) {
      Json needed_by = Json::array();
      for (const Step needing : file.named_by) needed_by.push_back(needing.value);
      files.push_back({{"path", file.path},
                       {"kind", file.kind},
                       {"bytes", file.num_bytes},
                       {"needed", file.needed},
                       {"needed_by", needed_by},
                       {"problems", file.problems}});
    }
    json["files"] = std::move(files);
    return finish(std::move(json));
  }
  const std::string recovery =
      it->recovery ? fmt::format("  recovery from it is {}\n",
                                 describe(it->recovery->exactness, it->recovery->plt))
                   : "";
  return fmt::format("step {} (start {}, {}): {} expert units written, {:.3f} MB on disk\n{}{}",
                     step,
                     it->version.incarnation.value + 1,
                     state_of(*it),
                     it->expert_units,
                     megabytes(it->num_bytes),
                     recovery,
                     file_lines(*it));
}

std::string render_experts(const RunReport& report, Format format) {
  if (format == Format::kJson) {
    Json list = Json::array();
    for (const ExpertAge& age : report.experts) {
      list.push_back(
          {{"layer", age.layer},
           {"expert", age.expert},
           {"step", age.step.value},
           {"stale_steps", age.stale_steps},
           {"stale_tokens", age.stale_tokens < 0 ? Json(nullptr) : Json(age.stale_tokens)}});
    }
    return finish({{"experts", std::move(list)}});
  }
  std::string text = "layer  expert     newest copy  stale steps  stale token slots\n";
  for (const ExpertAge& age : report.experts) {
    text += fmt::format("{:>5}  {:>6}  {:>14}  {:>11}  {:>17}\n",
                        age.layer,
                        age.expert,
                        age.step,
                        age.stale_steps,
                        age.stale_tokens < 0 ? "unknown" : fmt::to_string(age.stale_tokens));
  }
  return text;
}

std::string render_coverage(const RunReport& report, Format format) {
  std::map<std::int64_t, std::int64_t> experts_by_age;
  for (const ExpertAge& age : report.experts) ++experts_by_age[age.stale_steps];
  const std::uint64_t most =
      report.rank_bytes.empty() ? 0 : *std::ranges::max_element(report.rank_bytes);
  const double mean =
      report.rank_bytes.empty()
          ? 0
          : double(std::accumulate(
                report.rank_bytes.begin(), report.rank_bytes.end(), std::uint64_t{0})) /
                double(report.rank_bytes.size());
  const double imbalance = mean > 0 ? double(most) / mean : 0;
  if (format == Format::kJson) {
    Json ages = Json::array();
    for (const auto& [steps, count] : experts_by_age)
      ages.push_back({{"stale_steps", steps}, {"experts", count}});
    return finish({{"ages", std::move(ages)},
                   {"rank_bytes", report.rank_bytes},
                   {"max_over_mean", imbalance}});
  }
  std::string text = "stale steps  experts\n";
  for (const auto& [steps, count] : experts_by_age)
    text += fmt::format("{:>11}  {:>7}\n", steps, count);
  for (std::size_t r = 0; r < report.rank_bytes.size(); ++r) {
    text += fmt::format("rank {:<5} wrote {:>12.3f} MB\n", r, megabytes(report.rank_bytes[r]));
  }
  text += fmt::format("largest over mean: {:.3f}\n", imbalance);
  return text;
}

std::string render_verify(const RunReport& report, Format format) {
  const std::vector<std::string> problems = all_problems(report);
  std::size_t files = 0;
  std::uint64_t bytes = 0;
  for (const CheckpointReport& checkpoint : report.checkpoints) {
    files += checkpoint.files.size();
    for (const FileReport& file : checkpoint.files) bytes += file.num_bytes;
  }
  if (format == Format::kJson)
    return finish({{"files", files}, {"bytes", bytes}, {"problems", problems}});
  std::string text;
  for (const std::string& problem : problems) text += "problem: " + problem + "\n";
  return text + fmt::format("{} files, {:.3f} MB read: {}\n",
                            files,
                            megabytes(bytes),
                            problems.empty() ? "every checksum is right"
                                             : fmt::format("{} problems", problems.size()));
}

std::string render_memory(const std::vector<SegmentReport>& reports, Format format) {
  if (format == Format::kJson) {
    Json list = Json::array();
    for (const SegmentReport& segment : reports) list.push_back(to_json(segment));
    return finish({{"segments", std::move(list)}});
  }
  std::string text = reports.empty() ? "no snapshots\n" : "", problems, run;
  for (const SegmentReport& segment : reports) {
    if (std::exchange(run, segment.run_id) != segment.run_id) {
      text += fmt::format("run {}\n  {:<20} {:>5} {:>7} {:>6} {:>10} {:>8} {:>15}  state\n",
                          run,
                          "host",
                          "rank",
                          "buffer",
                          "start",
                          "step",
                          "experts",
                          "bytes");
    }
    const Version& version = segment.version;
    text += fmt::format("  {:<20} {:>5} {:>7} {:>6} {:>10} {:>8} {:>12.3f} MB  {}\n",
                        segment.host,
                        segment.rank,
                        segment.copy == 0 ? fmt::to_string(segment.buffer)
                                          : fmt::format("{} (c{})", segment.buffer, segment.copy),
                        segment.committed ? fmt::to_string(version.incarnation.value + 1) : "-",
                        segment.committed ? fmt::to_string(version.step.value) : "-",
                        segment.committed ? fmt::to_string(segment.expert_units) : "-",
                        megabytes(segment.num_bytes),
                        state_of(segment));
    if (!segment.problem.empty()) problems += "problem: " + segment.problem + "\n";
  }
  return text + problems;
}

std::string render_removal(const Removal& removal, Format format) {
  if (format == Format::kJson)
    return finish({{"removed", removal.removed}, {"left", removal.left}});
  std::string text;
  for (const std::string& path : removal.removed) text += "removed " + path + "\n";
  for (const std::string& sentence : removal.left) text += "left " + sentence + "\n";
  return text.empty() ? "no snapshots to remove\n" : text;
}

}  // namespace pecan::checkpoint
