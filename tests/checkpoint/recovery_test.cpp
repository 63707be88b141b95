#include <algorithm>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include <pecan/checkpoint/recovery.hpp>

#include "checkpoint/exchange.hpp"
#include "checkpoint/job.hpp"
#include "checkpoint/scan.hpp"
#include "checkpoint/segment.hpp"
#include "support/catch.hpp"
#include "support/faulty_file_system.hpp"
#include "support/memory_file_system.hpp"
#include "support/support.hpp"

using namespace pecan;
using namespace pecan::checkpoint;
using test::copy_below;
using test::ExpectLog;
using test::Job;
using test::job_options;
using test::make_catalog;
using test::MemoryFileSystem;

namespace {

constexpr const char* kRoot = "run/checkpoints";

/// What one rank found when it recovered, for assertions on the main thread.
struct Finding {
  bool fresh = true;
  std::int64_t step = 0;
  std::int64_t oldest = 0;  ///< version of any restored unit
  std::string difference;
  std::vector<std::string> damages;
  std::vector<std::string> abandoned;
  std::string error;
};

Finding finding_of(const Job& job) {
  const RecoveryReport& report = job.recovered().report;
  Finding finding{report.fresh, 0, 0, {}, report.damages, report.abandoned, {}};
  if (report.fresh) return finding;
  finding.step = finding.oldest = report.plan.recovery.step.value;
  for (const UnitRestore& restore : report.plan.restores) {
    finding.oldest = std::min(finding.oldest, restore.version.step.value);
  }
  finding.difference = job.difference();
  return finding;
}

Finding recover_once(FileSystem& fs,
                     const StateCatalog& catalog,
                     const test::JobOptions& options,
                     int train_after = 0) {
  std::vector<Finding> findings(std::size_t(catalog.world_size));
  comm::run_thread_group(catalog.world_size, [&](comm::Group& world) {
    Finding& mine = findings[std::size_t(world.rank().value)];
    try {
      Job job(fs, catalog, options, world);
      mine = finding_of(job);
      job.train(train_after);
    } catch (const CheckpointError& error) {
      mine.error = error.what();
    }
  });
  for (const Finding& other : findings) {
    if (!other.difference.empty()) return other;
    if (other.error != findings[0].error || other.step != findings[0].step) {
      findings[0].difference = "ranks disagree";
    }
  }
  return findings[0];
}

void train(FileSystem& fs,
           const StateCatalog& catalog,
           const test::JobOptions& options,
           int steps) {
  static_cast<void>(recover_once(fs, catalog, options, steps));
}

bool mentions(const std::vector<std::string>& sentences, const std::string& text) {
  return std::ranges::any_of(sentences, [&](const std::string& sentence) {
    return sentence.find(text) != std::string::npos;
  });
}

}  // namespace

TEST_CASE("texts are packed and read back", "[recovery]") {
  const std::vector<std::string> fields{"", "a:b", std::string(300, 'x'), "12:"};
  CHECK(unpack(pack(fields)) == fields);
  CHECK(unpack(pack({})).empty());
}

TEST_CASE("every item comes back as of the step that the plan names", "[recovery]") {
  for (const auto& [ep, edp] : {std::pair(1, 1), {2, 1}, {4, 1}, {2, 2}}) {
    MemoryFileSystem fs;
    const StateCatalog catalog = make_catalog({3, 8, ep, edp});
    CHECK(recover_once(fs, catalog, job_options(2), 6).fresh);
    const Finding found = recover_once(fs, catalog, job_options(2), 2);
    CHECK(found.difference == "");
    CHECK(found.step == 6);
    CHECK(found.oldest == 3);  // ceil(8 / 2) - 1 intervals
    CHECK(found.damages.empty());
    CHECK(found.abandoned.empty());
    const Finding again = recover_once(fs, catalog, job_options(2));
    CHECK(again.difference == "");
    CHECK(again.step == 8);
  }
}

TEST_CASE("with K = N everything comes back from one step", "[recovery]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({2, 4, 2, 1});
  train(fs, catalog, job_options(4), 3);
  const Finding found = recover_once(fs, catalog, job_options(4));
  CHECK(found.step == 3);
  CHECK(found.oldest == 3);
  CHECK(found.difference == "");
}

namespace {

/// What became of a run whose process died at a call.
struct Crashed {
  std::size_t mutations = 0;  ///< calls that two more saves and sweeps need
  Step acknowledged;          ///< newest checkpoint that the votes called committed
  Step started;               ///< newest checkpoint begun
};

enum class Death : std::uint8_t { kProcess, kNode, kNodeAtRandom };

/// Goes on for two saves, the second of which retires and deletes, on a file system that stops at
/// the given call.
Crashed train_and_die(MemoryFileSystem& fs,
                      const StateCatalog& catalog,
                      std::size_t stop,
                      Death death) {
  const ExpectLog log;
  std::vector<Crashed> of_rank(std::size_t(catalog.world_size));
  comm::run_thread_group(catalog.world_size, [&](comm::Group& world) {
    Crashed& mine = of_rank[std::size_t(world.rank().value)];
    Job job(fs, catalog, job_options(1), world);
    job.drain();  // no rank writes before all have recovered
    const std::size_t before = fs.num_mutations();
    if (world.rank().value == 0) fs.stop_at(stop);
    job.drain();
    job.train(2);
    mine.mutations = fs.num_mutations() - before;
    mine.acknowledged = std::max(job.newest_committed(), job.recovered().report.plan.recovery.step);
    mine.started = job.checkpointer().last_started();
    if (world.rank().value != 0) return;
    if (death == Death::kProcess) fs.restart();
    if (death == Death::kNode) fs.crash();
    if (death == Death::kNodeAtRandom) fs.crash(stop);
    fs.stop_at(1);  // a process that died does not release its lock
  });
  fs.restart();
  return of_rank[0];
}

}  // namespace

TEST_CASE("a crash at any call of a save or a sweep leaves the old or the new state",
          "[recovery]") {
  int stops = 0;
  int old_states = 0;
  int new_states = 0;
  for (const int ep : {1, 2}) {
    const StateCatalog catalog = make_catalog({1, 2, ep, 1});
    MemoryFileSystem base;
    train(base, catalog, job_options(1), 2);
    for (const Death death : {Death::kProcess, Death::kNode, Death::kNodeAtRandom}) {
      // The order of the calls of two ranks differs between runs: a sample of stops will do.
      for (std::size_t stop = 1;; stop += ep == 1 ? 1 : 11) {
        MemoryFileSystem fs;
        copy_below(base, fs, "run");
        REQUIRE(fs.sync_directory("").ok());
        const Crashed crashed = train_and_die(fs, catalog, stop, death);
        if (stop > crashed.mutations) break;
        ++stops;
        INFO("EP " << ep << ", death " << int(death) << ", stopped at call " << stop);
        const Finding found = recover_once(fs, catalog, job_options(1), 2);
        REQUIRE(found.error == "");
        REQUIRE(found.difference == "");
        REQUIRE_FALSE(found.fresh);
        REQUIRE(found.step >= crashed.acknowledged.value);
        REQUIRE(found.step <= crashed.started.value);
        REQUIRE(found.oldest >= found.step - 2);  // one interval, or two after a failed save
        REQUIRE(found.damages.empty());
        (found.step == crashed.acknowledged.value ? old_states : new_states) += 1;
        const Finding after = recover_once(fs, catalog, job_options(1));
        REQUIRE(after.step == found.step + 2);
        REQUIRE(after.difference == "");
        REQUIRE(after.damages.empty());
      }
    }
  }
  CHECK(stops > 150);
  CHECK(old_states > 0);
  CHECK(new_states > 0);
}

