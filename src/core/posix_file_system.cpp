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

#include "core/direct_writer.hpp"
#include "core/system_call.hpp"

namespace pecan {
namespace {

class PosixFile final : public File {
 public:
  PosixFile(int fd, std::string path, OpenMode mode, std::shared_ptr<DirectWriter> writer)
      : fd_(fd),
        path_(std::move(path)),
        writable_(mode != OpenMode::kRead),
        writer_(std::move(writer)),
        stream_(fd, path_) {}
  ~PosixFile() override {
    // The caller's memory is its own again; a failure has been reported or is of no interest.
    static_cast<void>(writer_->wait(stream_));
    // Not repeated on EINTR: Linux has released the descriptor by then.
    ::close(fd_);
  }

  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> bytes) override {
    if (const Status status = writer_->wait(stream_, offset, bytes.size()); !status.ok()) {
      return status;
    }
    // Before reading: a write that ends in between is in what is read.
    const std::uint64_t pending_end = writer_->pending_end(stream_);
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
    if (offset + done < pending_end) {
      // A gap in front of a write that will extend the file: nobody has written there.
      const auto gap = bytes.subspan(
          done, std::min<std::uint64_t>(bytes.size() - done, pending_end - offset - done));
      std::ranges::fill(gap, std::byte{0});
      done += gap.size();
    }
    return done;
  }

  Status write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    if (const Status status = writer_->wait(stream_, offset, bytes.size()); !status.ok()) {
      return status;
    }
    return write_all(fd_, path_, offset, bytes);
  }

  Status write_behind(std::uint64_t offset, std::span<const std::byte> bytes) override {
    // Behind writes that are under way, small ones would have to wait for the inode.
    const bool large = bytes.size() >= DirectWriter::kLeastBytes;
    const bool direct = writable_ && large && writer_->accepts(stream_);
    if (!direct && writer_->pending_end(stream_) == 0) return write_at(offset, bytes);
    if (offset > kMaxOffset - bytes.size()) return failure("writing", path_, EFBIG);
    Status status = writer_->wait(stream_, offset, bytes.size());
    if (status.ok()) writer_->post(stream_, offset, bytes);
    return status;
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
    if (const Status status = writer_->wait(stream_); !status.ok()) return status;
    if (uninterrupted([&] { return ::ftruncate(fd_, off_t(size)); }) < 0) {
      return failure("resizing", path_, errno);
    }
    return {};
  }

  Result<std::uint64_t> size() override {
    // Before fstat: a write that ends in between is in what that says.
    const std::uint64_t pending_end = writer_->pending_end(stream_);
    struct stat facts {};
    if (::fstat(fd_, &facts) < 0) return failure("asking the size of", path_, errno);
    return std::max(pending_end, std::uint64_t(facts.st_size));
  }

  Status sync() override {
    if (const Status status = writer_->wait(stream_); !status.ok()) return status;
    if (uninterrupted([&] { return ::fsync(fd_); }) < 0) return failure("syncing", path_, errno);
    return {};
  }

 private:
  int fd_;
  std::string path_;
  bool writable_;
  std::shared_ptr<DirectWriter> writer_;  ///< shared by all files of a file system, and by it
  DirectWriter::Stream stream_;
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
  explicit PosixFileSystem(std::shared_ptr<DirectWriter> writer) : writer_(std::move(writer)) {}
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) override {
    const int flags = flags_of(mode) | O_CLOEXEC;
    const int fd = uninterrupted([&] { return ::open(path.c_str(), flags, 0666); });
    if (fd < 0)
      return failure(mode == OpenMode::kRead ? "opening" : "opening for writing", path, errno);
    return std::unique_ptr<File>(std::make_unique<PosixFile>(fd, path, mode, writer_));
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

 private:
  std::shared_ptr<DirectWriter> writer_;  ///< shared with the files
};

}  // namespace

Status disk_full(const std::string& path) {
  return failure("writing", path, ENOSPC);
}

std::unique_ptr<FileSystem> make_posix_file_system() {
  return make_posix_file_system(std::make_shared<DirectWriter>());
}

std::unique_ptr<FileSystem> make_posix_file_system(std::shared_ptr<DirectWriter> writer) {
  return std::make_unique<PosixFileSystem>(std::move(writer));
}

}  // namespace pecan
