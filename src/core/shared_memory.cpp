#include <cerrno>
#include <filesystem>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <pecan/core/shared_memory.hpp>

#include "core/system_call.hpp"

namespace pecan {
namespace {

/// Bytes that ordinary users may still take; nullopt where the file system has no limit or does not
/// say.
std::optional<std::uint64_t> free_bytes(const std::string& path) {
  struct statvfs facts {};
  const std::string directory = std::filesystem::path(path).parent_path().string();
  if (::statvfs(directory.empty() ? "." : directory.c_str(), &facts) < 0 || facts.f_blocks == 0)
    return {};
  return std::uint64_t(facts.f_bavail) * facts.f_frsize;
}

Status no_space(const std::string& path, std::size_t wanted, std::optional<std::uint64_t> free) {
  return Status::failure(
      StatusCode::kNoSpace,
      fmt::format("{} cannot have {} bytes of memory: {}",
                  path,
                  wanted,
                  free ? fmt::format("its directory has {} bytes free", *free)
                       : std::string("a limit of the process (ulimit -f) or the directory is "
                                     "reached")));
}

bool is_linked(int fd) {
  struct stat facts {};
  return ::fstat(fd, &facts) == 0 && facts.st_nlink > 0;
}

bool is_at(int fd, const std::string& path) {
  struct stat opened {};
  struct stat named {};
  return ::fstat(fd, &opened) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

/// Opens the file, asks for `lock` without waiting, and calls `body(fd, locked)` while it holds.
template <typename Body>
Result<bool> with_lock(const std::string& path, int lock, Body body) {
  const int fd = uninterrupted(
      [&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK); });
  if (fd < 0) return failure("opening", path, errno);
  const bool locked = uninterrupted([&] { return ::flock(fd, lock | LOCK_NB); }) == 0;
  Result<bool> result = !locked && errno != EWOULDBLOCK
                            ? Result<bool>(failure("asking for the owner of", path, errno))
                            : body(fd, locked);
  ::close(fd);
  return result;
}

}  // namespace

SharedMemory::~SharedMemory() {
  if (data_ != nullptr) ::munmap(data_, size_);
  if (fd_ >= 0) ::close(fd_);  // and with it the lock
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::exchange(other.path_, {})) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  SharedMemory taken(std::move(other));
  std::swap(fd_, taken.fd_);
  std::swap(data_, taken.data_);
  std::swap(size_, taken.size_);
  std::swap(path_, taken.path_);
  return *this;
}

Result<SharedMemory> SharedMemory::create(const std::string& path, std::size_t num_bytes) {
  PECAN_EXPECTS(num_bytes > 0);
  SharedMemory memory;
  memory.path_ = path;
  do {
    if (memory.fd_ >= 0) ::close(std::exchange(memory.fd_, -1));
    if (::unlink(path.c_str()) < 0 && errno != ENOENT)
      return failure("removing the former", path, errno);
    memory.fd_ = uninterrupted([&] {
      return ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    });
    if (memory.fd_ < 0) return failure("creating", path, errno);
    // Waits only for those that look whether the file is in use, which takes them no time. One that
    // cleans up may find the file before it has an owner, and remove it: then once more.
    if (uninterrupted([&] { return ::flock(memory.fd_, LOCK_EX); }) < 0) {
      const Status status = failure("locking", path, errno);
      static_cast<void>(memory.remove());
      return status;
    }
  } while (!is_linked(memory.fd_));

  // Asked first: some file systems fill themselves up before they find that it is not enough.
  const std::optional<std::uint64_t> free = free_bytes(path);
  const bool too_large = (free && *free < num_bytes) || off_t(num_bytes) < 0;
  int error = too_large ? ENOSPC : EINTR;
  // Without reserved pages a full directory would show itself as SIGBUS in the middle of a copy.
  while (error == EINTR) error = ::posix_fallocate(memory.fd_, 0, off_t(num_bytes));
  if (error == 0) {
    // Populated now, or the first snapshot would pay for every page.
    void* const data = ::mmap(
        nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory.fd_, 0);
    if (data != MAP_FAILED) {
      memory.data_ = static_cast<std::byte*>(data);
      memory.size_ = num_bytes;
      return memory;
    }
    error = errno;
  }
  static_cast<void>(memory.remove());  // the first failure is the one to report
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) return no_space(path, num_bytes, free);
  return failure(fmt::format("reserving {} bytes for", num_bytes), path, error);
}

Result<SharedMemory> SharedMemory::adopt(const std::string& path) {
  SharedMemory memory;
  memory.path_ = path;
  memory.fd_ =
      uninterrupted([&] { return ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW); });
  if (memory.fd_ < 0) return failure("opening", path, errno);
  if (uninterrupted([&] { return ::flock(memory.fd_, LOCK_EX | LOCK_NB); }) < 0) {
    if (errno != EWOULDBLOCK) return failure("locking", path, errno);
    return Status::failure(StatusCode::kExists,
                           fmt::format("{} is held by another process; stop it first", path));
  }
  struct stat facts {};
  if (::fstat(memory.fd_, &facts) < 0) return failure("asking for the size of", path, errno);
  if (!is_at(memory.fd_, path) || facts.st_size <= 0)
    return Status::failure(StatusCode::kNotFound, fmt::format("{} has been removed", path));
  const auto num_bytes = std::size_t(facts.st_size);
  void* const data = ::mmap(
      nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory.fd_, 0);
  if (data == MAP_FAILED) return failure("mapping", path, errno);
  memory.data_ = static_cast<std::byte*>(data);
  memory.size_ = num_bytes;
  return memory;
}

Status SharedMemory::shrink(std::size_t num_bytes) {
  PECAN_EXPECTS(num_bytes > 0 && num_bytes <= size_);
  // Unmapped before the file ends there: a stray access is then a plain bug, not SIGBUS.
  if (::mremap(data_, size_, num_bytes, 0) == MAP_FAILED) return failure("remapping", path_, errno);
  size_ = num_bytes;
  if (uninterrupted([&] { return ::ftruncate(fd_, off_t(num_bytes)); }) < 0)
    return failure("shrinking", path_, errno);
  return {};
}

Status SharedMemory::remove() {
  // A newer owner may have put its own file under this name.
  if (!is_at(fd_, path_)) return {};
  if (::unlink(path_.c_str()) < 0 && errno != ENOENT) return failure("removing", path_, errno);
  return {};
}

Result<bool> SharedMemory::is_in_use(const std::string& path) {
  return with_lock(path, LOCK_SH, [](int /*fd*/, bool locked) { return Result<bool>(!locked); });
}

Result<bool> SharedMemory::remove_unless_in_use(const std::string& path) {
  return with_lock(path, LOCK_EX, [&](int fd, bool locked) -> Result<bool> {
    // The name may have passed to a new owner's file between opening and locking.
    if (!locked || !is_at(fd, path)) return false;
    if (::unlink(path.c_str()) < 0 && errno != ENOENT) return failure("removing", path, errno);
    return true;
  });
}

}  // namespace pecan