TEST_CASE("a crash at any call of a recovery changes nothing that the next one finds",
          "[recovery]") {
  const StateCatalog catalog = make_catalog({1, 2, 1, 1});
  int stops = 0;
  MemoryFileSystem base;
  train(base, catalog, job_options(1), 4);
  for (int kind = 0; kind < 2; ++kind) {
    for (std::size_t stop = 1;; ++stop) {
      MemoryFileSystem fs;
      copy_below(base, fs, "run");
      REQUIRE(fs.sync_directory("").ok());
      // A save that a crash cut short, and a newest checkpoint without its manifest.
      REQUIRE(fs.create_directories("run/checkpoints/step-00000005.partial").ok());
      REQUIRE(fs.remove_file("run/checkpoints/step-00000004/manifest.json").ok());
      REQUIRE(fs.sync_directory("run/checkpoints/step-00000004").ok());
      REQUIRE(fs.sync_directory(kRoot).ok());
      const std::size_t before = fs.num_mutations();
      fs.stop_at(stop);
      {
        const ExpectLog log;
        static_cast<void>(recover_once(fs, catalog, job_options(1)));
      }
      const bool whole = fs.num_mutations() - before < stop;
      if (kind == 0) fs.crash();
      fs.restart();
      INFO("kind " << kind << ", stopped at call " << stop);
      const Finding found = recover_once(fs, catalog, job_options(1), 1);
      REQUIRE(found.error == "");
      REQUIRE(found.step == 3);
      REQUIRE(found.difference == "");
      REQUIRE_FALSE(fs.exists("run/checkpoints/step-00000005.partial"));
      // Step 4 was saved again under its own name.
      const Finding after = recover_once(fs, catalog, job_options(1));
      REQUIRE(after.step == 4);
      REQUIRE(after.difference == "");
      if (whole) break;
      ++stops;
    }
  }
  CHECK(stops > 20);
}

TEST_CASE("damage to any file is worked round and reported, or reported as unrecoverable",
          "[recovery]") {
  const StateCatalog catalog = make_catalog({2, 4, 1, 1});
  const auto each_damage = [&](int fallback_copies, auto check) {
    MemoryFileSystem base;
    train(base, catalog, job_options(1, fallback_copies), 6);
    for (const std::string& file : test::files_below(base, kRoot)) {
      if (file.find('/') == std::string::npos) continue;
      for (int damage = 0; damage < 5; ++damage) {
        MemoryFileSystem fs;
        copy_below(base, fs, "run");
        const std::string path = fmt::format("{}/{}", kRoot, file);
        const std::uint64_t size = fs.open(path, OpenMode::kRead).value()->size().value();
        if (damage == 0) REQUIRE(fs.remove_file(path).ok());
        if (damage == 1) {
          REQUIRE(fs.open(path, OpenMode::kReadWrite).value()->truncate(size / 2).ok());
        }
        if (damage >= 2) {
          // In the last third lies data, in the first the format's own structures.
          const std::uint64_t byte = size * std::uint64_t(2 * damage - 3) / 6;
          test::flip_bit(fs, path, 8 * byte + std::uint64_t(damage));
        }
        INFO(file << " with damage " << damage << ", fallback copies " << fallback_copies);
        check(fs, file, damage);
      }
    }
  };
  int fell_back = 0;
  int stale = 0;
  each_damage(1, [&](FileSystem& fs, const std::string& file, int damage) {
    const Finding found = recover_once(fs, catalog, job_options(1), 1);
    REQUIRE(found.error == "");
    REQUIRE(found.difference == "");
    REQUIRE(found.step >= 5);
    fell_back += found.step == 5 ? 1 : 0;
    const bool older_copy = found.step == 6 && found.oldest < 6 - 3;
    stale += older_copy ? 1 : 0;
    if (found.step == 5 || older_copy) REQUIRE_FALSE(found.damages.empty());
    const bool newest = file.starts_with("step-00000006/");
    if (newest && file.ends_with("manifest.json")) REQUIRE(found.step == 5);
    if (newest && file.ends_with(".state.h5") && damage < 2) {
      REQUIRE(found.step == 5);
      REQUIRE(mentions(found.damages, file));
    }
    if (newest && file.ends_with(".experts.h5") && damage < 2) {
      REQUIRE(found.step == 6);
      REQUIRE(mentions(found.damages, file));
    }
    const Finding after = recover_once(fs, catalog, job_options(1));
    REQUIRE(after.difference == "");
    REQUIRE(after.step == found.step + 1);
  });
  CHECK(fell_back > 5);
  CHECK(stale > 0);
  int unrecoverable = 0;
  each_damage(0, [&](FileSystem& fs, const std::string&, int) {
    const Finding found = recover_once(fs, catalog, job_options(1, 0));
    REQUIRE(found.difference == "");
    if (found.error.empty()) {
      REQUIRE(found.step == 6);
    } else {
      ++unrecoverable;
      REQUIRE(found.error.find("can be recovered") != std::string::npos);
      REQUIRE(found.error.find("step") != std::string::npos);
      REQUIRE(fs.exists("run/checkpoints/step-00000006"));  // nothing is thrown away
    }
  });
  CHECK(unrecoverable > 10);
}

TEST_CASE("experts without a copy stop a recovery, or begin anew where that is asked for",
          "[recovery]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 1, 1});
  const auto world = comm::make_self_group();
  {
    Job job(fs, catalog, job_options(1), *world);
    job.train(3);
  }
  for (const std::string& name : test::files_below(fs, kRoot)) {
    if (name.find(".experts") != std::string::npos)
      REQUIRE(fs.remove_file(std::string(kRoot) + "/" + name).ok());
  }
  CHECK_THROWS_WITH(Job(fs, catalog, job_options(1), *world),
                    Catch::Contains("layers.0.experts.0, layers.0.experts.1") &&
                        Catch::Contains("--allow-reinit-expert lets begin anew"));

  device::Stream stream{device::cpu()};
  device::Arena workspace;
  Context ctx{device::cpu(), stream, workspace, 1};
  test::FakeBinding binding(catalog, Rank{0});
  binding.set({Incarnation{0}, Step{99}}, MutatedIn::kUpdate);  // what is in it must not matter
  binding.set({Incarnation{0}, Step{99}}, MutatedIn::kForward);
  const Recovered recovered = recover(fs,
                                      "run",
                                      ResumeMode::kFromFailure,
                                      "",
                                      catalog,
                                      binding,
                                      ctx,
                                      *world,
                                      {.lock = job_options(1).lock, .reinitialise = [&] {
                                         binding.set(Version{}, MutatedIn::kUpdate);
                                       }});
  const Version reached = recovered.report.plan.recovery;
  CHECK(reached.step == Step{3});
  CHECK_FALSE(recovered.manifest.has_value());  // so that the next checkpoint is full
  CHECK(std::ranges::count_if(recovered.report.damages, [](const std::string& text) {
          return text.find("begins anew") != std::string::npos;
        }) == 4);
  for (const UnitRestore& restore : recovered.report.plan.restores)
    CHECK((restore.tier == Tier::kInitial) == (restore.unit.value > 0));
  for (std::size_t i = 0; i < catalog.items.size(); ++i) {
    const StateItem& item = catalog.items[i];
    INFO(item.path());
    const ItemIndex index{std::int32_t(i)};
    std::vector<std::byte> expected =
        test::content_of(catalog, index, item.unit.value == 0 ? reached : Version{});
    if (item.unit.value > 0 && item.role != Role::kWeight)
      std::ranges::fill(expected, std::byte(0));
    for (const StateBlock& part : item.blocks) {
      if (part.block != Block::whole(item.global_shape)) continue;
      std::vector<std::byte> bytes(expected.size());
      binding.copy_out(index, part.block, bytes);
      CHECK((bytes == expected));
    }
  }
}

