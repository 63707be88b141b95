#include "train/skipped_data.hpp"

#include <algorithm>
#include <numeric>
#include <random>

#include <nlohmann/json.hpp>

#include <pecan/data/sampler.hpp>

#include "support/catch.hpp"
#include "support/faulty_file_system.hpp"
#include "support/memory_file_system.hpp"
#include "train/rollback.hpp"

using namespace pecan;
using namespace pecan::train;

namespace {

/// Positions that a layout feeds in `steps` global batches, in the order of the batch.
std::vector<std::vector<std::int64_t>> fed(const SkippedRanges& skipped,
                                           const data::Sampler& sampler,
                                           int steps) {
  std::vector<std::vector<std::int64_t>> batches;
  std::int64_t consumed = 0;
  for (int step = 0; step < steps; ++step) {
    std::vector<std::int64_t> batch;
    for (int rank = 0; rank < sampler.data_parallel_size; ++rank) {
      for (int micro = 0; micro < sampler.num_micro_steps(); ++micro) {
        for (int row = 0; row < sampler.micro_batch_size; ++row)
          batch.push_back(skipped.position(consumed, sampler.sample_index(0, micro, rank, row)));
      }
    }
    std::ranges::sort(batch);
    batches.push_back(batch);
    consumed = skipped.position(consumed, sampler.global_batch_size - 1) + 1;
  }
  return batches;
}

SkippedData some_data() {
  SkippedData data;
  data.ranges.add({16, 32});
  data.ranges.add({48, 52});
  data.series.add(Step{8});
  data.rollbacks.push_back({Incarnation{0}, Step{7}, Step{8}, Step{4}, {16, 32}});
  data.rollbacks.push_back({Incarnation{1}, Step{2}, Step{2}, {}, {48, 52}});
  return data;
}

constexpr const char* kRunId = "89abcdef01234567";

/// A keeper on one rank, told of steps as a run would.
class Keeper {
 public:
  explicit Keeper(FileSystem& fs) : fs_(fs), world_(comm::make_self_group()) { start(Step{0}, 0); }
  /// As after a rollback or another start.
  std::string start(Step step, std::int64_t consumed) {
    config::TrainingConfig config;
    config.rollback_after_skips = 2;
    config.max_rollbacks = 2;
    keeper_.emplace(fs_, "run", config, data_);
    checkpoint::RunIdentity identity;
    identity.run_id = kRunId;
    identity.incarnation = Incarnation{incarnation_++};
    step_ = step;
    consumed_ = consumed;
    return keeper_->begin(ctx_, *world_, identity, step, consumed, step.value > 0);
  }
  void step(bool skipped, bool saved = false) {
    ++step_.value;
    consumed_ += 4;
    keeper_->judged(step_, skipped);
    keeper_->stepped(step_, consumed_);
    if (!saved) return;
    checkpoint::SaveRecord record;
    record.version.step = step_;
    record.committed = true;
    keeper_->saved(record);
  }
  RollbackRecord roll_back() { return keeper_->roll_back(ctx_, *world_); }
  [[nodiscard]] RollbackKeeper& operator*() { return *keeper_; }
  [[nodiscard]] const SkippedData& data() const { return data_; }

 private:
  FileSystem& fs_;
  std::unique_ptr<comm::Group> world_;
  device::Stream stream_{device::cpu()};
  device::Arena workspace_;
  Context ctx_{device::cpu(), stream_, workspace_, 1};
  SkippedData data_;
  std::optional<RollbackKeeper> keeper_;
  int incarnation_ = 0;
  Step step_;
  std::int64_t consumed_ = 0;
};

}  // namespace

TEST_CASE("every layout feeds all positions but those passed over, each once and in order",
          "[train]") {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    CAPTURE(round);
    constexpr std::int64_t kPositions = 400;
    std::vector<bool> wanted(kPositions, true);
    SkippedRanges skipped;
    for (int r = 0; r < int(random() % 5); ++r) {
      const std::int64_t begin = std::int64_t(random() % 120);
      const std::int64_t end = begin + std::int64_t(random() % 40);
      skipped.add({begin, end});
      std::fill(wanted.begin() + begin, wanted.begin() + end, false);
    }
    constexpr int kBatch = 8;
    constexpr int kSteps = 12;
    std::vector<std::int64_t> expected;
    for (std::int64_t p = 0; std::ssize(expected) < kBatch * kSteps; ++p) {
      if (wanted[std::size_t(p)]) expected.push_back(p);
    }
    for (const int dp : {1, 2, 4, 8}) {
      for (const int micro : {1, 2}) {
        if (kBatch % (dp * micro) != 0) continue;
        std::vector<std::int64_t> all;
        for (const auto& batch : fed(skipped, {micro, kBatch, dp}, kSteps))
          all.insert(all.end(), batch.begin(), batch.end());
        CHECK(all == expected);
      }
    }
    // From any position on, also from within a range.
    for (std::int64_t cursor = 0; cursor < 100; cursor += 7) {
      std::int64_t p = cursor;
      while (!wanted[std::size_t(p)]) ++p;
      CHECK(skipped.position(cursor, 0) == p);
    }
  }
}

