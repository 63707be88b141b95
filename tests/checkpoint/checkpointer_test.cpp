#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>

#include <pecan/checkpoint/checkpointer.hpp>

#include "checkpoint/job.hpp"
#include "checkpoint/lineage.hpp"
#include "checkpoint/scan.hpp"
#include "support/catch.hpp"
#include "support/faulty_file_system.hpp"
#include "support/memory_file_system.hpp"
#include "support/support.hpp"

using namespace pecan;
using namespace pecan::checkpoint;
using test::Call;
using test::Effect;
using test::ExpectLog;
using test::FaultyFileSystem;
using test::Job;
using test::job_options;
using test::make_catalog;
using test::MemoryFileSystem;

namespace {

Manifest manifest_of(FileSystem& fs, int step) {
  Result<StoredCheckpoint> loaded =
      load_checkpoint(fs, "run/checkpoints", step_directory_name(Step{step}));
  return loaded.ok() ? loaded.value().manifest : Manifest{};
}

/// Experts of layer 0 that a checkpoint holds whole.
std::vector<int> experts_written(const Manifest& manifest, int experts) {
  std::vector<int> written;
  for (const UnitCopy& copy : manifest.copies) {
    if (copy.unit.value >= 1 && copy.unit.value <= experts && copy.group == RoleGroup::kMoments &&
        copy.version == manifest.version) {
      written.push_back(copy.unit.value - 1);
    }
  }
  return written;
}

/// Holds back writes to shards until it is opened.
class Gate final : public FileSystem {
 public:
  explicit Gate(FileSystem& inner) : inner_(inner) {}
  void close() { open_ = false; }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) override {
    if (mode != OpenMode::kRead && path.ends_with(".h5")) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return open_.load(); });
    }
    return inner_.open(path, mode);
  }
  Status create_directories(const std::string& path) override {
    return inner_.create_directories(path);
  }
  Result<std::vector<DirEntry>> list(const std::string& path) override { return inner_.list(path); }
  bool exists(const std::string& path) override { return inner_.exists(path); }
  Status rename(const std::string& from, const std::string& to) override {
    return inner_.rename(from, to);
  }
  Status remove_file(const std::string& path) override { return inner_.remove_file(path); }
  Status remove_all(const std::string& path) override { return inner_.remove_all(path); }
  Status sync_directory(const std::string& path) override { return inner_.sync_directory(path); }

 private:
  FileSystem& inner_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> open_ = true;
};

}  // namespace

TEST_CASE("the first checkpoint is full and the next ones rotate, each manifest complete",
          "[checkpointer]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({2, 4, 1, 1});
  const auto world = comm::make_self_group();
  test::JobOptions options = job_options(1, 9);
  options.checkpoint.keep_latest_k = 9;
  Job job(fs, catalog, options, *world);
  job.train(6);
  REQUIRE(job.records().size() == 6);
  for (const SaveRecord& record : job.records()) {
    CHECK(record.committed);
    CHECK(record.num_bytes > 0);
    CHECK(record.full == (record.version.step == Step{1}));
    CHECK(record.num_expert_units == (record.full ? 8 : 2));
  }
  CHECK(experts_written(manifest_of(fs, 1), 4) == std::vector{0, 1, 2, 3});
  for (int step = 2; step <= 6; ++step) {
    const Manifest manifest = manifest_of(fs, step);
    CHECK(experts_written(manifest, 4) == std::vector{(step - 2) % 4});
    CHECK(manifest.copies.size() == unit_groups(catalog).size());
    CHECK(manifest.full == false);
    CHECK(manifest.first_budget == 1);
    CHECK(manifest.consumed_samples == step * 8);
    CHECK(manifest.units == catalog.units);
  }
  CHECK(read_text(fs, "run/checkpoints/LATEST").value() == "step-00000006\n");
  CHECK(fs.exists("run/checkpoints/step-00000001/rank-00000.experts-03.h5"));
  CHECK(fs.exists("run/checkpoints/step-00000002/rank-00000.experts.h5"));
}