TEST_CASE("what one rank finds damaged, all ranks take from the older copy", "[recovery]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({2, 4, 2, 2});
  train(fs, catalog, job_options(2), 4);
  const std::string shard = "run/checkpoints/step-00000004/rank-00003.experts.h5";
  const std::uint64_t size = fs.open(shard, OpenMode::kRead).value()->size().value();
  REQUIRE(fs.open(shard, OpenMode::kReadWrite).value()->truncate(size - 1).ok());
  Finding found = recover_once(fs, catalog, job_options(2));
  CHECK(found.error == "");
  CHECK(found.step == 4);
  CHECK(found.oldest == 2);
  CHECK(found.difference == "");
  CHECK(mentions(found.damages, "rank-00003.experts.h5"));
  test::flip_bit(fs, "run/checkpoints/step-00000004/rank-00001.state.h5", 8 * 100);
  found = recover_once(fs, catalog, job_options(2));
  CHECK(found.error == "");
  CHECK(found.step == 3);
  CHECK(found.difference == "");
  CHECK(mentions(found.damages, "continuing from step 3"));
}

TEST_CASE("nothing of an abandoned branch is ever used again", "[recovery]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({2, 4, 2, 1});
  train(fs, catalog, job_options(1), 6);
  const std::string manifest = "run/checkpoints/step-00000006/manifest.json";
  test::flip_bit(fs, manifest, 800);
  Finding found = recover_once(fs, catalog, job_options(1));
  CHECK(found.step == 5);
  CHECK(found.abandoned == std::vector<std::string>{"abandoned-1-step-00000006"});
  CHECK(mentions(found.damages, "step-00000006"));
  // The damage heals, too late: the run has gone on from step 5.
  test::flip_bit(fs, "run/checkpoints/abandoned-1-step-00000006/manifest.json", 800);
  found = recover_once(fs, catalog, job_options(1), 2);
  CHECK(found.step == 5);
  found = recover_once(fs, catalog, job_options(1));
  CHECK(found.step == 7);
  CHECK(found.difference == "");  // step 6 of incarnation 2, not of 0
  CHECK_FALSE(fs.exists("run/checkpoints/abandoned-1-step-00000006"));
}

TEST_CASE("an abandoned branch whose renaming was cut short is known by the lineage",
          "[recovery]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 2, 1, 1});
  train(fs, catalog, job_options(2, 9), 4);
  test::JobOptions back = job_options(2, 9);
  back.mode = ResumeMode::kFromPath;
  back.path = "run/checkpoints/step-00000002";
  CHECK(recover_once(fs, catalog, back, 1).step == 2);  // commits step 3 of incarnation 1
  train(fs, catalog, job_options(2, 9), 0);
  // As if the branch had never been renamed: step 4 of incarnation 0 stands beside it.
  {
    MemoryFileSystem other;
    train(other, catalog, job_options(2, 9), 4);
    for (const char* name : {"manifest.json", "rank-00000.state.h5", "rank-00000.experts.h5"}) {
      const std::string path = fmt::format("run/checkpoints/step-00000004/{}", name);
      std::string text = read_text(other, path).value();
      if (std::string(name) == "manifest.json") {
        Manifest manifest = parse_manifest(text).value();
        manifest.run_id = load_checkpoint(fs, kRoot, "step-00000003").value().manifest.run_id;
        text = to_json(manifest);
      }
      REQUIRE(fs.create_directories("run/checkpoints/step-00000004").ok());
      REQUIRE(write_text_atomically(fs, path, text).ok());
    }
  }
  const Finding found = recover_once(fs, catalog, job_options(2, 9));
  CHECK(found.step == 3);
  CHECK(found.difference == "");
  CHECK(mentions(found.abandoned, "step-00000004"));
}

TEST_CASE("an older copy must be the one that the manifest counted on", "[recovery]") {
  const StateCatalog catalog = make_catalog({1, 4, 1, 1});
  MemoryFileSystem fs;
  train(fs, catalog, job_options(1), 4);
  const Manifest expected = load_checkpoint(fs, kRoot, "step-00000003").value().manifest;
  // Another run's step 3, good in itself, stands where this run's was.
  MemoryFileSystem other;
  train(other, catalog, job_options(1), 0);
  train(other, catalog, job_options(1), 4);
  copy_below(other, fs, "run/checkpoints/step-00000003");
  Manifest manifest = load_checkpoint(fs, kRoot, "step-00000003").value().manifest;
  manifest.run_id = expected.run_id;
  manifest.version = expected.version;
  for (UnitCopy& copy : manifest.copies) copy.version.incarnation = Incarnation{0};
  manifest.lineage = expected.lineage;
  REQUIRE(
      write_text_atomically(fs, "run/checkpoints/step-00000003/manifest.json", to_json(manifest))
          .ok());
  const Finding found = recover_once(fs, catalog, job_options(1));
  CHECK(found.error == "");
  CHECK(found.step == 4);
  CHECK(found.difference == "");
  CHECK(mentions(found.damages, "counts on other content"));
}

TEST_CASE("--resume continues from the named checkpoint of the run, and from no other",
          "[recovery]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({2, 4, 2, 1});
  test::JobOptions options = job_options(1);
  options.checkpoint.keep_latest_k = 3;
  train(fs, catalog, options, 6);
  options.mode = ResumeMode::kFromPath;
  for (const char* path : {"run/checkpoints/step-00000001",
                           "run/checkpoints/step-00000099",
                           "run/checkpoints",
                           "other/checkpoints/step-00000005"}) {
    options.path = path;
    const Finding refused = recover_once(fs, catalog, options);
    CHECK(refused.error.find("--resume") != std::string::npos);
  }
  options.path = "run/./checkpoints/step-00000005/";
  const Finding found = recover_once(fs, catalog, options, 1);
  CHECK(found.error == "");
  CHECK(found.step == 5);
  CHECK(found.difference == "");
  CHECK(mentions(found.abandoned, "step-00000006"));
  CHECK(recover_once(fs, catalog, job_options(1)).step == 6);
}

TEST_CASE("a used run directory is refused without a resume flag", "[recovery]") {
  const StateCatalog catalog = make_catalog({1, 2, 2, 1});
  test::JobOptions fresh = job_options(1);
  fresh.mode = ResumeMode::kFreshOnly;
  MemoryFileSystem fs;
  CHECK(recover_once(fs, catalog, fresh).error == "");  // nothing was saved
  CHECK(recover_once(fs, catalog, fresh, 1).error == "");
  CHECK(recover_once(fs, catalog, fresh).error.find("--resume-from-failure") != std::string::npos);
  MemoryFileSystem other;
  REQUIRE(other.create_directories("run").ok());
  REQUIRE(write_text_atomically(other, "run/metrics.jsonl", "{}\n").ok());
  CHECK(recover_once(other, catalog, fresh).error.find("--resume-from-failure") !=
        std::string::npos);
}

TEST_CASE("the run directory of another model, or of another run, is refused", "[recovery]") {
  MemoryFileSystem fs;
  train(fs, make_catalog({1, 2, 2, 1}), job_options(1), 1);
  const Finding model = recover_once(fs, make_catalog({1, 4, 2, 1}), job_options(1));
  CHECK(model.error.find("is of another model") != std::string::npos);
  CHECK(fs.exists("run/checkpoints/step-00000001"));
  REQUIRE(fs.remove_file("run/lock.json").ok());
  // Without a lock the manifests tell the run's identity ...
  CHECK(recover_once(fs, make_catalog({1, 2, 2, 1}), job_options(1), 1).step == 1);
  // ... and with another run's they contradict it.
  MemoryFileSystem other;
  train(other, make_catalog({1, 2, 2, 1}), job_options(1), 1);
  REQUIRE(
      write_text_atomically(fs, "run/lock.json", read_text(other, "run/lock.json").value()).ok());
  const Finding run = recover_once(fs, make_catalog({1, 2, 2, 1}), job_options(1));
  CHECK(run.error.find("but this is the run directory of") != std::string::npos);
}

