#include "checkpoint/memory_facts.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>

#include <linux/magic.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <pecan/core/file_system.hpp>

namespace pecan::checkpoint {
namespace {

namespace fs = std::filesystem;

/// The content of one of the system's files, of which none must be there. These have no size.
std::string text_of(const std::string& path) {
  std::string text;
  const Result<std::unique_ptr<File>> file = make_posix_file_system()->open(path, OpenMode::kRead);
  if (!file.ok()) return text;
  std::array<char, 4096> piece{};
  while (true) {
    const Result<std::size_t> count =
        file.value()->read_at(text.size(), std::as_writable_bytes(std::span(piece)));
    if (!count.ok() || count.value() == 0) return text;
    text.append(piece.data(), count.value());
  }
}

std::optional<std::uint64_t> number_in(std::string_view text) {
  std::uint64_t number = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
  return parsed.ec == std::errc() ? std::optional(number) : std::nullopt;
}

// ---- logind

/// logind.conf and its drop-ins in the order in which systemd reads them.
std::string read_logind_conf(const std::string& root) {
  constexpr std::array<const char*, 4> kFolders{"/etc", "/run", "/usr/local/lib", "/usr/lib"};
  std::string main;
  std::map<std::string, std::string> drop_ins;  // by name; an earlier folder hides a later one's
  for (const char* folder : kFolders) {
    const std::string path = root + folder + "/systemd/logind.conf";
    if (main.empty()) main = text_of(path);
    std::error_code none;
    for (const fs::directory_entry& entry : fs::directory_iterator(path + ".d", none)) {
      if (entry.path().extension() == ".conf")
        drop_ins.try_emplace(entry.path().filename().string(), entry.path().string());
    }
  }
  for (const auto& [name, path] : drop_ins) main += "\n" + text_of(path);
  return main;
}

/// systemd's default is to remove.
bool removes_ipc(const std::string& logind_conf) {
  bool removes = true;
  std::istringstream lines(logind_conf);
  for (std::string line; std::getline(lines, line);) {
    std::erase_if(line, [](char c) { return c == ' ' || c == '\t' || c == '\r'; });
    std::ranges::transform(line, line.begin(), [](unsigned char c) { return char(tolower(c)); });
    constexpr std::string_view kKey = "removeipc=";
    if (!line.starts_with(kKey)) continue;
    const std::string value = line.substr(kKey.size());
    removes = value != "no" && value != "n" && value != "false" && value != "f" && value != "off" &&
              value != "0";
  }
  return removes;
}

// ---- mounts

struct Mount {
  std::string device, source, point;
  bool operator==(const Mount&) const = default;
};

std::vector<Mount> parse_mounts(const std::string& mountinfo) {
  std::vector<Mount> mounts;
  std::istringstream lines(mountinfo);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    std::string id, parent;
    Mount mount;
    if (fields >> id >> parent >> mount.device >> mount.source >> mount.point)
      mounts.push_back(std::move(mount));
  }
  return mounts;
}

/// Whether `path` is `folder` or lies below it.
bool is_below(const std::string& path, const std::string& folder) {
  return folder == "/" || path == folder || path.starts_with(folder + "/");
}

/// Whether the mount that `facts.real` lies on is known, and process 1 does not have it.
bool is_private(const MemoryFacts& facts) {
  const std::vector<Mount> own = parse_mounts(facts.own_mounts);
  const std::vector<Mount> init = parse_mounts(facts.init_mounts);
  const Mount* here = nullptr;
  for (const Mount& mount : own) {
    // Of several at one point the last hides the others.
    if (is_below(facts.real, mount.point) &&
        (here == nullptr || mount.point.size() >= here->point.size())) {
      here = &mount;
    }
  }
  return here != nullptr && !init.empty() && std::ranges::count(init, *here) == 0;
}

// ---- cgroups

std::vector<MemoryGroup> read_groups(const std::string& root) {
  constexpr std::string_view kUnified = "0::";
  std::string path;
  std::istringstream lines(text_of(root + "/proc/self/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(kUnified)) path = line.substr(kUnified.size());
  }
  std::vector<MemoryGroup> groups;
  for (; path.size() > 1; path = path.substr(0, path.rfind('/'))) {
    const std::string folder = root + "/sys/fs/cgroup" + path;
    const std::optional<std::uint64_t> limit = number_in(text_of(folder + "/memory.max"));
    const std::optional<std::uint64_t> current = number_in(text_of(folder + "/memory.current"));
    if (!limit || !current) continue;  // "max" is no number
    std::uint64_t caches = 0;
    std::istringstream counters(text_of(folder + "/memory.stat"));
    std::string name;
    for (std::uint64_t value = 0; counters >> name >> value;) {
      if (name == "active_file" || name == "inactive_file") caches += value;
    }
    groups.push_back({path, *limit, *current - std::min(caches, *current)});
  }
  return groups;
}

std::string megabytes(std::uint64_t bytes) {
  return fmt::format("{:.3f} MB", double(bytes) / 1e6);
}

std::string remaining(const std::string& what, std::uint64_t replaced) {
  return replaced == 0
             ? what
             : fmt::format(
                   "{} and {} in buffers of this run that are replaced", what, megabytes(replaced));
}

}  // namespace

MemoryFacts observe_memory(const std::string& directory,
                           const std::string& run_id,
                           const std::string& root) {
  MemoryFacts facts;
  facts.directory = directory;
  std::error_code error;
  facts.real = fs::canonical(directory, error).string();
  facts.exists = !error;
  facts.is_directory = fs::is_directory(directory, error);
  if (!facts.is_directory) return facts;
  facts.writable = ::access(directory.c_str(), W_OK | X_OK) == 0;
  struct statfs kind {};
  if (::statfs(directory.c_str(), &kind) == 0)
    facts.in_memory = kind.f_type == TMPFS_MAGIC || kind.f_type == RAMFS_MAGIC;
  struct statvfs room {};
  if (::statvfs(directory.c_str(), &room) == 0 && room.f_blocks > 0)
    facts.free_bytes = std::uint64_t(room.f_bavail) * room.f_frsize;
  if (!run_id.empty()) {
    for (const SegmentReport& segment : list_segments(directory)) {
      if (segment.run_id == run_id && !segment.in_use) facts.replaced_bytes += segment.num_bytes;
    }
  }
  facts.uid = ::getuid();
  facts.logind = fs::exists(root + "/run/systemd/seats", error);
  facts.logind_conf = read_logind_conf(root);
  facts.own_mounts = text_of(root + "/proc/self/mountinfo");
  facts.init_mounts = text_of(root + "/proc/1/mountinfo");
  if (const char* job = std::getenv("SLURM_JOB_ID"); job != nullptr) facts.slurm_job = job;
  facts.groups = read_groups(root);
  return facts;
}

MemoryCheck judge(const MemoryFacts& facts, std::uint64_t needed_bytes) {
  MemoryCheck check;
  const std::string key = "checkpoint.memory_dir=" + facts.directory;
  const auto error = [&](std::string text) { check.errors.push_back(std::move(text)); };
  const auto warn = [&](std::string text) { check.warnings.push_back(std::move(text)); };
  if (!facts.exists || !facts.is_directory) {
    error(
        fmt::format("{} {}: snapshots in memory lie there, on every node; mount a tmpfs on it, "
                    "or use /dev/shm",
                    key,
                    facts.exists ? "is no directory" : "is not there"));
    return check;
  }
  if (!facts.writable) {
    error(
        fmt::format("{} cannot be written by this user ({}); check its owner and mode, or use "
                    "another directory",
                    key,
                    facts.uid));
  }
  if (facts.free_bytes && *facts.free_bytes + facts.replaced_bytes < needed_bytes) {
    error(fmt::format(
        "{} has {}, but the snapshots of this node's ranks need {}; enlarge it (mount -o "
        "remount,size=..., --shm-size of containers), remove old ones (pecan-inspect --memory), "
        "or lower checkpoint.pec.experts_per_snapshot",
        key,
        remaining(megabytes(*facts.free_bytes) + " free", facts.replaced_bytes),
        megabytes(needed_bytes)));
  }
  for (const MemoryGroup& group : facts.groups) {
    const std::uint64_t left = group.limit_bytes - std::min(group.limit_bytes, group.used_bytes);
    if (left + facts.replaced_bytes >= needed_bytes) continue;
    error(fmt::format(
        "the memory cgroup {} allows {}, of which {} left, but the snapshots of this node's ranks "
        "need {}, and the kernel would kill them; raise its memory.max (--memory of containers, "
        "--mem of Slurm), or lower checkpoint.pec.experts_per_snapshot",
        group.path,
        megabytes(group.limit_bytes),
        remaining(megabytes(left) + " are", facts.replaced_bytes),
        megabytes(needed_bytes)));
  }
  if (!facts.in_memory) {
    warn(
        fmt::format("{} is no tmpfs: snapshots are as slow as its disk; use /dev/shm, or mount a "
                    "tmpfs there",
                    key));
  }
  // logind looks into this directory only, and leaves system users alone.
  if (facts.logind && facts.uid >= 1000 && is_below(facts.real, "/dev/shm") &&
      removes_ipc(facts.logind_conf)) {
    warn(
        fmt::format("{}: systemd-logind removes the files of user {} there when their last "
                    "session ends, and snapshots with them; set RemoveIPC=no in "
                    "/etc/systemd/logind.conf, or loginctl enable-linger",
                    key,
                    facts.uid));
  }
  if (is_private(facts)) {
    warn(fmt::format(
        "{} is mounted for this {} alone, not for the node: snapshots end with it; restart inside "
        "of it, or use a directory that the whole node sees",
        key,
        facts.slurm_job.empty() ? "session" : fmt::format("Slurm job ({})", facts.slurm_job)));
  }
  return check;
}

}  // namespace pecan::checkpoint
