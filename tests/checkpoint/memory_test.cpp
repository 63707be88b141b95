#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include <pecan/core/hash.hpp>

#include <pecan/checkpoint/memory.hpp>
#include <pecan/checkpoint/render.hpp>

#include "checkpoint/memory_facts.hpp"
#include "checkpoint/segment.hpp"
#include "support/catch.hpp"
#include "support/faulty_file_system.hpp"
#include "support/support.hpp"

using namespace pecan;
using namespace pecan::checkpoint;

namespace {

constexpr std::size_t kCapacity = 256;

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

/// A buffer with a snapshot of non-expert state and `experts` experts.
Segment make(const test::TempDir& dir, const SegmentName& name, std::int64_t step, int experts) {
  Segment segment(dir.path(), name, kCapacity, 4);
  Manifest header;
  header.run_id = name.run_id;
  header.version = {Incarnation{2}, Step{step}};
  header.world_size = 8;
  RankIndex index{header.version, name.rank, {memory_file(name.rank, kCapacity)}, {}};
  for (int unit = 0; unit <= experts; ++unit) {
    const auto bytes = segment.payload().subspan(std::size_t(unit) * 64, 4);
    std::ranges::fill(bytes, std::byte(unit + step));
    index.blocks.push_back({0,
                            UnitIndex{unit},
                            RoleGroup::kWeight,
                            {fmt::format("item {}", unit),
                             "weight",
                             DType::kF32,
                             {1},
                             Block::whole({1}),
                             Step{step},
                             xxh3(bytes)}});
  }
  REQUIRE(segment.commit(header, index).ok());
  return segment;
}

void write(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path) << text;
}

/// A directory without fault, seen by an ordinary user of a machine with systemd.
MemoryFacts good() {
  MemoryFacts facts;
  facts.directory = "/dev/shm";
  facts.real = "/dev/shm";
  facts.exists = facts.is_directory = facts.writable = facts.in_memory = true;
  facts.free_bytes = 100'000'000;
  facts.uid = 1000;
  facts.logind = true;
  facts.logind_conf = "[Login]\nRemoveIPC=no\n";
  facts.own_mounts =
      "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 21 0:22 / /dev/shm rw - tmpfs tmpfs rw\n";
  facts.init_mounts = facts.own_mounts;
  return facts;
}

using Texts = std::vector<std::string>;

}  // namespace

TEST_CASE("buffers in memory are listed by run, with what they hold", "[memory]") {
  const test::TempDir dir;
  const SegmentName live{"run1", "a", Rank{0}, 0}, left{"run1", "a", Rank{1}, 2},
      empty{"run1", "a", Rank{1}, 10}, damaged{"run0", "z", Rank{7}, 0};
  const Segment held = make(dir, live, 40, 2);
  make(dir, left, 50, 3);
  { const Segment never(dir.path(), empty, kCapacity, 4); }
  make(dir, damaged, 60, 1);
  const std::size_t payload = Segment::file_bytes(0, 4);
  test::flip_bit(*make_posix_file_system(), dir / damaged.file_name(), 8 * (payload + 64));
  // The payload of a live one may be in the making.
  test::flip_bit(*make_posix_file_system(), dir / live.file_name(), 8 * (payload + 64));
  write(dir / "pecan.run1.a.r00001.b2.txt", "not one of ours");
  std::filesystem::create_directory(dir / SegmentName{"run1", "a", Rank{5}, 0}.file_name());

  const std::vector<SegmentReport> all = inspect_memory(dir.path());
  REQUIRE(all.size() == 4);
  CHECK(all[0].path == dir / damaged.file_name());
  CHECK(all[0].run_id == "run0");
  CHECK(all[0].host == "z");
  CHECK(all[0].rank == Rank{7});
  CHECK(all[0].committed);
  CHECK(contains(all[0].problem, "item 1/weight of step 60 contradicts"));
  CHECK(all[1].path == dir / live.file_name());
  CHECK(all[1].in_use);
  CHECK(all[1].committed);
  CHECK(all[1].problem.empty());
  CHECK(all[1].version == Version{Incarnation{2}, Step{40}});
  CHECK(all[1].expert_units == 2);
  CHECK(all[1].num_bytes == Segment::file_bytes(kCapacity, 4));
  CHECK(all[2].path == dir / left.file_name());
  CHECK_FALSE(all[2].in_use);
  CHECK(all[2].expert_units == 3);
  CHECK(all[3].path == dir / empty.file_name());
  CHECK(all[3].buffer == 10);
  CHECK_FALSE(all[3].committed);
  CHECK(all[3].problem.empty());

  const std::string text = render_memory(all, Format::kText);
  CHECK(contains(text, "run run0\n"));
  CHECK(contains(text, "run run1\n"));
  CHECK(text.find("run run1\n") == text.rfind("run run1\n"));
  CHECK(contains(text, "whole, in use\n"));
  CHECK(contains(text, "no snapshot\n"));
  CHECK(contains(text, "damaged\n"));
  CHECK(contains(text, "problem: " + all[0].problem));
  const auto json = nlohmann::json::parse(render_memory(all, Format::kJson));
  CHECK(json["schema"] == 1);
  CHECK(json["segments"].size() == 4);
  CHECK(json["segments"][1]["step"] == 40);
  CHECK(json["segments"][1]["in_use"] == true);
  CHECK(json["segments"][1]["problem"].is_null());
  CHECK(json["segments"][3]["step"].is_null());
  CHECK(render_memory({}, Format::kText) == "no snapshots\n");
  CHECK_THROWS_AS(inspect_memory(dir / "none"), CheckpointError);
}