TEST_CASE("a run directory that cannot be written, or that ranks do not share, is refused",
          "[recovery]") {
  const StateCatalog catalog = make_catalog({1, 2, 2, 1});
  MemoryFileSystem memory;
  test::FaultyFileSystem fs(memory);
  fs.inject({test::Call::kCreateDirectories, StatusCode::kPermission, 1, true, "run", {}, 0});
  CHECK(recover_once(fs, catalog, job_options(1)).error.find("cannot be made") !=
        std::string::npos);

  MemoryFileSystem elsewhere;
  std::vector<std::string> errors(2);
  comm::run_thread_group(2, [&](comm::Group& world) {
    try {
      FileSystem& mine = world.rank().value == 0 ? static_cast<FileSystem&>(memory) : elsewhere;
      const Job job(mine, catalog, job_options(1), world);
    } catch (const CheckpointError& error) {
      errors[std::size_t(world.rank().value)] = error.what();
    }
  });
  for (const std::string& error : errors) {
    CHECK(error.find("rank 1 does not see") == 0);
    CHECK(error.find("--run-dir") != std::string::npos);
  }
}

TEST_CASE("a run continues the incarnation, run id and lineage of the one before", "[recovery]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 2, 1, 1});
  const auto world = comm::make_self_group();
  std::string run_id;
  for (int start = 0; start < 3; ++start) {
    Job job(fs, catalog, job_options(1), *world);
    const RunIdentity& identity = job.recovered().identity;
    if (start == 0) run_id = identity.run_id;
    CHECK(identity.run_id == run_id);
    CHECK(identity.run_id.size() == 16);
    CHECK(identity.incarnation == Incarnation{start});
    REQUIRE(identity.lineage.size() == std::size_t(start) + 1);
    CHECK(identity.lineage.back().fresh == (start == 0));
    if (start > 0) {
      CHECK(identity.lineage.back().parent == Version{Incarnation{start - 1}, Step{2 * start}});
    }
    job.train(2);
  }
}

namespace {

/// Steps of the restores by tier: "memory 8: 12, storage 4: 3".
std::string sources_of(const RestorePlan& plan) {
  std::map<std::pair<Tier, Step>, int> count;
  for (const UnitRestore& restore : plan.restores) ++count[{restore.tier, restore.version.step}];
  std::string text;
  for (const auto& [key, number] : count) {
    text += fmt::format("{}{} {}: {}",
                        text.empty() ? "" : ", ",
                        key.first == Tier::kMemory ? "memory" : "storage",
                        key.second,
                        number);
  }
  return text;
}

test::JobOptions with_memory(const std::string& directory) {
  return test::two_level_options(directory, 1, 2, 4, 3);
}

/// Runs `steps` steps on all ranks and stops as a killed process would, without giving up memory.
void train_and_die(FileSystem& fs,
                   const StateCatalog& catalog,
                   const test::JobOptions& options,
                   int steps) {
  comm::run_thread_group(catalog.world_size, [&](comm::Group& world) {
    Job(fs, catalog, options, world).train(steps);
  });
}

/// What each rank recovers, every item as of the step that the plan names.
std::vector<RecoveryReport> recover_all(FileSystem& fs,
                                        const StateCatalog& catalog,
                                        const test::JobOptions& options) {
  std::vector<RecoveryReport> reports(std::size_t(catalog.world_size));
  std::vector<std::string> differences(reports.size());
  comm::run_thread_group(catalog.world_size, [&](comm::Group& world) {
    const Job job(fs, catalog, options, world);
    reports[std::size_t(world.rank().value)] = job.recovered().report;
    differences[std::size_t(world.rank().value)] = job.difference();
  });
  for (const std::string& difference : differences) REQUIRE(difference.empty());
  return reports;
}

void flip_payload(const std::filesystem::path& path) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  // The first byte of the payload (docs/formats/memory.md).
  std::int64_t payload = 0;
  file.seekg(40);
  file.read(reinterpret_cast<char*>(&payload), sizeof(payload));
  file.seekg(payload);
  const char byte = char(file.get());
  file.seekp(payload);
  file.put(char(byte ^ 1));
}

}  // namespace

TEST_CASE("a run goes on from its newest snapshot in memory, experts from memory or storage",
          "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 8, 2, 1});
  const test::JobOptions options = with_memory(dir.path());
  train_and_die(fs, catalog, options, 10);  // full 1, storage 4, 8; memory 8, 9, 10
  const auto reports = recover_all(fs, catalog, options);
  for (const RecoveryReport& report : reports) {
    CHECK(report.plan.recovery.step == Step{10});
    CHECK(report.damages.empty());
    // Three generations of two experts are in memory (2 groups each), and the last two are from
    // the full checkpoint. Three groups of non-expert state.
    CHECK(sources_of(report.plan) == "storage 1: 4, memory 8: 4, memory 9: 4, memory 10: 7");
  }
}

TEST_CASE("after a recovery from memory storage goes on by itself", "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({2, 4, 2, 2});
  const test::JobOptions options = with_memory(dir.path());
  train_and_die(fs, catalog, options, 7);   // memory up to 7
  train_and_die(fs, catalog, options, 1);   // from 7 to 8, which is stored
  std::filesystem::remove_all(dir.path());  // the nodes are lost
  std::filesystem::create_directory(dir.path());
  const auto reports = recover_all(fs, catalog, options);
  CHECK(reports[0].plan.recovery == Version{Incarnation{1}, Step{8}});
  CHECK(reports[0].damages.empty());
}

TEST_CASE("a run that dies before its first checkpoint is stored goes on from memory",
          "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  test::JobOptions options = with_memory(dir.path());
  options.checkpoint.async_save = true;
  {
    const ExpectLog log;
    test::FaultyFileSystem faulty(fs);
    faulty.inject({test::Call::kRename,
                   StatusCode::kNoSpace,
                   1,
                   true,
                   "checkpoints/step-",
                   test::Effect::kFail,
                   0});
    train_and_die(faulty, catalog, options, 5);
  }
  const auto reports = recover_all(fs, catalog, options);
  CHECK(reports[1].plan.recovery.step == Step{5});
  // Storage has nothing, so the next checkpoint is full.
  train_and_die(fs, catalog, options, 4);
  CHECK(load_checkpoint(fs, "run/checkpoints", "step-00000006").value().manifest.full);
}

TEST_CASE("damaged, foreign and missing memory is worked round", "[recovery]") {
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  for (const char* damage : {"flip", "remove", "truncate", "all"}) {
    INFO(damage);
    const test::TempDir dir;
    MemoryFileSystem fs;
    const test::JobOptions options = with_memory(dir.path());
    train_and_die(fs, catalog, options, 11);  // storage 8; memory 9, 10, 11
    for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
      const std::string path = entry.path().string();
      if (damage != std::string("all") && path.find(".r00001.") == std::string::npos) continue;
      if (damage == std::string("flip")) {
        flip_payload(path);
      } else if (damage == std::string("truncate")) {
        std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
      } else {
        std::filesystem::remove(path);
      }
    }
    const auto reports = recover_all(fs, catalog, options);
    if (damage == std::string("all")) {
      CHECK(reports[0].plan.recovery.step == Step{8});
      CHECK(sources_of(reports[0].plan).find("memory") == std::string::npos);
    } else {
      // Rank 0's experts are newer in its memory than in storage, but not than t*.
      CHECK(reports[0].plan.recovery.step == Step{8});
    }
    if (damage == std::string("flip")) {
      CHECK(std::ranges::any_of(reports[0].damages, [](const std::string& text) {
        return text.find("in memory cannot be used") != std::string::npos;
      }));
    }
  }
}

namespace {

/// Ranks in turn on nodes named by the letters of `names`, like "AABB".
std::vector<std::string> on_nodes(const std::string& names) {
  std::vector<std::string> nodes;
  for (const char name : names) nodes.emplace_back(1, name);
  return nodes;
}

/// Removes what lies in the memory of the nodes named by the letters of `names`.
void lose_nodes(const std::string& directory, const std::string& names) {
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const auto name = SegmentName::parse(entry.path().filename().string());
    REQUIRE(name.has_value());
    if (names.find(name->host) != std::string::npos) std::filesystem::remove(entry.path());
  }
}

}  // namespace

