#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <limits>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <pecan/core/file_system.hpp>

#include "core/system_call.hpp"

namespace pecan {
namespace {

constexpr std::uint64_t kMaxOffset = std::uint64_t(std::numeric_limits<off_t>::max());

class PosixFile final : public File {
 public:
  PosixFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  // Not repeated on EINTR: Linux has released the descriptor by then.
  ~PosixFile() override { ::close(fd_); }

  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> bytes) override {
    std::size_t done = 0;
    while (done < bytes.size()) {
      if (offset + done > kMaxOffset) return done;
      const ssize_t count = uninterrupted([&] {
        return ::pread(fd_, bytes.data() + done, bytes.size() - done, off_t(offset + done));
      });
      if (count < 0) return failure("reading", path_, errno);
      if (count == 0) break;
      done += std::size_t(count);
    }
    return done;
  }

  Status write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    std::size_t done = 0;
    while (done < bytes.size()) {
      if (offset + done > kMaxOffset) return failure("writing", path_, EFBIG);
      const ssize_t count = uninterrupted([&] {
        return ::pwrite(fd_, bytes.data() + done, bytes.size() - done, off_t(offset + done));
      });
      if (count < 0) return failure("writing", path_, errno);
      if (count == 0) return failure("writing", path_, EIO);
      done += std::size_t(count);
    }
    return {};
  }

  void start_writeback(std::uint64_t offset, std::uint64_t num_bytes) override {
#ifdef __linux__
    // Whatever goes wrong here, sync() will meet and report.
    static_cast<void>(
        ::sync_file_range(fd_, off_t(offset), off_t(num_bytes), SYNC_FILE_RANGE_WRITE));
#endif
  }

  Status truncate(std::uint64_t size) override {
    if (size > kMaxOffset) return failure("resizing", path_, EFBIG);
    if (uninterrupted([&] { return ::ftruncate(fd_, off_t(size)); }) < 0) {
      return failure("resizing", path_, errno);
    }
    return {};
  }

  Result<std::uint64_t> size() override {
    struct stat facts {};
    if (::fstat(fd_, &facts) < 0) return failure("asking the size of", path_, errno);
    return std::uint64_t(facts.st_size);
  }

  Status sync() override {
    if (uninterrupted([&] { return ::fsync(fd_); }) < 0) return failure("syncing", path_, errno);
    return {};
  }

 private:
  int fd_;
  std::string path_;
};

int flags_of(OpenMode mode) {
  switch (mode) {
    case OpenMode::kRead:
      return O_RDONLY;
    case OpenMode::kReadWrite:
      return O_RDWR;
    case OpenMode::kCreate:
      return O_RDWR | O_CREAT | O_TRUNC;
    case OpenMode::kCreateNew:
      return O_RDWR | O_CREAT | O_EXCL;
  }
  throw InternalError(fmt::format("{} is no mode to open a file in", int(mode)));
}

class PosixFileSystem final : public FileSystem {
 public:
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) override {
    const int flags = flags_of(mode) | O_CLOEXEC;
    const int fd = uninterrupted([&] { return ::open(path.c_str(), flags, 0666); });
    if (fd < 0)
      return failure(mode == OpenMode::kRead ? "opening" : "opening for writing", path, errno);
    return std::unique_ptr<File>(std::make_unique<PosixFile>(fd, path));
  }

  Status create_directories(const std::string& path) override {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) return failure("creating directory", path, error.value());
    return {};
  }

  Result<std::vector<DirEntry>> list(const std::string& path) override {
    std::vector<DirEntry> entries;
    std::error_code error;
    std::filesystem::directory_iterator it(path, error);
    for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
      std::error_code vanished;  // an entry removed meanwhile counts as a file
      entries.push_back({it->path().filename().string(), it->is_directory(vanished)});
    }
    if (error) return failure("listing", path, error.value());
    std::ranges::sort(entries, {}, &DirEntry::name);
    return entries;
  }

  bool exists(const std::string& path) override {
    struct stat facts {};
    return ::stat(path.c_str(), &facts) == 0;
  }

  Status rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) < 0) {
      return failure(fmt::format("renaming {} to", from), to, errno);
    }
    return {};
  }

  Status remove_file(const std::string& path) override {
    if (::unlink(path.c_str()) < 0) return failure("removing", path, errno);
    return {};
  }

  Status remove_all(const std::string& path) override {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error) return failure("removing", path, error.value());
    return {};
  }

  Status sync_directory(const std::string& path) override {
    const int fd =
        uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
    if (fd < 0) return failure("opening directory", path, errno);
    const int error = uninterrupted([&] { return ::fsync(fd); }) < 0 ? errno : 0;
    ::close(fd);
    // EINVAL: a file system whose directories are always durable.
    if (error != 0 && error != EINVAL) return failure("syncing directory", path, error);
    return {};
  }
};

}  // namespace

Status disk_full(const std::string& path) {
  return failure("writing", path, ENOSPC);
}

std::unique_ptr<FileSystem> make_posix_file_system() {
  return std::make_unique<PosixFileSystem>();
}

}  // namespace pecan