TEST_CASE("ranges that meet become one", "[train]") {
  SkippedRanges ranges;
  ranges.add({10, 20});
  ranges.add({30, 40});
  ranges.add({5, 5});
  CHECK(ranges.all().size() == 2);
  ranges.add({20, 30});
  REQUIRE(ranges.all().size() == 1);
  CHECK(ranges.all()[0] == SampleRange{10, 40});
  ranges.add({1, 3});
  REQUIRE(ranges.all().size() == 2);
  CHECK(ranges.all()[0] == SampleRange{1, 3});
}

TEST_CASE("what is passed over is read as it was written, and damage is refused", "[train]") {
  const SkippedData data = some_data();
  const std::string text = to_json(data, kRunId);
  CHECK(parse_skipped_data(text, kRunId, "f") == data);
  CHECK(parse_skipped_data(to_json({}, kRunId), kRunId, "f") == SkippedData{});
  CHECK_THROWS_WITH(parse_skipped_data(text, "0000000000000000", "f"),
                    Catch::Contains("f is of run 89abcdef01234567"));
  // White space means nothing; every other byte does.
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == ' ' || text[i] == '\n') continue;
    std::string damaged = text;
    damaged[i] = char(damaged[i] ^ 0x01);
    CAPTURE(i);
    CHECK_THROWS_AS(parse_skipped_data(damaged, kRunId, "f"), CheckpointError);
  }
  CHECK_THROWS_AS(parse_skipped_data(text.substr(0, text.size() / 2), kRunId, "f"),
                  CheckpointError);
  CHECK_THROWS_WITH(parse_skipped_data("", kRunId, "f"), Catch::Contains("f cannot be used"));
}

TEST_CASE("skipped steps in a row lead back to the newest saved state before them", "[train]") {
  test::MemoryFileSystem fs;
  REQUIRE(fs.create_directories("run").ok());
  REQUIRE(fs.sync_directory("").ok());
  Keeper keeper(fs);
  for (int step = 1; step <= 5; ++step) keeper.step(false, step % 2 == 0);
  CHECK_FALSE((*keeper).holds_saves());
  keeper.step(true);
  CHECK((*keeper).holds_saves());
  CHECK_FALSE((*keeper).due());
  keeper.step(false);
  CHECK_FALSE((*keeper).holds_saves());
  keeper.step(true);
  keeper.step(true);
  REQUIRE((*keeper).due());
  const RollbackRecord record = keeper.roll_back();
  CHECK(record.first_skipped == Step{8});
  CHECK(record.step == Step{9});
  CHECK(record.to == Step{4});
  CHECK(record.begin == 16);
  CHECK(record.end == 36);
  CHECK(record.count == 1);
  CHECK_NOTHROW((*keeper).check(record));

  // Durable at once, for a process that comes after a crash.
  fs.crash();
  Keeper other(fs);
  CHECK_THAT(other.start(Step{4}, 16), Catch::Contains("20 samples"));
  CHECK(other.data() == keeper.data());
  CHECK(other.data().ranges.position(16, 0) == 36);
}

TEST_CASE("rollbacks that do not help end the run, and those that do are forgotten", "[train]") {
  test::MemoryFileSystem fs;
  REQUIRE(fs.create_directories("run").ok());
  REQUIRE(fs.sync_directory("").ok());
  Keeper keeper(fs);
  const auto fail_at = [&](int step) {
    // From step 2 with 8 samples consumed; steps up to the failing two are trained.
    (void)keeper.start(Step{2}, 8);
    for (int s = 3; s < step; ++s) keeper.step(false);
    keeper.step(true);
    keeper.step(true);
    return keeper.roll_back();
  };
  CHECK_NOTHROW((*keeper).check(fail_at(5)));
  // Not past step 6, which led to the first.
  CHECK_NOTHROW((*keeper).check(fail_at(4)));
  const RollbackRecord third = fail_at(5);
  CHECK(third.count == 3);
  try {
    (*keeper).check(third);
    FAIL("three rollbacks that did not help were let pass");
  } catch (const DivergenceError& error) {
    CHECK_THAT(error.what(), Catch::Contains("max_rollbacks=2"));
    CHECK_THAT(error.what(), Catch::Contains("did not get past step 6"));
  }
  // Another start has one try: its data are others.
  CHECK(fail_at(5).count == 4);
  // Step 7 is trained: the next trouble is another one.
  CHECK(fail_at(8).count == 1);
  CHECK(keeper.data().rollbacks.size() == 5);
}

TEST_CASE("without a state to return to the run ends, and its data are passed over all the same",
          "[train]") {
  test::MemoryFileSystem fs;
  REQUIRE(fs.create_directories("run").ok());
  REQUIRE(fs.sync_directory("").ok());
  Keeper keeper(fs);
  keeper.step(false);
  keeper.step(true);
  keeper.step(true);
  const RollbackRecord record = keeper.roll_back();
  CHECK_FALSE(record.to.has_value());
  CHECK_THROWS_WITH((*keeper).check(record), Catch::Contains("no checkpoint before them"));
  Keeper other(fs);
  CHECK(other.data().ranges.position(0, 0) == 12);

  test::FaultyFileSystem faulty(fs);
  Keeper unlucky(faulty);
  unlucky.step(true);
  unlucky.step(true);
  faulty.inject({.call = test::Call::kSync, .code = StatusCode::kNoSpace});
  CHECK_THROWS_AS(unlucky.roll_back(), CheckpointError);
}