TEST_CASE("ranks that come back on other nodes get their snapshots over the network",
          "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 8, 2, 1});
  test::JobOptions options = with_memory(dir.path());
  options.nodes = on_nodes("AB");
  train_and_die(fs, catalog, options, 10);  // full 1, storage 4, 8; memory 8, 9, 10
  options.nodes = on_nodes("BA");
  const auto reports = recover_all(fs, catalog, options);
  for (const RecoveryReport& report : reports) {
    CHECK(report.damages.empty());
    CHECK(sources_of(report.plan) == "storage 1: 4, memory 8: 4, memory 9: 4, memory 10: 7");
    CHECK(report.sent_bytes > 0);
  }
  // The buffers could not be taken over, so the state went to storage first.
  const auto secured = load_checkpoint(fs, "run/checkpoints", "step-00000010");
  REQUIRE(secured.ok());
  CHECK(secured.value().manifest.full);
  CHECK(secured.value().manifest.version == Version{Incarnation{1}, Step{10}});
  lose_nodes(dir.path(), "AB");
  // What was secured is of several steps under one version, which the items cannot say.
  RecoveryReport again;
  comm::run_thread_group(2, [&](comm::Group& group) {
    const Job job(fs, catalog, options, group);
    if (group.rank().value == 0) again = job.recovered().report;
  });
  CHECK(again.plan.recovery == Version{Incarnation{1}, Step{10}});
  CHECK(again.damages.empty());
}

TEST_CASE("of a lost node storage gives what the others' memory lacks", "[recovery]") {
  // MoC figure 8: two nodes of two experts each, of which the first is lost.
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  test::JobOptions options = test::two_level_options(dir.path(), 1, 4, 4, 3);
  options.nodes = on_nodes("AB");
  train_and_die(fs, catalog, options, 8);  // memory 6, 7, 8 whole; storage 1 whole, 4 and 8 partial
  lose_nodes(dir.path(), "A");
  options.nodes = on_nodes("CB");
  const auto reports = recover_all(fs, catalog, options);
  for (const RecoveryReport& report : reports) {
    CHECK(report.damages.empty());
    CHECK(report.plan.recovery.step == Step{8});
    for (const UnitRestore& restore : report.plan.restores) {
      const StateUnit& unit = catalog.units[std::size_t(restore.unit.value)];
      INFO(unit.name);
      CHECK((restore.tier == Tier::kMemory) == (unit.expert.value >= 2));
      if (unit.expert.value != 0 && unit.expert.value != 1) CHECK(restore.version.step == Step{8});
    }
  }
}

TEST_CASE("copies on other nodes make up for the loss of as many nodes less one", "[recovery]") {
  struct Case {
    int factor;
    std::string lost;
    std::int64_t step;
  };
  const StateCatalog catalog = make_catalog({1, 6, 3, 2});
  for (const auto& [factor, lost, step] : {Case{1, "", 11},
                                           Case{1, "B", 8},
                                           Case{2, "A", 11},
                                           Case{2, "B", 11},
                                           Case{2, "C", 11},
                                           Case{2, "AB", 8},
                                           Case{3, "AB", 11},
                                           Case{3, "AC", 11},
                                           Case{3, "BC", 11},
                                           Case{3, "ABC", 8}}) {
    INFO(factor << " copies, lost " << lost);
    const test::TempDir dir;
    MemoryFileSystem fs;
    test::JobOptions options = with_memory(dir.path());
    options.checkpoint.replication_factor = factor;
    options.nodes = on_nodes("AABBCC");
    train_and_die(fs, catalog, options, 11);  // storage 8; memory 9, 10, 11
    lose_nodes(dir.path(), lost);
    options.nodes = on_nodes("DDEEFF");
    for (std::size_t r = 0; r < options.nodes.size(); ++r) {
      const std::string before = on_nodes("AABBCC")[r];
      if (lost.find(before) == std::string::npos) options.nodes[r] = before;
    }
    const auto reports = recover_all(fs, catalog, options);
    CHECK(reports[0].plan.recovery.step == Step{step});
    CHECK(reports[0].damages.empty());
  }
}

TEST_CASE("copies grow with the buffers that they are of", "[recovery]") {
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  const test::TempDir dir;
  MemoryFileSystem fs;
  test::JobOptions options = with_memory(dir.path());
  options.checkpoint.replication_factor = 2;
  options.nodes = on_nodes("AB");
  options.too_little_memory = true;
  train_and_die(fs, catalog, options, 11);
  lose_nodes(dir.path(), "A");
  options.nodes = on_nodes("CB");
  CHECK(recover_all(fs, catalog, options)[0].plan.recovery.step == Step{11});
}

TEST_CASE("a damaged snapshot is taken from its copy on another node", "[recovery]") {
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  for (const bool copy : {false, true}) {
    const test::TempDir dir;
    MemoryFileSystem fs;
    test::JobOptions options = with_memory(dir.path());
    options.checkpoint.replication_factor = 2;
    options.nodes = on_nodes("AB");
    train_and_die(fs, catalog, options, 11);
    for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
      const auto name = SegmentName::parse(entry.path().filename().string());
      REQUIRE(name.has_value());
      if (name->rank == Rank{1} && (name->copy > 0) == copy) flip_payload(entry.path());
    }
    const auto reports = recover_all(fs, catalog, options);
    CHECK(reports[0].plan.recovery.step == Step{11});
    CHECK(std::ranges::any_of(reports[0].damages, [](const std::string& text) {
            return text.find("in memory cannot be used") != std::string::npos;
          }) == !copy);
  }
}

TEST_CASE("of damaged snapshots and copies all that is whole is used", "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  test::JobOptions options = with_memory(dir.path());
  options.checkpoint.replication_factor = 2;
  options.nodes = on_nodes("AB");
  train_and_die(fs, catalog, options, 11);
  const auto posix = make_posix_file_system();
  int num_damaged = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    const std::string path = entry.path().string();
    const auto segment = read_segment(*posix, path);
    REQUIRE(segment.ok());
    // Of one expert's moments one block here, and another one in the copy.
    const char* const dataset = segment.value().name.copy == 0 ? "exp_avg" : "absorbed_moments";
    const auto& blocks = segment.value().index.blocks;
    const auto damaged = std::ranges::find_if(blocks, [&](const BlockEntry& block) {
      return block.unit.value > 0 && block.block.dataset == dataset;
    });
    if (damaged == blocks.end()) continue;  // experts of the other rank
    ++num_damaged;
    test::flip_bit(
        *posix, path, 8 * segment.value().offsets[std::size_t(damaged - blocks.begin())]);
  }
  REQUIRE(num_damaged >= 4);
  const auto reports = recover_all(fs, catalog, options);
  CHECK(reports[0].plan.recovery.step == Step{11});
  CHECK(sources_of(reports[0].plan).find("storage") == std::string::npos);
  CHECK(mentions(reports[0].damages, "in memory cannot be used"));
}

TEST_CASE("snapshots in memory load onto another number of ranks and nodes", "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  test::JobOptions options = with_memory(dir.path());
  options.checkpoint.replication_factor = 2;
  options.nodes = on_nodes("AABB");
  train_and_die(fs, make_catalog({1, 4, 4, 1}), options, 11);
  lose_nodes(dir.path(), "A");
  options.nodes = on_nodes("BB");
  options.checkpoint.replication_factor = 1;
  // With the shapes of four ranks: the fake catalog has other ones for two.
  StateCatalog catalog = make_catalog({1, 4, 4, 1});
  catalog.world_size = 2;
  for (StateItem& item : catalog.items) {
    const Shape shape = item.global_shape;
    item.blocks = {{Block::whole(shape), {Rank{0}, Rank{1}}}};
  }
  const auto reports = recover_all(fs, catalog, options);
  CHECK(reports[0].plan.recovery.step == Step{11});
  CHECK(reports[0].damages.empty());
  // What was there of four ranks is gone.
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    const auto name = SegmentName::parse(entry.path().filename().string());
    REQUIRE(name.has_value());
    CHECK(name->rank.value < 2);
    CHECK(name->copy == 0);
  }
}

