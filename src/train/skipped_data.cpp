#include "train/skipped_data.hpp"

#include <algorithm>

#include <nlohmann/json.hpp>

#include <pecan/core/hash.hpp>

namespace pecan::train {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kFormat = 1;  // on-disk: raise with every change that old readers cannot read

Json to_json(SampleRange range) {
  return Json::array({range.begin, range.end});
}

std::optional<Step> step_or_none(const Json& json) {
  if (json.is_null()) return {};
  return Step{json.get<std::int64_t>()};
}

SampleRange range_of(const Json& json) {
  const SampleRange range{json.at(0).get<std::int64_t>(), json.at(1).get<std::int64_t>()};
  if (range.begin < 0 || range.end < range.begin)
    throw InternalError("a range ends before it begins");
  return range;
}

}  // namespace

void SkippedRanges::add(SampleRange range) {
  if (range.begin >= range.end) return;
  std::erase_if(ranges_, [&](const SampleRange& other) {
    if (other.end < range.begin || range.end < other.begin) return false;
    range.begin = std::min(range.begin, other.begin);
    range.end = std::max(range.end, other.end);
    return true;
  });
  const auto after = std::ranges::find_if(
      ranges_, [&](const SampleRange& other) { return other.begin > range.begin; });
  ranges_.insert(after, range);
}

std::int64_t SkippedRanges::position(std::int64_t cursor, std::int64_t offset) const {
  for (const SampleRange& range : ranges_) {
    if (range.end <= cursor) continue;
    const std::int64_t before = std::max<std::int64_t>(0, range.begin - cursor);
    if (offset < before) break;
    offset -= before;
    cursor = range.end;
  }
  return cursor + offset;
}

void RollbackSeries::add(Step at) {
  if (count == 0) step = at;
  ++count;
}

void RollbackSeries::passed(Step at) {
  if (at > step) count = 0;
}

void SkipStreak::note(Step step, bool skipped) {
  if (skipped && length == 0) first = step;
  length = skipped ? length + 1 : 0;
}

std::string to_json(const SkippedData& data, const std::string& run_id) {
  Json ranges = Json::array();
  for (const SampleRange& range : data.ranges.all()) ranges.push_back(to_json(range));
  Json rollbacks = Json::array();
  for (const Rollback& rollback : data.rollbacks) {
    rollbacks.push_back({{"incarnation", rollback.incarnation.value},
                         {"first_skipped", rollback.first_skipped.value},
                         {"last_skipped", rollback.last_skipped.value},
                         {"to", rollback.to ? Json(rollback.to->value) : Json(nullptr)},
                         {"passed_over", to_json(rollback.passed_over)}});
  }
  Json root{{"format", kFormat},
            {"run_id", run_id},
            {"ranges", ranges},
            {"series", {{"step", data.series.step.value}, {"count", data.series.count}}},
            {"rollbacks", rollbacks}};
  root["xxh3"] = to_hex(xxh3(root.dump()));
  return root.dump(1) + "\n";
}

SkippedData parse_skipped_data(const std::string& text,
                               const std::string& run_id,
                               const std::string& path) {
  SkippedData data;
  Json root;
  std::string damage;
  try {
    root = Json::parse(text);
    const std::string seal = root.at("xxh3").get<std::string>();
    root.erase("xxh3");
    if (seal != to_hex(xxh3(root.dump()))) {
      damage = "its content contradicts its checksum";
    } else if (root.at("format").get<int>() != kFormat) {
      damage = fmt::format("its format is {}, not {}", root.at("format").get<int>(), kFormat);
    } else {
      for (const Json& range : root.at("ranges")) data.ranges.add(range_of(range));
      data.series = {Step{root.at("series").at("step").get<std::int64_t>()},
                     root.at("series").at("count").get<int>()};
      for (const Json& rollback : root.at("rollbacks")) {
        data.rollbacks.push_back({Incarnation{rollback.at("incarnation").get<std::int32_t>()},
                                  Step{rollback.at("first_skipped").get<std::int64_t>()},
                                  Step{rollback.at("last_skipped").get<std::int64_t>()},
                                  step_or_none(rollback.at("to")),
                                  range_of(rollback.at("passed_over"))});
      }
    }
  } catch (const std::exception& error) {
    damage = error.what();
  }
  PECAN_VALIDATE(damage.empty(),
                 CheckpointError,
                 "{} cannot be used: {}; without it the run would train on data that it has given "
                 "up: bring it back from a copy, or remove it to train on all data",
                 path,
                 damage);
  const auto of_run = root.at("run_id").get<std::string>();
  PECAN_VALIDATE(of_run == run_id,
                 CheckpointError,
                 "{} is of run {}, but this is the run directory of {}; move it away",
                 path,
                 of_run,
                 run_id);
  return data;
}

std::string skipped_data_path(const std::string& run_directory) {
  return run_directory + "/skipped_data.json";
}

}  // namespace pecan::train
