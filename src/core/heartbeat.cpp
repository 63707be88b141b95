#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <charconv>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <pecan/core/file_system.hpp>
#include <pecan/core/heartbeat.hpp>

#include "core/system_call.hpp"

namespace pecan {
namespace detail {

constexpr std::size_t kHostBytes = 64, kOperationBytes = 24, kPurposeBytes = 32;

/// On-disk: little-endian, as all machines that Pecan runs on are.
struct HeartbeatBytes {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::int32_t rank;
  std::int64_t pid;
  std::int32_t world;
  std::int32_t incarnation;
  std::array<char, kHostBytes> host;
  std::uint32_t phase;
  std::int32_t layer;
  std::int64_t step;
  std::int64_t changed_s;
  std::array<char, kOperationBytes> operation;
  std::array<char, kPurposeBytes> purpose;
  std::uint64_t sequence;
};
static_assert(sizeof(HeartbeatBytes) == 184);
static_assert(std::endian::native == std::endian::little);

}  // namespace detail

namespace {

using Bytes = detail::HeartbeatBytes;

constexpr std::array<char, 8> kMagic = {'P', 'c', 'n', 'B', 'e', 'a', 't', '1'};
constexpr std::uint32_t kVersion = 1;  // on-disk: raise with every change of meaning
constexpr std::string_view kPrefix = "rank-";

template <std::size_t Size>
void set_text(std::array<char, Size>& to, std::string_view text) {
  const std::size_t length = std::min(text.size(), Size - 1);
  std::memcpy(to.data(), text.data(), length);
  std::memset(to.data() + length, 0, Size - length);
}

/// What stands before the first zero; nullopt without one, or with what no name holds.
template <std::size_t Size>
std::optional<std::string> text_of(const std::array<char, Size>& from) {
  const auto end = std::ranges::find(from, '\0');
  if (end == from.end()) return {};
  const std::string text(from.begin(), end);
  if (std::ranges::any_of(text, [](char c) { return c <= ' ' || c > '~'; })) return {};
  return text;
}

std::string file_name(int rank) {
  return fmt::format("{}{:05}", kPrefix, rank);
}

std::optional<int> rank_of(std::string_view name) {
  if (!name.starts_with(kPrefix)) return {};
  name.remove_prefix(kPrefix.size());
  int rank = 0;
  const auto parsed = std::from_chars(name.data(), name.data() + name.size(), rank);
  if (name.size() < 5 || parsed.ec != std::errc() || parsed.ptr != name.data() + name.size() ||
      rank < 0)
    return {};
  return rank;
}

}  // namespace

std::string_view name_of(RunPhase phase) {
  switch (phase) {
    case RunPhase::kStarting:
      return "starting";
    case RunPhase::kRecovering:
      return "recovering";
    case RunPhase::kTraining:
      return "training";
    case RunPhase::kDraining:
      return "draining";
    case RunPhase::kDone:
      return "done";
  }
  throw InternalError(fmt::format("{} is no phase of a run", std::uint32_t(phase)));
}

Heartbeat::Heartbeat(std::string run_directory, Rank rank, int world)
    : directory_(heartbeat_directory(run_directory)),
      world_(world),
      rank_(rank.value),
      own_(std::make_unique<Bytes>()),
      bytes_(own_.get()) {
  bytes_->magic = kMagic;
  bytes_->version = kVersion;
  bytes_->rank = rank.value;
  bytes_->pid = ::getpid();
  bytes_->world = world;
  bytes_->incarnation = -1;
  bytes_->layer = kNoLayer.value;
  decltype(bytes_->host) host{};
  if (::gethostname(host.data(), host.size() - 1) == 0) bytes_->host = host;
  changed();
}

Heartbeat::~Heartbeat() {
  if (bytes_ != own_.get()) ::munmap(bytes_, sizeof(Bytes));
  if (fd_ >= 0) ::close(fd_);
}

Status Heartbeat::open_file(Taking taking) {
  std::error_code error;
  std::filesystem::create_directories(directory_, error);
  if (error) return failure("creating", directory_, error.value());
  const std::string path = directory_ + "/" + file_name(rank_);
  if (taking == Taking::kAlways && ::unlink(path.c_str()) < 0 && errno != ENOENT)
    return failure("removing the former", path, errno);
  const int fd = uninterrupted(
      [&] { return ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644); });
  if (fd < 0) return failure("opening", path, errno);
  // The sign that a process lives behind the file. Where the file system has no locks, there is
  // none to be seen.
  if (uninterrupted([&] { return ::flock(fd, LOCK_EX | LOCK_NB); }) < 0 && errno == EWOULDBLOCK) {
    ::close(fd);
    return Status::failure(StatusCode::kExists,
                           fmt::format("{} is held by another process; stop it first", path));
  }
  // A store into a page without room on the disk would be a SIGBUS.
  int reserved = EINTR;
  while (reserved == EINTR) reserved = ::posix_fallocate(fd, 0, sizeof(Bytes));
  if (reserved != 0) {
    ::close(fd);
    return failure("reserving room for", path, reserved);
  }
  void* const data = ::mmap(nullptr, sizeof(Bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    const Status status = failure("mapping", path, errno);
    ::close(fd);
    return status;
  }
  std::memcpy(data, own_.get(), sizeof(Bytes));
  bytes_ = static_cast<Bytes*>(data);
  fd_ = fd;
  return {};
}

void Heartbeat::start() {
  // claim() tells what stands in the way, if it still does then.
  if (bytes_ == own_.get()) static_cast<void>(open_file(Taking::kIfFree));
}

Status Heartbeat::claim(Incarnation incarnation) {
  bytes_->incarnation = incarnation.value;
  if (bytes_ == own_.get()) {
    if (Status status = open_file(Taking::kAlways); !status.ok()) return status;
  }
  changed();
  if (rank_ != 0) return {};
  const auto fs = make_posix_file_system();
  const Result<std::vector<DirEntry>> entries = fs->list(directory_);
  if (!entries.ok()) return entries.status();
  for (const DirEntry& entry : entries.value()) {
    const std::optional<int> rank = rank_of(entry.name);
    if (!rank || *rank < world_) continue;
    if (Status status = fs->remove_file(directory_ + "/" + entry.name); !status.ok()) return status;
  }
  return {};
}

void Heartbeat::enter(RunPhase phase) {
  bytes_->phase = std::uint32_t(phase);
  changed();
}

void Heartbeat::enter(std::uint64_t sequence,
                      std::string_view operation,
                      std::string_view purpose,
                      LayerId layer,
                      Step step) {
  set_text(bytes_->operation, operation);
  set_text(bytes_->purpose, purpose);
  bytes_->layer = layer.value;
  bytes_->step = step.value;
  // Last, so that who sees the new number sees what belongs to it.
  std::atomic_ref(bytes_->sequence).store(sequence, std::memory_order_release);
  changed();
}

void Heartbeat::changed() {
  const std::int64_t now = ::time(nullptr);
  if (bytes_->changed_s == now) return;
  bytes_->changed_s = now;
  // Hosts that share a file system see the page once it is written back.
  if (bytes_ != own_.get()) static_cast<void>(::msync(bytes_, sizeof(Bytes), MS_ASYNC));
}

Result<HeartbeatRecord> parse_heartbeat(std::string_view text) {
  Bytes bytes{};
  if (text.size() < sizeof(bytes)) {
    return Status::failure(
        StatusCode::kCorrupt,
        fmt::format("a heartbeat has {} bytes, not {}", sizeof(bytes), text.size()));
  }
  std::memcpy(&bytes, text.data(), sizeof(bytes));
  if (bytes.magic != kMagic)
    return Status::failure(StatusCode::kCorrupt, "it does not begin like a heartbeat");
  if (bytes.version != kVersion) {
    return Status::failure(
        StatusCode::kInvalid,
        fmt::format("its version is {}, but this program reads {}", bytes.version, kVersion));
  }
  const auto host = text_of(bytes.host), operation = text_of(bytes.operation),
             purpose = text_of(bytes.purpose);
  if (!host || !operation || !purpose)
    return Status::failure(StatusCode::kCorrupt, "it holds a name that is none");
  if (bytes.rank < 0 || bytes.rank >= bytes.world || bytes.pid <= 0 || bytes.incarnation < -1 ||
      bytes.phase > std::uint32_t(RunPhase::kDone) || bytes.layer < kNoLayer.value ||
      bytes.step < 0)
    return Status::failure(StatusCode::kCorrupt, "it holds a number that is out of range");
  return HeartbeatRecord{Rank{bytes.rank},
                         bytes.world,
                         bytes.pid,
                         *host,
                         Incarnation{bytes.incarnation},
                         RunPhase(bytes.phase),
                         bytes.sequence,
                         *operation,
                         *purpose,
                         LayerId{bytes.layer},
                         Step{bytes.step},
                         bytes.changed_s};
}

std::string heartbeat_directory(const std::string& run_directory) {
  return run_directory + "/heartbeat";
}

std::vector<HeartbeatRecord> read_heartbeats(const std::string& run_directory) {
  const auto fs = make_posix_file_system();
  const std::string directory = heartbeat_directory(run_directory);
  std::vector<HeartbeatRecord> records;
  const Result<std::vector<DirEntry>> entries = fs->list(directory);
  if (!entries.ok()) return records;
  for (const DirEntry& entry : entries.value()) {
    const std::optional<int> rank = rank_of(entry.name);
    if (!rank || entry.is_directory) continue;
    const auto file = fs->open(directory + "/" + entry.name, OpenMode::kRead);
    if (!file.ok()) continue;
    std::array<char, sizeof(Bytes)> text{};
    const Result<std::size_t> length =
        file.value()->read_at(0, std::as_writable_bytes(std::span(text)));
    if (!length.ok()) continue;
    Result<HeartbeatRecord> record = parse_heartbeat({text.data(), length.value()});
    if (record.ok() && record.value().rank.value == *rank)
      records.push_back(std::move(record).value());
  }
  std::ranges::sort(records, {}, &HeartbeatRecord::rank);
  return records;
}

void clear_heartbeats(const std::string& run_directory) {
  const auto fs = make_posix_file_system();
  const std::string directory = heartbeat_directory(run_directory);
  const Result<std::vector<DirEntry>> entries = fs->list(directory);
  if (!entries.ok()) return;
  for (const DirEntry& entry : entries.value()) {
    // What cannot be removed is told apart by what it says.
    if (rank_of(entry.name)) static_cast<void>(fs->remove_file(directory + "/" + entry.name));
  }
}

}  // namespace pecan