TEST_CASE("a copy that fails on one rank drops the snapshot on all, and the next is whole",
          "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  test::JobOptions options = with_memory(dir.path());
  options.checkpoint.replication_factor = 2;
  options.nodes = on_nodes("AB");
  const ExpectLog log;
  comm::run_thread_group(2, [&](comm::Group& world) {
    Job job(fs, catalog, options, world);
    job.train(5);
    if (world.rank().value == 1) job.binding().fail_next_copy(MutatedIn::kUpdate);
    job.train(1);
    if (job.records().back().committed) throw InternalError("the failed snapshot was committed");
    job.train(1);
    if (!job.records().back().committed) throw InternalError("the next snapshot was dropped");
  });
  lose_nodes(dir.path(), "A");
  options.nodes = on_nodes("CB");
  const auto reports = recover_all(fs, catalog, options);
  CHECK(reports[0].plan.recovery.step == Step{7});
}

TEST_CASE("storage has its turn although copies make snapshots longer than a step", "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  test::JobOptions options = with_memory(dir.path());
  options.checkpoint.replication_factor = 2;
  options.nodes = on_nodes("AB");
  struct Turn {
    Step begun_when_due{0}, begun_next{0}, begun_after{0}, committed{0};
  };
  std::vector<Turn> turns(2);
  comm::run_thread_group(2, [&](comm::Group& world) {
    Job job(fs, catalog, options, world);
    Turn& turn = turns[std::size_t(world.rank().value)];
    job.train(6);
    job.step();  // a snapshot whose copies need more than the one vote of a step ...
    job.step();  // ... is under way when a checkpoint is due
    turn.begun_when_due = job.checkpointer().last_started();
    job.drain();
    job.train(1);
    turn.begun_next = job.checkpointer().last_started();
    job.train(3);
    turn.begun_after = job.checkpointer().last_started();
    turn.committed = job.newest_committed();
  });
  for (const Turn& turn : turns) {
    CHECK(turn.begun_when_due == Step{4});
    CHECK(turn.begun_next == Step{9});  // as soon as there is a buffer, not with the next interval
    CHECK(turn.begun_after == Step{12});  // and once
    CHECK(turn.committed == Step{12});
  }
}

namespace {

/// A group some of whose messages of one purpose change on their way, as in a faulty network: the
/// last byte of those numbered first .. last among the ones of `at_least` bytes. The bytes of the
/// sender stay as they are.
class ChangingGroup final : public comm::Group {
 public:
  struct Change {
    comm::Purpose purpose = comm::Purpose::kReplication;
    std::size_t at_least = 0;
    int first = 0;
    int last = -1;
    int sent = 0;
  };
  ChangingGroup(comm::Group& inner, Change& change) : inner_(inner), change_(change) {}
  ChangingGroup(std::unique_ptr<comm::Group> inner, Change& change)
      : owned_(std::move(inner)), inner_(*owned_), change_(change) {}

  [[nodiscard]] int size() const override { return inner_.size(); }
  [[nodiscard]] Rank rank() const override { return inner_.rank(); }
  comm::Pending all_reduce(Context& ctx,
                           TensorView inout,
                           comm::ReduceOp op,
                           comm::Tag tag) override {
    return inner_.all_reduce(ctx, inout, op, tag);
  }
  comm::Pending reduce_scatter_v(Context& ctx,
                                 ConstTensorView input,
                                 std::span<const std::int64_t> counts,
                                 TensorView output,
                                 comm::ReduceOp op,
                                 comm::Tag tag) override {
    return inner_.reduce_scatter_v(ctx, input, counts, output, op, tag);
  }
  comm::Pending all_gather_v(Context& ctx,
                             ConstTensorView input,
                             std::span<const std::int64_t> counts,
                             TensorView output,
                             comm::Tag tag) override {
    return inner_.all_gather_v(ctx, input, counts, output, tag);
  }
  comm::Pending all_to_all_v(Context& ctx,
                             ConstTensorView input,
                             std::span<const std::int64_t> send_counts,
                             TensorView output,
                             std::span<const std::int64_t> receive_counts,
                             comm::Tag tag) override {
    return inner_.all_to_all_v(ctx, changed(input, tag), send_counts, output, receive_counts, tag);
  }
  comm::Pending broadcast(Context& ctx, TensorView inout, Rank root, comm::Tag tag) override {
    return inner_.broadcast(ctx, inout, root, tag);
  }
  comm::Pending send(Context& ctx, ConstTensorView input, Rank to, comm::Tag tag) override {
    return inner_.send(ctx, changed(input, tag), to, tag);
  }
  comm::Pending receive(Context& ctx, TensorView output, Rank from, comm::Tag tag) override {
    return inner_.receive(ctx, output, from, tag);
  }
  std::unique_ptr<comm::Group> split(int color, int key) override {
    return std::make_unique<ChangingGroup>(inner_.split(color, key), change_);
  }
  void abort(const std::string& reason) override { inner_.abort(reason); }
  void set_step(Step step) override { inner_.set_step(step); }
  [[nodiscard]] comm::Traffic traffic(comm::Purpose purpose) const override {
    return inner_.traffic(purpose);
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return inner_.scratch_bytes(); }

 private:
  ConstTensorView changed(ConstTensorView input, comm::Tag tag) {
    const auto bytes = std::size_t(input.shape.num_elements()) * size_of(input.dtype);
    if (tag.purpose != change_.purpose || bytes < change_.at_least) return input;
    const int number = change_.sent++;
    if (number < change_.first || number > change_.last) return input;
    kept_.emplace_back(input.data, input.data + bytes).back() ^= std::byte(1);
    return {kept_.back().data(), input.dtype, input.shape};
  }

  std::unique_ptr<comm::Group> owned_;
  comm::Group& inner_;
  Change& change_;
  std::deque<std::vector<std::byte>> kept_;  ///< what is sent in place of what was given
};

}  // namespace

TEST_CASE("a copy that changes on its way to another node does not count", "[recovery]") {
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  enum Message { kDescription, kContent, kMessages };
  for (int message = kDescription; message < kMessages; ++message) {
    for (const std::string lost : {"", "A", "B"}) {
      INFO("message " << message << " changes, lost nodes: " << lost);
      const test::TempDir dir;
      MemoryFileSystem fs;
      test::JobOptions options = with_memory(dir.path());
      options.checkpoint.replication_factor = 2;
      options.nodes = on_nodes("AB");
      std::vector<std::string> failures(2);
      {
        const ExpectLog log;
        comm::run_thread_group(2, [&](comm::Group& world) {
          // More than the preamble of four numbers.
          ChangingGroup::Change change{comm::Purpose::kReplication, 4 * sizeof(std::int64_t) + 1};
          ChangingGroup group(world, change);
          Job job(fs, catalog, options, group);
          job.train(6);
          change.first = change.sent + message;
          change.last = world.rank().value == 0 ? change.first : -1;
          job.train(1);
          const SaveRecord& record = job.records().back();
          failures[std::size_t(world.rank().value)] = record.committed ? "" : record.failure;
        });
      }
      CHECK(failures[0].find("another rank") == 0);
      CHECK(failures[1].find("rank 1: the copy of rank 0's snapshot: ") == 0);
      lose_nodes(dir.path(), lost);
      options.nodes = on_nodes(lost == "A" ? "CB" : lost == "B" ? "AC" : "AB");
      const auto reports = recover_all(fs, catalog, options);
      // The owner's node holds step 7 whole; without it step 6 is the newest that all have.
      CHECK(reports[0].plan.recovery.step == Step{lost == "A" ? 6 : 7});
      CHECK(reports[0].damages.empty());
    }
  }
}