TEST_CASE("cleaning removes what no process uses, and says what it left", "[memory]") {
  const test::TempDir dir;
  const SegmentName live{"run1", "a", Rank{0}, 0}, left{"run1", "a", Rank{1}, 2},
      other{"run2", "a", Rank{0}, 0};
  const Segment held = make(dir, live, 40, 2);
  make(dir, left, 50, 3);
  make(dir, other, 60, 1);
  write(dir / "pecan.txt", "not one of ours");

  CHECK(remove_segments(dir.path(), "run").removed.empty());
  const Removal one = remove_segments(dir.path(), "run1");
  CHECK(one.removed == Texts{dir / left.file_name()});
  CHECK(one.left == Texts{dir / live.file_name() + ": a process uses it; end its run first"});
  CHECK(std::filesystem::exists(dir / live.file_name()));
  CHECK(std::filesystem::exists(dir / other.file_name()));
  CHECK_FALSE(std::filesystem::exists(dir / left.file_name()));
  CHECK(render_removal(one, Format::kText) ==
        "removed " + one.removed[0] + "\nleft " + one.left[0] + "\n");
  CHECK(nlohmann::json::parse(render_removal(one, Format::kJson))["left"].size() == 1);

  CHECK(remove_segments(dir.path(), "").removed == Texts{dir / other.file_name()});
  CHECK(std::filesystem::exists(dir / "pecan.txt"));
  CHECK(render_removal({}, Format::kText) == "no snapshots to remove\n");
}

TEST_CASE("what another user may not touch is left", "[memory]") {
  const test::TempDir dir;
  const SegmentName name{"run1", "a", Rank{1}, 2};
  make(dir, name, 50, 3);
  std::filesystem::permissions(dir.path(), std::filesystem::perms(0755));
  std::filesystem::permissions(dir / name.file_name(), std::filesystem::perms(0));
  const pid_t child = fork();
  if (child == 0) {
    // Root may read everywhere: become somebody else.
    if (geteuid() == 0 && seteuid(65534) != 0) _exit(100);
    const auto all = inspect_memory(dir.path());
    const Removal removal = remove_segments(dir.path(), "");
    _exit(all.size() == 1 && all[0].in_use && contains(all[0].problem, "Permission") &&
                  removal.removed.empty() && contains(removal.left.at(0), "Permission")
              ? 0
              : 1);
  }
  int state = 0;
  waitpid(child, &state, 0);
  CHECK((WIFEXITED(state) && WEXITSTATUS(state) == 0));
}

TEST_CASE("a memory directory without fault passes", "[memory]") {
  const MemoryCheck check = judge(good(), 100'000'000);
  CHECK(check.errors.empty());
  CHECK(check.warnings.empty());
}