TEST_CASE("always-saved groups are current in every checkpoint, in the state file",
          "[checkpointer]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 1, 1});
  const auto world = comm::make_self_group();
  test::JobOptions options = job_options(1);
  options.checkpoint.pec.always_saved = {"weight"};
  Job job(fs, catalog, options, *world);
  job.train(3);
  const Manifest manifest = manifest_of(fs, 3);
  int stale = 0;
  for (const UnitCopy& copy : manifest.copies) {
    if (copy.group == RoleGroup::kWeight) CHECK(copy.version == manifest.version);
    if (copy.version != manifest.version) ++stale;
  }
  CHECK(stale == 3);  // the moments of all experts but the one that step 3 holds
  for (const BlockEntry& entry : manifest.blocks) {
    const bool rotating = entry.unit.value > 0 && entry.group != RoleGroup::kWeight;
    CHECK((manifest.files[std::size_t(entry.file)].kind == FileKind::kExperts) == rotating);
  }
}

TEST_CASE("checkpoints stay full until one is committed", "[checkpointer]") {
  MemoryFileSystem memory;
  FaultyFileSystem fs(memory);
  const StateCatalog catalog = make_catalog({1, 4, 1, 1});
  const auto world = comm::make_self_group();
  Job job(fs, catalog, job_options(1), *world);
  {
    const ExpectLog log;
    fs.inject({Call::kSync, StatusCode::kNoSpace, 1, true, ".h5", Effect::kFail, 0});
    job.train(2);
    fs.clear();
    CHECK(log.contains("the checkpoint of step 1 is dropped and training goes on"));
  }
  CHECK(test::files_below(fs, "run/checkpoints").empty());
  job.train(2);
  const auto& records = job.records();
  REQUIRE(records.size() == 4);
  CHECK_FALSE(records[0].committed);
  CHECK(records[0].failure.find("rank 0: ") == 0);
  CHECK((records[1].full && !records[1].committed));
  CHECK((records[2].full && records[2].committed));
  CHECK((!records[3].full && records[3].committed));
}

TEST_CASE("every single failing call costs at most its own checkpoint", "[checkpointer]") {
  const StateCatalog catalog = make_catalog({1, 2, 1, 1});
  const auto world = comm::make_self_group();
  int struck = 0;
  for (const Call call : {Call::kOpen,
                          Call::kWrite,
                          Call::kTruncate,
                          Call::kSize,
                          Call::kSync,
                          Call::kCreateDirectories,
                          Call::kList,
                          Call::kRename,
                          Call::kRemove,
                          Call::kSyncDirectory,
                          Call::kRead}) {
    int most = 60;
    for (int nth = 1; nth <= most; ++nth) {
      const StatusCode code = nth % 3 == 0   ? StatusCode::kNoSpace
                              : nth % 3 == 1 ? StatusCode::kIo
                                             : StatusCode::kPermission;
      MemoryFileSystem memory;
      FaultyFileSystem fs(memory);
      const ExpectLog log;
      Step newest;
      {
        Job job(fs, catalog, job_options(1), *world);
        job.train(2);
        fs.inject(
            {call, code, nth, false, "checkpoints", nth % 2 ? Effect::kFail : Effect::kHalf, 0});
        job.train(1);
        const bool hit = fs.num_struck() > 0;
        struck += hit ? 1 : 0;
        if (!hit) most = nth;
        fs.clear();
        job.train(1);
        if (!job.records().back().committed) FAIL("call " << int(call) << " " << nth);
        newest = job.newest_committed();
      }
      Job again(memory, catalog, job_options(1), *world);
      INFO("call " << int(call) << " number " << nth);
      REQUIRE(again.recovered().report.plan.recovery.step == newest);
      REQUIRE(again.difference() == "");
      REQUIRE(again.recovered().report.damages.empty());
    }
  }
  CHECK(struck > 40);
}

TEST_CASE("what one rank cannot write, all drop", "[checkpointer]") {
  MemoryFileSystem memory;
  FaultyFileSystem fs(memory);
  const StateCatalog catalog = make_catalog({2, 4, 2, 2});
  std::vector<std::vector<SaveRecord>> records(4);
  const ExpectLog log;
  comm::run_thread_group(4, [&](comm::Group& world) {
    Job job(fs, catalog, job_options(2), world);
    job.train(1);
    if (world.rank().value == 2) {
      fs.inject({Call::kWrite, StatusCode::kNoSpace, 1, true, "rank-00002", Effect::kFail, 0});
    }
    job.train(1);
    fs.clear();
    job.train(1);
    records[std::size_t(world.rank().value)] = job.records();
  });
  for (std::size_t rank = 0; rank < 4; ++rank) {
    REQUIRE(records[rank].size() == 3);
    CHECK(records[rank][0].committed);
    CHECK_FALSE(records[rank][1].committed);
    CHECK((records[rank][1].failure.find("rank 2: ") == 0) == (rank == 2));
    CHECK(records[rank][2].committed);
  }
  CHECK(log.contains("step 2 is dropped"));
  CHECK_FALSE(fs.exists("run/checkpoints/step-00000002.partial"));
}

