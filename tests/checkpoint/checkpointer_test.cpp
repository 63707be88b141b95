#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include <pecan/core/forwarding_file_system.hpp>
#include <pecan/core/philox.hpp>

#include <pecan/checkpoint/checkpointer.hpp>

#include "checkpoint/job.hpp"
#include "checkpoint/lineage.hpp"
#include "checkpoint/request.hpp"
#include "checkpoint/scan.hpp"
#include "checkpoint/segment.hpp"
#include "checkpoint/snapshot.hpp"
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
class Gate final : public ForwardingFileSystem {
 public:
  using ForwardingFileSystem::ForwardingFileSystem;
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
    return inner().open(path, mode);
  }

 private:
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

TEST_CASE("every step is saved where writing and committing take less than one", "[checkpointer]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 1, 1});
  const auto world = comm::make_self_group();
  test::JobOptions options = job_options(1);
  options.checkpoint.async_save = true;
  const ExpectLog log;
  Job job(fs, catalog, options, *world);
  job.train(1);  // full
  // As long as a forward and backward: until this rank's next vote says that all is written (2)
  // that was started (8), and the one before that closed (4).
  const auto settled = [&] {
    const Vote vote = job.checkpointer().vote();
    return vote[2] == vote[8] && (vote[4] == vote[8] - 1 || vote[4] > 1'000'000);
  };
  for (int i = 0; i < 8; ++i) {
    job.step();
    while (!settled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  job.drain();
  CHECK(job.records().size() == 9);
  for (const SaveRecord& record : job.records()) CHECK(record.committed);
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

namespace {

/// Snapshots each step, a checkpoint in storage every `save_interval` steps.
test::JobOptions two_levels(const std::string& memory_dir,
                            int in_storage,
                            int in_memory,
                            int save_interval) {
  test::JobOptions options =
      test::two_level_options(memory_dir, in_storage, in_memory, save_interval, 9);
  options.checkpoint.keep_latest_k = 9;
  return options;
}

/// "m5 s8 ...": committed saves by level and step; failed ones with a question mark.
std::string history_of(const std::vector<SaveRecord>& records) {
  std::string text;
  for (const SaveRecord& record : records) {
    text += fmt::format("{}{}{} ",
                        record.level == SaveLevel::kMemory ? 'm' : 's',
                        record.version.step,
                        record.committed ? "" : "?");
  }
  return text;
}

}  // namespace

TEST_CASE("memory takes each snapshot and storage every fourth, from the same copies",
          "[checkpointer]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({2, 8, 2, 2});
  std::vector<std::string> histories(4);
  std::vector<std::string> differences(4);
  comm::run_thread_group(4, [&](comm::Group& world) {
    const auto rank = std::size_t(world.rank().value);
    {
      Job job(fs, catalog, two_levels(dir.path(), 1, 3, 4), world);
      job.train(17);
      histories[rank] = history_of(job.records());
      for (const SaveRecord& record : job.records()) {
        const int experts = record.full ? 8 : record.level == SaveLevel::kMemory ? 3 : 1;
        if (record.num_expert_units != 2 * experts) histories[rank] += "units ";
      }
    }
    Job again(fs, catalog, two_levels(dir.path(), 1, 3, 4), world);
    differences[rank] = again.difference();
  });
  for (std::size_t rank = 0; rank < 4; ++rank) {
    // The first save is the full checkpoint that snapshots in memory stand on.
    CHECK(histories[rank] == "s1 m2 m3 s4 m5 m6 m7 s8 m9 m10 m11 s12 m13 m14 m15 s16 m17 ");
    CHECK(differences[rank].empty());
  }
  CHECK(experts_written(manifest_of(fs, 4), 8) == std::vector{0});
  CHECK(experts_written(manifest_of(fs, 8), 8) == std::vector{4});
  CHECK(experts_written(manifest_of(fs, 12), 8) == std::vector{1});
}

TEST_CASE("training goes on while storage is slow: snapshots wait and are replaced",
          "[checkpointer]") {
  const test::TempDir dir;
  MemoryFileSystem memory;
  Gate fs(memory);
  const StateCatalog catalog = make_catalog({1, 8, 1, 1});
  const auto world = comm::make_self_group();
  test::JobOptions options = two_levels(dir.path(), 1, 2, 3);
  const ExpectLog log;
  Job job(fs, catalog, options, *world);
  job.train(3);  // full, in storage
  fs.close();
  const auto steps = [&](int count) {
    for (int i = 0; i < count; ++i) {
      job.step();
      // The copy ends before the next vote here, as under a long forward and backward.
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  };
  steps(12);  // 4 .. 15; 6 hangs in storage, 9 and 12 wait in turn
  fs.open();
  job.drain();
  job.train(3);
  const std::string history = history_of(job.records());
  INFO(history);
  CHECK(history.find("s9? ") != std::string::npos);
  CHECK(history.find("s6 ") != std::string::npos);
  CHECK(history.find("s18 ") != std::string::npos);
  for (const SaveRecord& record : job.records()) {
    if (record.committed) continue;
    const bool known = record.failure.find("replaced by the snapshot of step") == 0 ||
                       record.failure.find("skipped: ") == 0;
    CHECK(known);
  }
  // No expert was passed over: each one stored is the one that storage needed most.
  CHECK(experts_written(manifest_of(memory, 3), 8) == std::vector{0});
  CHECK(experts_written(manifest_of(memory, 6), 8) == std::vector{1});
  CHECK(experts_written(manifest_of(memory, 18), 8).size() == 1);
}

TEST_CASE("a snapshot that fails on one rank is dropped on all, storage and all",
          "[checkpointer]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  const ExpectLog log;
  std::vector<std::string> histories(2);
  comm::run_thread_group(2, [&](comm::Group& world) {
    Job job(fs, catalog, two_levels(dir.path(), 1, 2, 2), world);
    job.train(4);
    if (world.rank().value == 1) job.binding().fail_next_copy(MutatedIn::kUpdate);
    job.train(1);
    if (world.rank().value == 1) job.binding().fail_next_copy(MutatedIn::kForward);
    job.train(3);
    histories[std::size_t(world.rank().value)] = history_of(job.records());
  });
  for (const std::string& history : histories) CHECK(history == "s1 s2 m3 s4 m5? s6? m7 s8 ");
  CHECK_FALSE(fs.exists("run/checkpoints/step-00000006.partial"));
  CHECK(log.contains("the snapshot of step 5 is dropped"));
  CHECK(log.contains("the checkpoint of step 6 is dropped"));
}

TEST_CASE("saves follow a clock where intervals are seconds, whatever the clock does",
          "[checkpointer]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  std::vector<std::string> histories(2);
  comm::run_thread_group(2, [&](comm::Group& world) {
    // Rank 1's clock is wrong; only rank 0's counts.
    double now = world.rank().value == 0 ? 100 : 5000;
    test::JobOptions options = two_levels(dir.path(), 1, 2, 0);
    options.checkpoint.save_interval = {0, 10};
    options.checkpoint.non_persistent_save_interval = {0, 3};
    options.seconds = [&now] { return now; };
    Job job(fs, catalog, options, world);
    const auto steps = [&](int count, double seconds) {
      for (int i = 0; i < count; ++i) {
        now += seconds;
        job.train(1);
      }
    };
    steps(17, 1);  // the first save after 3 s, then memory each 3 s, storage each 10 s
    now -= 1000;   // set back
    steps(14, 1);  // 18 .. 31: the intervals start anew
    histories[std::size_t(world.rank().value)] = history_of(job.records());
  });
  CHECK(histories[0] == histories[1]);
  INFO(histories[0]);
  CHECK(histories[0] == "s3 m6 m9 m12 s13 m16 m21 m24 m27 s28 m31 ");
}

TEST_CASE("the token slots of a step decide what load-aware selection saves, after a restart too",
          "[checkpointer]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 1, 1});
  const auto world = comm::make_self_group();
  test::JobOptions options = job_options(1, 9);
  options.checkpoint.keep_latest_k = 9;
  options.checkpoint.pec.selection = "load_aware";
  options.checkpoint.pec.max_expert_age = 6;
  options.slots_a_step = {1, 5, 10, 0};
  {
    Job job(fs, catalog, options, *world);
    job.train(4);
  }
  // Unsaved before 2: 1 5 10 0 (since step 1); before 3: 2 10 10 0; before 4: 3 5 20 0.
  CHECK(experts_written(manifest_of(fs, 2), 4) == std::vector{2});
  CHECK(experts_written(manifest_of(fs, 3), 4) == std::vector{1});
  CHECK(experts_written(manifest_of(fs, 4), 4) == std::vector{2});
  CHECK(manifest_of(fs, 4).ages == std::vector{3, 1, 0, 3});
  Job job(fs, catalog, options, *world);
  job.train(5);
  // Expert 3 has no tokens at all; its age alone brings it up.
  bool reached = false;
  for (int step = 5; step <= 9; ++step) {
    const std::vector<int> written = experts_written(manifest_of(fs, step), 4);
    reached = reached || written == std::vector{3};
  }
  CHECK(reached);
  CHECK(std::ranges::max(manifest_of(fs, 9).ages) <= 6);
}

TEST_CASE("host memory is what the plan says, and enough for every snapshot", "[checkpointer]") {
  const test::TempDir dir;
  for (const auto& [ep, edp] : {std::pair(1, 1), {2, 1}, {2, 2}}) {
    const StateCatalog catalog = make_catalog({3, 8, ep, edp});
    for (const char* policy : {"sequential", "load_aware", "auto"}) {
      for (const bool memory : {false, true}) {
        config::CheckpointConfig config = two_levels(dir.path(), 2, memory ? 3 : 2, 4).checkpoint;
        config.pec.selection = policy;
        if (!memory) config.non_persistent_save_interval = {};
        const auto plan = plan_snapshot_memory(catalog, config, {}, false);
        REQUIRE(plan.size() == std::size_t(ep * edp));
        for (const SnapshotMemory& rank : plan) {
          CHECK(rank.num_buffers == (memory ? 3 : 1));
          CHECK(rank.first >= rank.others);
          CHECK(rank.others > 0);
        }
        // With a full checkpoint in storage none is needed any more.
        for (const SnapshotMemory& rank : plan_snapshot_memory(catalog, config, {}, true))
          CHECK(rank.first == rank.others);
      }
    }
  }
}

TEST_CASE("host memory is enough for whatever failures leave of the rotation", "[checkpointer]") {
  const test::TempDir dir;
  const StateCatalog catalog = make_catalog({3, 8, 2, 2});
  const ExpertGrid grid = expert_grid(catalog, {});
  for (const int in_storage : {1, 2, 3}) {
    config::CheckpointConfig config = two_levels(dir.path(), in_storage, 4, 4).checkpoint;
    const SelectionSettings settings = selection_settings(config, grid, {});
    const auto plan = plan_snapshot_memory(catalog, config, {}, true);
    for (std::uint64_t draw = 0; draw < 300; ++draw) {
      // Versions in any order, as recoveries from mixed sources leave them.
      const auto history = [&](std::uint64_t stream) {
        SelectionHistory any = SelectionHistory::uniform(grid, in_storage, Step{0});
        std::uint64_t element = 0;
        for (Step& version : any.newest)
          version = Step{std::int64_t(10 * philox_uniform(draw, stream, element++))};
        return any;
      };
      const LevelSelection selection =
          select_levels(grid,
                        settings.policy,
                        {history(1), settings.memory},
                        {history(2), settings.storage},
                        draw % 2 == 0 ? ForStorage::kYes : ForStorage::kNo,
                        Step{10});
      const SavePlan snapshot = plan_levels(catalog, settings, selection).snapshot;
      std::vector<std::size_t> bytes(plan.size());
      for (const PlannedWrite& write : snapshot.writes)
        bytes[std::size_t(write.writer.value)] += snapshot_bytes(catalog, write);
      for (std::size_t r = 0; r < bytes.size(); ++r) CHECK(bytes[r] <= plan[r].others);
    }
  }
}

TEST_CASE("what memory holds outlives the process, whole and of its step", "[checkpointer]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const std::unique_ptr<FileSystem> posix = make_posix_file_system();
  const StateCatalog catalog = make_catalog({2, 4, 2, 1});
  std::string run_id;
  comm::run_thread_group(2, [&](comm::Group& world) {
    Job job(fs, catalog, two_levels(dir.path(), 1, 2, 4), world);
    job.train(6);
    if (world.rank().value == 0) run_id = job.recovered().identity.run_id;
  });
  // By step: elements of the non-expert state that some rank's buffer holds.
  std::map<std::int64_t, std::int64_t> dense_elements;
  std::set<std::pair<std::int64_t, UnitIndex>> experts;
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    ++files;
    Result<StoredSegment> segment = read_segment(*posix, entry.path().string());
    if (!segment.ok()) continue;
    const Version version = segment.value().header.version;
    CHECK(segment.value().name.run_id == run_id);
    CHECK(segment.value().header.consumed_samples == version.step.value * 8);
    for (std::size_t b = 0; b < segment.value().index.blocks.size(); ++b) {
      const BlockEntry& stored = segment.value().index.blocks[b];
      const auto item = std::ranges::find_if(catalog.items, [&](const StateItem& one) {
        return one.path() == stored.block.item + "/" + stored.block.dataset;
      });
      REQUIRE(item != catalog.items.end());
      std::vector<std::byte> bytes(std::size_t(stored.block.block.extent.num_elements()) *
                                   size_of(item->dtype));
      REQUIRE(read_block(segment.value(), b, bytes).ok());
      // Blocks are whole rows: their bytes stand together in the item.
      const auto content =
          test::content_of(catalog, ItemIndex{std::int32_t(item - catalog.items.begin())}, version);
      const std::size_t first = stored.block.block.offset.num_dims() == 0
                                    ? 0
                                    : std::size_t(stored.block.block.offset[0]) *
                                          (content.size() / std::size_t(item->global_shape[0]));
      CHECK(std::equal(bytes.begin(), bytes.end(), content.begin() + std::ptrdiff_t(first)));
      if (stored.unit.value == 0) {
        dense_elements[version.step.value] += stored.block.block.extent.num_elements();
      } else {
        experts.emplace(version.step.value, stored.unit);
      }
    }
  }
  CHECK(files == 6);
  std::int64_t all = 0;
  for (const StateItem& item : catalog.items)
    all += item.unit.value == 0 ? item.global_shape.num_elements() : 0;
  CHECK(dense_elements == std::map<std::int64_t, std::int64_t>{{4, all}, {5, all}, {6, all}});
  CHECK(experts.size() == 4 + 4 + 4);

  // The next start takes their place, and a run that is over leaves nothing.
  comm::run_thread_group(2, [&](comm::Group& world) {
    Job job(fs, catalog, two_levels(dir.path(), 1, 2, 4), world);
    job.train(2);
    job.checkpointer().release_memory();
  });
  CHECK(std::filesystem::is_empty(dir.path()));
}

TEST_CASE("memory that is too small for the snapshots is refused at start", "[checkpointer]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 1, 1});
  const auto world = comm::make_self_group();
  try {
    const Job job(fs, catalog, two_levels("/nowhere/at/all", 1, 2, 4), *world);
    FAIL("accepted");
  } catch (const CheckpointError& error) {
    CHECK_THAT(error.what(), Catch::Matchers::Contains("/nowhere/at/all"));
  }
}