TEST_CASE("every fault of a memory directory has its sentence", "[memory]") {
  MemoryFacts facts = good();
  const auto errors = [&](std::uint64_t needed = 100'000'000) {
    const MemoryCheck check = judge(facts, needed);
    CHECK(check.warnings.empty());
    return check.errors;
  };
  const auto warnings = [&] {
    const MemoryCheck check = judge(facts, 100'000'000);
    CHECK(check.errors.empty());
    return check.warnings;
  };
  SECTION("not there") {
    facts.exists = facts.is_directory = false;
    CHECK(errors() == Texts{"checkpoint.memory_dir=/dev/shm is not there: snapshots in memory lie "
                            "there, on every node; mount a tmpfs on it, or use /dev/shm"});
  }
  SECTION("a file") {
    facts.is_directory = false;
    CHECK(contains(errors().at(0), "is no directory"));
  }
  SECTION("not writable") {
    facts.writable = false;
    CHECK(errors() == Texts{"checkpoint.memory_dir=/dev/shm cannot be written by this user (1000); "
                            "check its owner and mode, or use another directory"});
  }
  SECTION("too small") {
    CHECK(errors(100'000'001'000) ==
          Texts{"checkpoint.memory_dir=/dev/shm has 100.000 MB free, but the snapshots of this "
                "node's ranks need 100000.001 MB; enlarge it (mount -o remount,size=..., "
                "--shm-size of containers), remove old ones (pecan-inspect --memory), or lower "
                "checkpoint.pec.experts_per_snapshot"});
    CHECK(errors(100'000'001).size() == 1);
    facts.replaced_bytes = 1;
    CHECK(errors(100'000'001).empty());
    CHECK(contains(errors(100'000'002).at(0), "0.000 MB in buffers of this run that are replaced"));
    facts.free_bytes.reset();
    CHECK(errors(~std::uint64_t(0)).empty());
  }
  SECTION("a memory cgroup, and the one around it") {
    facts.groups = {{"/job/step", 200'000'000, 100'000'000}, {"/job", 250'000'000, 100'000'001}};
    CHECK(errors().empty());
    CHECK(errors(99'000'000).empty());
    facts.free_bytes.reset();
    facts.groups[1].used_bytes = 300'000'000;
    CHECK(errors() == Texts{"the memory cgroup /job allows 250.000 MB, of which 0.000 MB are left, "
                            "but the snapshots of this node's ranks need 100.000 MB, and the "
                            "kernel would kill them; raise its memory.max (--memory of containers, "
                            "--mem of Slurm), or lower checkpoint.pec.experts_per_snapshot"});
    CHECK(errors(100'000'001).size() == 2);
    facts.replaced_bytes = 100'000'000;
    CHECK(errors().empty());
  }
  SECTION("no tmpfs") {
    facts.in_memory = false;
    CHECK(warnings() == Texts{"checkpoint.memory_dir=/dev/shm is no tmpfs: snapshots are as slow "
                              "as its disk; use /dev/shm, or mount a tmpfs there"});
  }
  SECTION("logind") {
    facts.logind_conf = "#RemoveIPC=no\n";
    CHECK(warnings() ==
          Texts{"checkpoint.memory_dir=/dev/shm: systemd-logind removes the files of user 1000 "
                "there when their last session ends, and snapshots with them; set RemoveIPC=no in "
                "/etc/systemd/logind.conf, or loginctl enable-linger"});
    for (const char* conf : {"", "RemoveIPC=no\nRemoveIPC=yes\n", "RemoveIPC=\n"}) {
      facts.logind_conf = conf;
      CHECK(warnings().size() == 1);
    }
    for (const char* conf :
         {" RemoveIPC = No \r\n", "RemoveIPC=yes\nRemoveIPC=0", "RemoveIPC=off"}) {
      facts.logind_conf = conf;
      CHECK(warnings().empty());
    }
    facts.logind_conf.clear();
    facts.uid = 999;
    CHECK(warnings().empty());
    facts.uid = 1000;
    facts.logind = false;
    CHECK(warnings().empty());
    facts.logind = true;
    facts.real = "/dev/shmem";
    CHECK(warnings().empty());
    facts.real = "/dev/shm/mine";
    CHECK(warnings().size() == 1);
  }
  SECTION("a mount of its own") {
    facts.own_mounts += "31 21 0:50 / /dev/shm rw - tmpfs tmpfs rw\n";
    CHECK(warnings() == Texts{"checkpoint.memory_dir=/dev/shm is mounted for this session alone, "
                              "not for the node: snapshots end with it; restart inside of it, or "
                              "use a directory that the whole node sees"});
    facts.slurm_job = "77";
    CHECK(contains(warnings().at(0), "for this Slurm job (77) alone"));
    facts.real = "/dev/shm2";  // lies on the root's mount
    CHECK(warnings().empty());
    facts.real = "/dev/shm/below";
    CHECK(warnings().size() == 1);
    facts.init_mounts += "31 21 0:50 /user /dev/shm rw - tmpfs tmpfs rw\n";  // another part of it
    CHECK(warnings().size() == 1);
    facts.init_mounts += "99 21 0:50 / /dev/shm rw - tmpfs tmpfs rw\n";
    CHECK(warnings().empty());
    facts.init_mounts.clear();  // not for us to read
    CHECK(warnings().empty());
  }
}

TEST_CASE("the system is asked where it says so", "[memory]") {
  const test::TempDir root, dir;
  const std::string system = root.path();
  std::filesystem::create_directories(system + "/run/systemd/seats");
  write(system + "/etc/systemd/logind.conf", "[Login]\nRemoveIPC=yes");
  write(system + "/usr/lib/systemd/logind.conf", "RemoveIPC=hidden");
  write(system + "/usr/lib/systemd/logind.conf.d/20-b.conf", "RemoveIPC=hidden");
  write(system + "/run/systemd/logind.conf.d/20-b.conf", "RemoveIPC=20");
  write(system + "/usr/lib/systemd/logind.conf.d/30-c.conf", "RemoveIPC=30");
  write(system + "/etc/systemd/logind.conf.d/10-a.conf", "RemoveIPC=10");
  write(system + "/etc/systemd/logind.conf.d/40.txt", "RemoveIPC=40");
  write(system + "/proc/self/mountinfo", std::string(10'000, 'x'));
  write(system + "/proc/1/mountinfo", "init");
  write(system + "/proc/self/cgroup", "4:memory:/old\n0::/job/step\n");
  const std::string groups = system + "/sys/fs/cgroup/job";
  write(groups + "/step/memory.max", "max\n");
  write(groups + "/step/memory.current", "5\n");
  write(groups + "/memory.max", "1000\n");
  write(groups + "/memory.current", "600\n");
  write(groups + "/memory.stat", "anon 300\nfile 250\nactive_file 20\ninactive_file 30\nslab 1\n");

  const SegmentName mine{"run1", "a", Rank{0}, 0}, used{"run1", "a", Rank{1}, 0},
      other{"run2", "a", Rank{0}, 0};
  make(dir, mine, 1, 1);
  make(dir, other, 1, 1);
  const Segment held = make(dir, used, 1, 1);
  std::filesystem::create_symlink(dir.path(), root / "link");
  const MemoryFacts facts = observe_memory(root / "link", "run1", system);
  CHECK(facts.directory == root / "link");
  CHECK(facts.real == std::filesystem::canonical(dir.path()));
  CHECK((facts.exists && facts.is_directory && facts.writable));
  CHECK(facts.free_bytes);
  CHECK(facts.replaced_bytes == Segment::file_bytes(kCapacity, 4));
  CHECK(facts.uid == getuid());
  CHECK(facts.logind);
  CHECK(facts.logind_conf == "[Login]\nRemoveIPC=yes\nRemoveIPC=10\nRemoveIPC=20\nRemoveIPC=30");
  CHECK(facts.own_mounts == std::string(10'000, 'x'));
  CHECK(facts.init_mounts == "init");
  REQUIRE(facts.groups.size() == 1);
  CHECK(facts.groups[0].path == "/job");
  CHECK(facts.groups[0].limit_bytes == 1000);
  CHECK(facts.groups[0].used_bytes == 550);

  CHECK_FALSE(observe_memory(dir / "none", "", system).exists);
  const MemoryFacts file = observe_memory(dir / mine.file_name(), "", system);
  CHECK((file.exists && !file.is_directory));
  const MemoryFacts bare = observe_memory(dir.path(), "", dir.path());
  CHECK_FALSE(bare.logind);
  CHECK(bare.groups.empty());
  CHECK(bare.replaced_bytes == 0);
}

TEST_CASE("this machine is checked", "[memory]") {
  const test::TempDir dir;
  const MemoryCheck large = check_memory_directory(dir.path(), std::uint64_t(1) << 60);
  REQUIRE_FALSE(large.errors.empty());
  CHECK(contains(large.errors[0], "1152921504606.847 MB"));
  CHECK(check_memory_directory(dir / "none", 1).errors.size() == 1);
}
