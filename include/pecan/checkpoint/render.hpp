#pragma once
/// Text and JSON of what pecan-inspect finds, one function a view (docs/formats/inspect.md).

#include <string>

#include <pecan/checkpoint/inspect.hpp>
#include <pecan/checkpoint/memory.hpp>

namespace pecan::checkpoint {

enum class Format : std::uint8_t { kText, kJson };

/// The run at a glance: newest checkpoint, bytes, stalest expert, problems.
[[nodiscard]] std::string render_summary(const RunReport& report, Format format);
/// A line a checkpoint.
[[nodiscard]] std::string render_list(const RunReport& report, Format format);
/// One checkpoint's files. CheckpointError if there is none of that step.
[[nodiscard]] std::string render_show(const RunReport& report, Step step, Format format);
/// Layer x expert: step of the newest copy, staleness in steps and token slots.
[[nodiscard]] std::string render_experts(const RunReport& report, Format format);
/// How many experts are how stale, and bytes a rank.
[[nodiscard]] std::string render_coverage(const RunReport& report, Format format);
/// Every problem found.
[[nodiscard]] std::string render_verify(const RunReport& report, Format format);
/// A line a buffer of snapshots in memory, by run.
[[nodiscard]] std::string render_memory(const std::vector<SegmentReport>& reports, Format format);
/// What was removed and what was not.
[[nodiscard]] std::string render_removal(const Removal& removal, Format format);

}  // namespace pecan::checkpoint