TEST_CASE("a block that changes on its way at a recovery is not loaded", "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 8, 2, 1});
  test::JobOptions options = with_memory(dir.path());
  options.nodes = on_nodes("AB");
  train_and_die(fs, catalog, options, 10);
  options.nodes = on_nodes("BA");
  std::vector<Finding> findings(2);
  comm::run_thread_group(2, [&](comm::Group& world) {
    // What is smaller than a block says how much there is.
    ChangingGroup::Change change{comm::Purpose::kRecovery, 100};
    change.first = 0;
    change.last = world.rank().value == 0 ? 0 : -1;
    ChangingGroup group(world, change);
    const Job job(fs, catalog, options, group);
    findings[std::size_t(world.rank().value)] = finding_of(job);
  });
  for (const Finding& finding : findings) {
    CHECK(finding.difference == "");
    CHECK(std::ranges::count_if(finding.damages, [](const std::string& damage) {
            return damage.find("was changed on its way from rank 0") != std::string::npos;
          }) == 1);
  }
}

TEST_CASE("a node whose memory cannot take what the plan needs stops the restart", "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  test::JobOptions options = with_memory(dir.path());
  options.nodes = on_nodes("AB");
  train_and_die(fs, catalog, options, 11);
  lose_nodes(dir.path(), "B");
  std::filesystem::path room;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    const auto name = SegmentName::parse(entry.path().filename().string());
    if (name && name->buffer == 2)
      room = dir / SegmentName{name->run_id, "B", Rank{1}, 2, 0}.file_name();
  }
  REQUIRE_FALSE(room.empty());
  std::filesystem::create_directory(room);  // what cannot be reserved, in place of a full tmpfs
  const ExpectLog log;
  std::vector<ExitCode> codes(2, ExitCode::kDone);
  std::string error;
  const auto start = [&](comm::Group& world) {
    try {
      Job job(fs, catalog, options, world);
      job.exchange_votes();  // in which the others hear of it
    } catch (const Error& refused) {
      codes[std::size_t(world.rank().value)] = refused.exit_code();
      if (world.rank().value == 1) error = refused.what();
      throw;
    }
  };
  CHECK_THROWS_AS(comm::run_thread_group(2, start), Error);
  CHECK(codes[1] == ExitCode::kCheckpoint);
  CHECK(error.find("a buffer for snapshots in memory cannot be made") == 0);
  // Nothing was given up: with room for it the run goes on.
  std::filesystem::remove(room);
  const auto reports = recover_all(fs, catalog, options);
  CHECK(reports[0].plan.recovery.step >= Step{8});
}

TEST_CASE("memory of another model is no source, and is named", "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const test::JobOptions options = with_memory(dir.path());
  {
    // Dead before anything is in storage, whose manifests would be refused.
    const ExpectLog log;
    test::FaultyFileSystem faulty(fs);
    faulty.inject({test::Call::kRename,
                   StatusCode::kNoSpace,
                   1,
                   true,
                   "checkpoints/step-",
                   test::Effect::kFail,
                   0});
    train_and_die(faulty, make_catalog({1, 4, 2, 1}), options, 3);
  }
  const StateCatalog other = make_catalog({1, 6, 2, 1});
  comm::run_thread_group(2, [&](comm::Group& world) {
    const Job job(fs, other, options, world);
    const RecoveryReport& report = job.recovered().report;
    if (!report.fresh) throw InternalError("memory of another model was used");
    if (!mentions(report.damages, "is of another model (fingerprint "))
      throw InternalError("memory of another model was not named");
  });
}

TEST_CASE("copies need other nodes, and a run that is over leaves none", "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  test::JobOptions options = with_memory(dir.path());
  options.checkpoint.replication_factor = 2;
  options.nodes = on_nodes("AA");
  CHECK_THROWS_WITH(train_and_die(fs, catalog, options, 0),
                    Catch::Contains("but the ranks of this start are on 1"));
  options.nodes = on_nodes("AB");
  comm::run_thread_group(2, [&](comm::Group& world) {
    Job job(fs, catalog, options, world);
    job.train(5);
    job.checkpointer().release_memory();
  });
  CHECK(std::filesystem::is_empty(dir.path()));
}

TEST_CASE("what lies in memory of a branch that was left is never returned to", "[recovery]") {
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  for (const int factor : {1, 2}) {
    const test::TempDir dir;
    MemoryFileSystem fs;
    test::JobOptions options = with_memory(dir.path());
    options.checkpoint.replication_factor = factor;
    options.nodes = on_nodes("AB");
    train_and_die(fs, catalog, options, 7);  // storage 4; memory 5, 6, 7
    test::JobOptions older = options;
    older.mode = ResumeMode::kFromPath;
    older.path = "run/checkpoints/step-00000004";
    train_and_die(fs, catalog, older, 0);  // chosen by hand, and dead before its first save
    const auto reports = recover_all(fs, catalog, options);
    CHECK(reports[0].plan.recovery == Version{Incarnation{0}, Step{4}});
  }
}

TEST_CASE("a node that comes back with memory of a branch that was left gives nothing",
          "[recovery]") {
  const test::TempDir dir, away;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 8, 2, 1});
  test::JobOptions options = with_memory(dir.path());
  options.nodes = on_nodes("AB");
  train_and_die(fs, catalog, options, 10);  // storage 8; memory 8, 9, 10
  // The node is cut off, and the run goes on from storage.
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    const std::string name = entry.path().filename().string();
    if (SegmentName::parse(name)->host != "B") continue;
    std::filesystem::copy_file(entry.path(), away / name);
    std::filesystem::remove(entry.path());
  }
  options.nodes = on_nodes("AC");
  train_and_die(fs, catalog, options, 4);  // incarnation 1 goes from 8 to 12
  lose_nodes(dir.path(), "C");
  std::filesystem::copy(away.path(), dir.path());
  options.nodes = on_nodes("AB");
  std::vector<Recovered> recovered(2);
  comm::run_thread_group(2, [&](comm::Group& world) {
    const Job job(fs, catalog, options, world);
    if (!job.difference().empty()) throw InternalError(job.difference());
    Recovered& mine = recovered[std::size_t(world.rank().value)];
    mine.report = job.recovered().report;
    mine.kept = job.recovered().kept;
  });
  const RestorePlan& plan = recovered[0].report.plan;
  CHECK(plan.recovery == Version{Incarnation{1}, Step{12}});
  for (const UnitRestore& restore : plan.restores) {
    INFO(catalog.units[std::size_t(restore.unit.value)].name << " of "
                                                             << restore.version.step.value);
    CHECK((restore.version.incarnation == Incarnation{1} || restore.version.step <= Step{8}));
  }
  // The nodes' buffers are of different versions.
  for (const Recovered& rank : recovered) CHECK(rank.kept == decltype(rank.kept)(3));
}

TEST_CASE("storage of a branch that memory has left is no source", "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 8, 2, 1});
  const test::JobOptions options = test::two_level_options(dir.path(), 2, 2, 4, 3);
  train_and_die(fs, catalog, options, 14);  // storage 4, 8, 12, two experts each
  test::JobOptions older = options;
  older.mode = ResumeMode::kFromPath;
  older.path = "run/checkpoints/step-00000004";
  train_and_die(fs, catalog, older, 1);  // memory 5 of incarnation 1: two experts again
  // As if the branch had never been renamed.
  for (const char* name : {"step-00000008", "step-00000012"}) {
    REQUIRE(
        fs.rename(fmt::format("{}/abandoned-1-{}", kRoot, name), fmt::format("{}/{}", kRoot, name))
            .ok());
  }
  const auto reports = recover_all(fs, catalog, options);
  CHECK(reports[0].plan.recovery == Version{Incarnation{1}, Step{5}});
  // Of the branch that was left, step 8 has the experts that memory has, step 12 two of the four
  // that are taken from the full checkpoint.
  CHECK(sources_of(reports[0].plan) == "storage 1: 8, storage 4: 4, memory 5: 7");
}