TEST_CASE("a save that is due while another is under way is skipped, with one warning",
          "[checkpointer]") {
  MemoryFileSystem memory;
  Gate fs(memory);
  const StateCatalog catalog = make_catalog({1, 2, 1, 1});
  const auto world = comm::make_self_group();
  test::JobOptions options = job_options(1);
  options.checkpoint.async_save = true;
  const ExpectLog log;
  Job job(fs, catalog, options, *world);
  fs.close();
  for (int i = 0; i < 4; ++i) job.step();
  CHECK(job.checkpointer().busy());
  CHECK(job.checkpointer().last_started() == Step{1});
  fs.open();
  job.drain();
  job.train(1);
  REQUIRE(job.records().size() == 5);
  for (std::size_t i = 0; i < 3; ++i) CHECK(job.records()[i].failure.find("skipped") == 0);
  CHECK(job.records()[3].version.step == Step{1});
  CHECK(job.records()[3].committed);
  CHECK(job.records()[4].version.step == Step{5});
  CHECK(log.records().size() == 1);
}

TEST_CASE("a snapshot is of its step although training goes on", "[checkpointer]") {
  MemoryFileSystem memory;
  const StateCatalog catalog = make_catalog({1, 2, 1, 1});
  const auto world = comm::make_self_group();
  {
    Gate fs(memory);
    test::JobOptions options = job_options(1);
    options.checkpoint.async_save = true;
    options.checkpoint.save_interval = {100};
    Job job(fs, catalog, options, *world);
    job.step();
    fs.close();
    CHECK(job.checkpointer().save_now(job.facts()) >= 0);
    for (int i = 0; i < 3; ++i) job.step();
    fs.open();
    job.drain();
    CHECK(job.newest_committed() == Step{1});
    CHECK(job.checkpointer().save_now({Step{1}, 8, "{}"}) == 0);
    CHECK_FALSE(job.checkpointer().busy());
  }
  const Job again(memory, catalog, job_options(1), *world);
  CHECK(again.recovered().report.plan.recovery.step == Step{1});
  CHECK(again.difference() == "");
}

TEST_CASE("an older incarnation commits nothing more and stops on every rank", "[checkpointer]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 2, 2, 1});
  std::vector<std::string> errors(2);
  const ExpectLog log;
  comm::run_thread_group(2, [&](comm::Group& world) {
    Job job(fs, catalog, job_options(1), world);
    job.train(2);
    std::unique_ptr<RunLock> newer;
    if (world.rank().value == 0) {
      newer = std::make_unique<RunLock>(fs,
                                        "run",
                                        job.recovered().identity.run_id,
                                        Incarnation{1},
                                        LockOptions{std::chrono::hours(1), {}});
    }
    try {
      job.train(2);
    } catch (const CheckpointError& error) {
      errors[std::size_t(world.rank().value)] = error.what();
    }
  });
  for (const std::string& error : errors) {
    CHECK(error.find("a newer incarnation has taken over the run") == 0);
  }
  CHECK_FALSE(fs.exists("run/checkpoints/step-00000003"));
}

TEST_CASE("a selection policy or group that does not exist is refused", "[checkpointer]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 2, 1, 1});
  const auto world = comm::make_self_group();
  test::JobOptions options = job_options(1);
  options.checkpoint.pec.selection = "random";
  CHECK_THROWS_AS(Job(fs, catalog, options, *world), ConfigError);
  options = job_options(1);
  options.checkpoint.pec.always_saved = {"gradients"};
  CHECK_THROWS_AS(Job(fs, catalog, options, *world), ConfigError);
}

TEST_CASE("a change of K keeps the rotation", "[checkpointer]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({2, 8, 1, 1});
  const auto world = comm::make_self_group();
  { Job(fs, catalog, job_options(2), *world).train(3); }  // full, {0,1}, {2,3}
  Job job(fs, catalog, job_options(3), *world);
  job.train(1);
  CHECK(manifest_of(fs, 4).first_budget == 2);
  CHECK(experts_written(manifest_of(fs, 4), 8) == std::vector{4, 5, 6});
}
