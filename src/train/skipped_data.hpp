#pragma once
/// Samples that training passes over for ever, and what led to that: run/skipped_data.json
/// (docs/formats/skipped_data.md). Outside of what a rollback returns to.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <pecan/core/error.hpp>
#include <pecan/core/file_system.hpp>
#include <pecan/core/ids.hpp>

namespace pecan::train {

/// Positions [begin, end) of consumed_samples.
struct SampleRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool operator==(const SampleRange&) const = default;
};

/// Ranges that are passed over, ascending and apart.
class SkippedRanges {
 public:
  /// An empty range adds nothing; one that meets others becomes one with them.
  void add(SampleRange range);
  [[nodiscard]] std::span<const SampleRange> all() const { return ranges_; }
  /// The position of the sample that comes `offset` samples after the first one at or behind
  /// `cursor`, ranges left out.
  [[nodiscard]] std::int64_t position(std::int64_t cursor, std::int64_t offset) const;
  bool operator==(const SkippedRanges&) const = default;

 private:
  std::vector<SampleRange> ranges_;
};

/// One return to an earlier checkpoint.
struct Rollback {
  Incarnation incarnation;  ///< that was given up
  Step first_skipped;       ///< of the skipped steps in a row
  Step last_skipped;
  std::optional<Step> to;  ///< newest state before them, if there was one
  SampleRange passed_over;
  bool operator==(const Rollback&) const = default;
};

/// Rollbacks since training last got past the step that led to the first of them.
struct RollbackSeries {
  Step step;  ///< that one
  int count = 0;
  /// One more, by `step`.
  void add(Step at);
  /// A step was trained and not skipped.
  void passed(Step at);
  bool operator==(const RollbackSeries&) const = default;
};

struct SkippedData {
  SkippedRanges ranges;
  RollbackSeries series;
  std::vector<Rollback> rollbacks;
  bool operator==(const SkippedData&) const = default;
};

[[nodiscard]] std::string to_json(const SkippedData& data, const std::string& run_id);
/// CheckpointError naming `path`: damaged, of another format, or of another run.
[[nodiscard]] SkippedData parse_skipped_data(const std::string& text,
                                             const std::string& run_id,
                                             const std::string& path);
[[nodiscard]] std::string skipped_data_path(const std::string& run_directory);

/// Skipped steps in a row.
struct SkipStreak {
  Step first;
  int length = 0;
  void note(Step step, bool skipped);
};

}  // namespace pecan::train
