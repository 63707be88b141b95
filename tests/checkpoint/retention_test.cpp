#include "checkpoint/retention.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "checkpoint/job.hpp"
#include "support/catch.hpp"
#include "support/faulty_file_system.hpp"
#include "support/memory_file_system.hpp"
#include "support/support.hpp"

using namespace pecan;
using namespace pecan::checkpoint;
using test::Job;
using test::job_options;
using test::make_catalog;
using test::MemoryFileSystem;

namespace {

constexpr const char* kRoot = "run/checkpoints";

std::vector<StoredCheckpoint> stored(FileSystem& fs) {
  std::vector<StoredCheckpoint> all;
  const Result<std::vector<DirEntry>> entries = fs.list(kRoot);
  if (!entries.ok()) return all;
  for (const DirEntry& entry : entries.value()) {
    if (!step_of_directory(entry.name)) continue;
    Result<StoredCheckpoint> loaded = load_checkpoint(fs, kRoot, entry.name);
    if (loaded.ok()) all.push_back(std::move(loaded).value());
  }
  return all;
}

/// Payload bytes of the shards that exist.
std::size_t kept_bytes(const std::vector<StoredCheckpoint>& checkpoints) {
  std::size_t bytes = 0;
  for (const StoredCheckpoint& checkpoint : checkpoints) {
    for (const BlockEntry& entry : checkpoint.manifest.blocks) {
      if (!checkpoint.present[std::size_t(entry.file)]) continue;
      bytes += std::size_t(entry.block.block.extent.num_elements()) * size_of(entry.block.dtype);
    }
  }
  return bytes;
}

std::vector<std::int64_t> candidate_steps(const std::vector<StoredCheckpoint>& checkpoints) {
  std::vector<std::int64_t> steps;
  for (const StoredCheckpoint& checkpoint : checkpoints) {
    if (!checkpoint.retired) steps.push_back(checkpoint.manifest.version.step.value);
  }
  return steps;
}

/// Whether everything that the manifest names is there.
bool whole(const StoredCheckpoint& candidate, const std::vector<StoredCheckpoint>& checkpoints) {
  return std::ranges::all_of(candidate.manifest.copies, [&](const UnitCopy& copy) {
    return std::ranges::any_of(checkpoints, [&](const StoredCheckpoint& one) {
      return one.manifest.version == copy.version && one.has({copy.unit, copy.group});
    });
  });
}

/// A checkpoint of one non-expert unit and `experts` experts, the given ones written into one
/// experts file each.
StoredCheckpoint synthetic(int step,
                           const std::vector<int>& versions,
                           const std::vector<bool>& present = {}) {
  StoredCheckpoint checkpoint;
  checkpoint.directory = step_directory_name(Step{step});
  Manifest& manifest = checkpoint.manifest;
  manifest.version = {Incarnation{0}, Step{step}};
  const auto write = [&](int unit, FileKind kind) {
    BlockEntry entry;
    entry.file = int(manifest.files.size());
    entry.unit = UnitIndex{unit};
    manifest.blocks.push_back(entry);
    manifest.files.push_back({fmt::format("file{}", unit), kind, Rank{0}, {}});
  };
  manifest.copies.push_back({UnitIndex{0}, RoleGroup::kWeight, manifest.version, 0});
  write(0, FileKind::kState);
  for (std::size_t e = 0; e < versions.size(); ++e) {
    const int unit = int(e) + 1;
    manifest.copies.push_back(
        {UnitIndex{unit}, RoleGroup::kWeight, {Incarnation{0}, Step{versions[e]}}, 0});
    if (versions[e] == step) write(unit, FileKind::kExperts);
  }
  checkpoint.present = present;
  checkpoint.present.resize(manifest.files.size(), true);
  index_groups(checkpoint);
  return checkpoint;
}

}  // namespace

TEST_CASE("marking keeps what the last checkpoint names and one older copy of each",
          "[retention]") {
  // N = 2, K = 1: full at 1, then expert 0 at 2, expert 1 at 3, expert 0 at 4.
  const std::vector<StoredCheckpoint> all{
      synthetic(1, {1, 1}), synthetic(2, {2, 1}), synthetic(3, {2, 3}), synthetic(4, {4, 3})};
  RetentionMarks marks = mark(all, {1, 0, 1});
  CHECK(marks.candidate == std::vector{false, false, true, true});
  CHECK(marks.live[0] == std::vector{false, false, true});  // the older copy of expert 1
  CHECK(marks.live[1] == std::vector{false, true});         // the older copy of expert 0
  CHECK(marks.live[2] == std::vector{true, true});
  CHECK(marks.live[3] == std::vector{true, true});

  marks = mark(all, {1, 0, 0});
  CHECK(marks.candidate == std::vector{false, false, false, true});
  CHECK(marks.live[0] == std::vector{false, false, false});
  CHECK(marks.live[1] == std::vector{false, false});
  CHECK(marks.live[2] == std::vector{false, true});

  marks = mark(all, {2, 0, 0});
  CHECK(marks.candidate == std::vector{false, false, true, true});
  CHECK(marks.live[1] == std::vector{false, true});  // step 3 counts on it
}

TEST_CASE("marking keeps steps for ever, and a whole checkpoint where the newest is damaged",
          "[retention]") {
  const std::vector<StoredCheckpoint> all{synthetic(1, {1, 1}),
                                          synthetic(2, {2, 1}),
                                          synthetic(3, {2, 3}),
                                          synthetic(4, {4, 3}, {true, false})};
  RetentionMarks marks = mark(all, {1, 0, 0});
  CHECK(marks.candidate == std::vector{false, false, true, true});
  CHECK(marks.live[1] == std::vector{false, true});
  marks = mark(all, {1, 2, 0});
  CHECK(marks.candidate == std::vector{false, true, true, true});
  CHECK(marks.live[0] == std::vector{false, false, true});
}