TEST_CASE("a state that cannot be secured stays in memory", "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  test::JobOptions options = with_memory(dir.path());
  options.nodes = on_nodes("AB");
  train_and_die(fs, catalog, options, 10);
  options.nodes = on_nodes("BA");
  {
    const ExpectLog log;
    test::FaultyFileSystem full(fs);
    full.inject({test::Call::kRename,
                 StatusCode::kNoSpace,
                 1,
                 true,
                 "checkpoints/step-",
                 test::Effect::kFail,
                 0});
    CHECK_THROWS_WITH(train_and_die(full, catalog, options, 0),
                      Catch::Contains("snapshots in memory that it comes from are still there"));
  }
  CHECK(recover_all(fs, catalog, options)[0].plan.recovery.step == Step{10});
}

namespace {

/// What one rank found by recover() alone, up to a step.
Recovered recover_up_to(FileSystem& fs,
                        const StateCatalog& catalog,
                        const test::JobOptions& options,
                        StateBinding& binding,
                        comm::Group& world,
                        std::optional<Step> newest) {
  device::Stream stream{device::cpu()};
  device::Arena workspace;
  Context ctx{device::cpu(), stream, workspace, 1};
  return recover(fs,
                 "run",
                 ResumeMode::kFromFailure,
                 "",
                 catalog,
                 binding,
                 ctx,
                 world,
                 {.lock = options.lock,
                  .memory_dir = options.checkpoint.non_persistent_save_interval.never()
                                    ? ""
                                    : options.checkpoint.memory_dir,
                  .newest_step = newest});
}

/// A copy whose bytes change as they are loaded, as in faulty memory.
class ChangingBinding final : public StateBinding {
 public:
  ChangingBinding(const StateCatalog& catalog, Rank rank) : kept_(catalog, rank) {}
  void copy_out(ItemIndex item,
                const Block& block,
                std::span<std::byte> destination) const override {
    kept_.copy_out(item, block, destination);
  }
  void copy_in(ItemIndex item, const Block& block, std::span<const std::byte> source) override {
    std::vector<std::byte> changed(source.begin(), source.end());
    changed.back() ^= std::byte(1);
    kept_.copy_in(item, block, changed);
  }

 private:
  test::FakeBinding kept_;
};

}  // namespace

TEST_CASE("snapshots newer than what a recovery may take are not kept", "[recovery]") {
  const test::TempDir dir;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  const test::JobOptions options = with_memory(dir.path());
  train_and_die(fs, catalog, options, 10);  // memory 8, 9, 10
  std::vector<std::vector<std::optional<Version>>> kept(2);
  std::vector<Version> reached(2);
  comm::run_thread_group(2, [&](comm::Group& world) {
    test::FakeBinding binding(catalog, world.rank());
    const Recovered found = recover_up_to(fs, catalog, options, binding, world, Step{9});
    kept[std::size_t(world.rank().value)] = found.kept;
    reached[std::size_t(world.rank().value)] = found.report.plan.recovery;
  });
  for (std::size_t rank = 0; rank < 2; ++rank) {
    CHECK(reached[rank].step == Step{9});
    std::set<std::int64_t> steps;
    for (const auto& version : kept[rank]) {
      if (version) steps.insert(version->step.value);
    }
    CHECK(steps == std::set<std::int64_t>{8, 9});
  }
}

TEST_CASE("a snapshot that changes while ranks of its node look at it is not taken", "[recovery]") {
  const test::TempDir dir, before;
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 4, 2, 1});
  const test::JobOptions options = with_memory(dir.path());
  train_and_die(fs, catalog, options, 10);  // memory 8, 9, 10
  std::filesystem::copy(dir.path(), before.path());
  train_and_die(fs, catalog, options, 1);  // 11 where 8 was
  std::vector<Finding> findings(2);
  comm::run_thread_group(2, [&](comm::Group& world) {
    // Rank 0 speaks for the node; rank 1 has looked a moment earlier.
    test::JobOptions mine = options;
    if (world.rank().value == 1) mine.checkpoint.memory_dir = before.path();
    Finding& finding = findings[std::size_t(world.rank().value)];
    test::FakeBinding binding(catalog, world.rank());
    const Recovered found = recover_up_to(fs, catalog, mine, binding, world, {});
    finding.step = found.report.plan.recovery.step.value;
    finding.damages = found.report.damages;
    finding.difference = binding.difference(found.report.plan);
  });
  for (const Finding& finding : findings) {
    CHECK(finding.step == 10);
    CHECK(finding.difference == "");
    CHECK(mentions(finding.damages, "is not on this node any more"));
  }
}

TEST_CASE("ranks that hold other bytes after a recovery are named", "[recovery]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 2, 1, 2});
  train(fs, catalog, job_options(1), 2);
  const auto recover_changed = [&](comm::Group& world) {
    test::FakeBinding good(catalog, world.rank());
    ChangingBinding bad(catalog, world.rank());
    StateBinding& binding = world.rank().value == 1 ? static_cast<StateBinding&>(bad) : good;
    static_cast<void>(recover_up_to(fs, catalog, job_options(1), binding, world, {}));
  };
  CHECK_THROWS_WITH(comm::run_thread_group(2, recover_changed), Catch::Contains("after recovery "));
}

TEST_CASE("the names of abandoned branches count incarnations where the lock is lost",
          "[recovery]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({1, 2, 1, 1});
  train(fs, catalog, job_options(1), 3);
  test::flip_bit(fs, "run/checkpoints/step-00000003/manifest.json", 800);
  CHECK(recover_once(fs, catalog, job_options(1)).abandoned ==
        std::vector<std::string>{"abandoned-1-step-00000003"});
  REQUIRE(fs.remove_file("run/lock.json").ok());
  const auto world = comm::make_self_group();
  CHECK(Job(fs, catalog, job_options(1), *world).recovered().identity.incarnation ==
        Incarnation{2});
}

TEST_CASE("a crash at any call of a save on two levels loses nothing that either level had",
          "[recovery]") {
  const StateCatalog catalog = make_catalog({1, 2, 1, 1});
  MemoryFileSystem base;
  const test::TempDir first;
  test::JobOptions options = with_memory(first.path());
  options.checkpoint.save_interval = {2};
  options.checkpoint.pec.experts_per_snapshot = 1;
  train_and_die(base, catalog, options, 2);
  int stops = 0;
  for (const bool node_dies : {false, true}) {
    for (std::size_t stop = 1;; ++stop) {
      const test::TempDir dir;
      std::filesystem::copy(first.path(), dir.path(), std::filesystem::copy_options::recursive);
      options.checkpoint.memory_dir = dir.path();
      MemoryFileSystem fs;
      copy_below(base, fs, "run");
      REQUIRE(fs.sync_directory("").ok());
      std::size_t mutations = 0;
      Step in_storage{2};
      Step in_memory{2};
      {
        const ExpectLog log;
        const auto world = comm::make_self_group();
        Job job(fs, catalog, options, *world);
        job.drain();
        const std::size_t before = fs.num_mutations();
        fs.stop_at(stop);
        job.train(4);  // 3 .. 6: storage 4 and 6
        mutations = fs.num_mutations() - before;
        for (const SaveRecord& record : job.records()) {
          if (!record.committed) continue;
          in_memory = std::max(in_memory, record.version.step);
          if (record.level == SaveLevel::kStorage)
            in_storage = std::max(in_storage, record.version.step);
        }
        if (node_dies) {
          fs.crash();
        } else {
          fs.restart();
        }
        fs.stop_at(1);
      }
      fs.restart();
      if (stop > mutations) break;
      ++stops;
      if (node_dies) {
        for (const auto& entry : std::filesystem::directory_iterator(dir.path()))
          std::filesystem::remove(entry.path());
      }
      INFO((node_dies ? "node" : "process") << " dies, stopped at call " << stop);
      const auto reports = recover_all(fs, catalog, options);
      REQUIRE_FALSE(reports[0].fresh);
      REQUIRE(reports[0].plan.recovery.step >= (node_dies ? in_storage : in_memory));
      REQUIRE(reports[0].plan.recovery.step <= Step{6});
      REQUIRE(reports[0].damages.empty());
    }
  }
  CHECK(stops > 40);
}
