#include "core/direct_writer.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/system_call.hpp"

namespace pecan {
namespace {

/// Of what one call is asked to write: Linux does not take more than 2 GiB.
constexpr std::size_t kMostBytes = std::size_t(1) << 30;

/// Whole blocks never share a page with what is written through the page cache: the kernel keeps
/// the two coherent page by page.
std::size_t block_bytes() {
  static const std::size_t bytes =
      std::max<std::size_t>(4096, std::size_t(std::max(0L, ::sysconf(_SC_PAGESIZE))));
  return bytes;
}

bool is_aligned(const std::byte* memory, std::size_t alignment) {
  return reinterpret_cast<std::uintptr_t>(memory) % alignment == 0;
}

bool is_same_file(int a, int b) {
  struct stat left {};
  struct stat right {};
  return ::fstat(a, &left) == 0 && ::fstat(b, &right) == 0 && S_ISREG(left.st_mode) &&
         left.st_dev == right.st_dev && left.st_ino == right.st_ino;
}

/// Errors of a file system that cannot, rather than of one that failed.
bool is_refusal(int error) {
  return error == EINVAL || error == EOPNOTSUPP || error == ENOSYS;
}

}  // namespace

Status write_all(int fd,
                 const std::string& path,
                 std::uint64_t offset,
                 std::span<const std::byte> bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    if (offset + done > kMaxOffset) return failure("writing", path, EFBIG);
    const ssize_t count = uninterrupted([&] {
      return ::pwrite(fd, bytes.data() + done, bytes.size() - done, off_t(offset + done));
    });
    if (count < 0) return failure("writing", path, errno);
    if (count == 0) return failure("writing", path, EIO);
    done += std::size_t(count);
  }
  return {};
}

int DirectCalls::open(const char* path) {
#ifdef O_DIRECT
  return ::open(path, O_WRONLY | O_DIRECT | O_CLOEXEC);
#else
  static_cast<void>(path);
  errno = EINVAL;
  return -1;
#endif
}

ssize_t DirectCalls::write(int fd, std::span<const std::byte> bytes, std::uint64_t offset) {
  return ::pwrite(fd, bytes.data(), bytes.size(), off_t(offset));
}

DirectWriter::Stream::~Stream() {
  if (direct_fd_ >= 0) ::close(direct_fd_);
}

void DirectWriter::FreeBounce::operator()(std::byte* bytes) const {
  ::operator delete (bytes, std::align_val_t{block_bytes()});
}

std::span<std::byte> DirectWriter::bounce() {
  if (!bounce_) {
    bounce_.reset(static_cast<std::byte*>(
        ::operator new (kBounceBytes, std::align_val_t{block_bytes()}, std::nothrow)));
  }
  return {bounce_.get(), bounce_ ? kBounceBytes : 0};
}

bool DirectWriter::accepts(Stream& stream) {
  if (stream.state_ == Stream::State::kUntried) {
    stream.direct_fd_ = uninterrupted([&] { return calls_->open(stream.path_.c_str()); });
    // By now the path may name another file.
    const bool open = stream.direct_fd_ >= 0 && is_same_file(stream.fd_, stream.direct_fd_);
    stream.state_ = open ? Stream::State::kOpen : Stream::State::kRefused;
#ifdef POSIX_FADV_RANDOM
    // Reading ahead would bring what is being written into the page cache, together with pages that
    // are written through it.
    if (open) static_cast<void>(::posix_fadvise(stream.fd_, 0, 0, POSIX_FADV_RANDOM));
#endif
  }
  return stream.state_ == Stream::State::kOpen;
}

void DirectWriter::post(Stream& stream, std::uint64_t offset, std::span<const std::byte> bytes) {
  const std::lock_guard lock(mutex_);
  if (!thread_.joinable()) thread_ = std::jthread([this](const std::stop_token& s) { run(s); });
  jobs_.push_back({&stream, offset, bytes});
  posted_.notify_one();
}

Status DirectWriter::wait(Stream& stream) {
  return wait(stream, 0, std::numeric_limits<std::uint64_t>::max());
}

Status DirectWriter::wait(Stream& stream, std::uint64_t offset, std::uint64_t num_bytes) {
  const auto touches = [&](const Job& job) {
    return job.stream == &stream && job.offset < offset + num_bytes &&
           offset < job.offset + job.bytes.size();
  };
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return std::ranges::none_of(jobs_, touches); });
  return stream.failed_;
}

std::uint64_t DirectWriter::pending_end(const Stream& stream) const {
  const std::lock_guard lock(mutex_);
  std::uint64_t end = 0;
  for (const Job& job : jobs_) {
    if (job.stream == &stream) end = std::max(end, job.offset + job.bytes.size());
  }
  return end;
}

void DirectWriter::run(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (posted_.wait(lock, stop, [&] { return !jobs_.empty(); })) {
    const Job job = jobs_.front();
    Status status = job.stream->failed_;
    lock.unlock();
    if (status.ok()) status = write(job);
    lock.lock();
    job.stream->failed_ = std::move(status);
    jobs_.pop_front();
    done_.notify_all();
  }
}

Status DirectWriter::write(const Job& job) {
  const std::size_t block = block_bytes();
  const auto [stream, offset, bytes] = job;
  if (bytes.size() < kLeastBytes) return write_all(stream->fd_, stream->path_, offset, bytes);
  const std::size_t head = std::min(bytes.size(), std::size_t((block - offset % block) % block));
  std::size_t done = head;
  const std::size_t num_whole = (bytes.size() - head) / block * block;
  Status status = write_blocks({stream, offset + head, bytes.subspan(head, num_whole)}, done);
  if (status.ok()) status = write_all(stream->fd_, stream->path_, offset, bytes.first(head));
  // The tail at its exact length: what follows it in the file belongs to others.
  if (status.ok()) {
    status = write_all(stream->fd_, stream->path_, offset + done, bytes.subspan(done));
  }
  return status;
}

Status DirectWriter::write_blocks(const Job& blocks, std::size_t& done) {
  Stream& stream = *blocks.stream;
  for (std::size_t at = 0; at < blocks.bytes.size();) {
    if (stream.state_ != Stream::State::kOpen) return {};
    std::span<const std::byte> piece = blocks.bytes.subspan(at);
    piece = piece.first(std::min(piece.size(), kMostBytes));
    if (!is_aligned(piece.data(), stream.memory_alignment_)) {
      const std::span<std::byte> copy = bounce();
      piece = piece.first(std::min(piece.size(), copy.size()));
      if (piece.empty()) return {};  // no memory for the copy: through the page cache
      std::memcpy(copy.data(), piece.data(), piece.size());
      piece = copy.first(piece.size());
    }
    const ssize_t count =
        uninterrupted([&] { return calls_->write(stream.direct_fd_, piece, blocks.offset + at); });
    if (count < 0 && is_refusal(errno)) {
      if (stream.memory_alignment_ < block_bytes()) {
        stream.memory_alignment_ = block_bytes();
      } else {
        stream.state_ = Stream::State::kRefused;
      }
      continue;
    }
    if (count < 0) return failure("writing", stream.path_, errno);
    at += std::size_t(count);
    done += std::size_t(count);
    // Cut short, as before a full disk: the rest says why.
    if (std::size_t(count) % block_bytes() != 0 || count == 0) return {};
  }
  return {};
}

}  // namespace pecan