TEST_CASE("kept bytes stay within the promised multiple of a full checkpoint", "[retention]") {
  struct Case {
    int fallback_copies;
    double limit;
    std::vector<std::string> always_saved;
    const char* policy = "sequential";
    int steps = 13;
  };
  for (const Case& one : {Case{0, 1.5, {}},
                          Case{1, 2.5, {}},
                          Case{0, 1.5, {"weight"}},
                          Case{1, 2.5, {"weight"}},
                          Case{0, 1.5, {}, "load_aware", 60},
                          Case{1, 2.5, {}, "load_aware", 60},
                          Case{0, 1.5, {"weight"}, "auto", 60}}) {
    for (const int budget : {2, 3, 8}) {
      MemoryFileSystem fs;
      const StateCatalog catalog = make_catalog({2, 8, 2, 1});
      std::size_t full_bytes = 0;
      for (const StateItem& item : catalog.items) full_bytes += item.num_bytes();
      std::vector<std::string> violations;
      comm::run_thread_group(2, [&](comm::Group& world) {
        test::JobOptions options = job_options(budget, one.fallback_copies);
        options.checkpoint.pec.always_saved = one.always_saved;
        options.checkpoint.pec.selection = one.policy;
        options.slots_a_step = {9, 8, 7, 3, 1, 1, 0, 0, 1, 0, 90, 0, 2, 3, 90, 1};
        Job job(fs, catalog, options, world);
        for (int step = 1; step <= one.steps; ++step) {
          job.train(1);
          if (world.rank().value != 0) continue;
          const auto checkpoints = stored(fs);
          const double ratio = double(kept_bytes(checkpoints)) / double(full_bytes);
          if (ratio > one.limit) violations.push_back(fmt::format("step {}: {}", step, ratio));
          for (const StoredCheckpoint& candidate : checkpoints) {
            if (!candidate.retired && !whole(candidate, checkpoints)) {
              violations.push_back(candidate.directory + " lacks a copy");
            }
          }
          if (int(candidate_steps(checkpoints).size()) != std::min(step, 1 + one.fallback_copies)) {
            violations.push_back(fmt::format("step {}: wrong number of candidates", step));
          }
        }
      });
      INFO(one.policy << ", K " << budget << ", fallback copies " << one.fallback_copies);
      CHECK(violations == std::vector<std::string>{});
    }
  }
}

TEST_CASE("after 200 checkpoints a directory is as large as promised", "[retention]") {
  for (const char* policy : {"sequential", "load_aware", "auto"}) {
    MemoryFileSystem fs;
    const StateCatalog catalog = make_catalog({1, 8, 1, 1});
    std::size_t full_bytes = 0;
    for (const StateItem& item : catalog.items) full_bytes += item.num_bytes();
    const auto world = comm::make_self_group();
    test::JobOptions options = job_options(1, 0);
    options.checkpoint.pec.selection = policy;
    options.slots_a_step = {50, 9, 8, 7, 3, 1, 0, 0};
    Job job(fs, catalog, options, *world);
    std::size_t most = 0;
    for (int i = 0; i < 200; ++i) {
      job.train(1);
      most = std::max(most, kept_bytes(stored(fs)));
    }
    INFO(policy << ": " << double(most) / double(full_bytes));
    CHECK(double(most) <= 1.5 * double(full_bytes));
    CHECK(job.newest_committed() == Step{200});
  }
}

TEST_CASE("the sweep removes abandoned branches and steps that nothing names", "[retention]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 2, 1, 1});
  const auto world = comm::make_self_group();
  Job job(fs, catalog, job_options(2, 0), *world);
  job.train(1);
  REQUIRE(fs.create_directories("run/checkpoints/abandoned-1-step-00000009").ok());
  REQUIRE(fs.create_directories("run/checkpoints/removed-step-00000000").ok());
  REQUIRE(fs.create_directories("run/checkpoints/step-00000000").ok());
  REQUIRE(fs.create_directories("run/checkpoints/mine").ok());
  job.train(1);
  std::vector<std::string> names;
  const auto entries = fs.list(kRoot);
  for (const DirEntry& entry : entries.value()) {
    if (entry.is_directory) names.push_back(entry.name);
  }
  CHECK(names == std::vector<std::string>{"mine", "step-00000002"});
}

TEST_CASE("steps that save_retain_interval divides are kept for ever", "[retention]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 1, 1});
  const auto world = comm::make_self_group();
  test::JobOptions options = job_options(1, 0);
  options.checkpoint.save_retain_interval = 4;
  Job job(fs, catalog, options, *world);
  job.train(13);
  const auto checkpoints = stored(fs);
  CHECK(candidate_steps(checkpoints) == std::vector<std::int64_t>{4, 8, 12, 13});
  for (const StoredCheckpoint& candidate : checkpoints) {
    if (!candidate.retired) CHECK(whole(candidate, checkpoints));
  }
}

TEST_CASE("a failing sweep is reported and made up for by the next", "[retention]") {
  MemoryFileSystem memory;
  test::FaultyFileSystem fs(memory);
  const StateCatalog catalog = make_catalog({1, 2, 1, 1});
  const auto world = comm::make_self_group();
  Job job(fs, catalog, job_options(2, 0), *world);
  job.train(1);
  {
    const test::ExpectLog log;
    fs.inject({test::Call::kRemove, StatusCode::kPermission, 1, true, "step", {}, 0});
    job.train(2);
    CHECK(log.contains("old checkpoints could not be swept"));
    CHECK(job.newest_committed() == Step{3});
  }
  fs.clear();
  job.train(1);
  CHECK(stored(fs).size() == 1);
}
