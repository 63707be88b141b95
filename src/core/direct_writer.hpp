#pragma once
/// Large writes round the page cache, while the caller does other things.

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>

#include <sys/types.h>

#include <pecan/core/error.hpp>
#include <pecan/core/file_system.hpp>

namespace pecan {

/// The largest offset that the operating system takes.
inline constexpr std::uint64_t kMaxOffset = std::uint64_t(std::numeric_limits<off_t>::max());

/// Writes all bytes at `offset` of an open file, through the page cache; a short write is repeated.
/// `path` is for the message of a failure.
Status write_all(int fd,
                 const std::string& path,
                 std::uint64_t offset,
                 std::span<const std::byte> bytes);

/// The calls of the operating system that a file system may refuse; errno says why.
class DirectCalls {
 public:
  DirectCalls() = default;
  virtual ~DirectCalls() = default;
  DirectCalls(const DirectCalls&) = delete;
  DirectCalls& operator=(const DirectCalls&) = delete;
  /// A descriptor for writing round the page cache, or -1.
  virtual int open(const char* path);
  /// pwrite(2) to such a descriptor.
  virtual ssize_t write(int fd, std::span<const std::byte> bytes, std::uint64_t offset);
};

/// Writes one job after the other in a thread of its own, which starts with the first: whole blocks
/// round the page cache, what is left of a job in front of them and behind them through it, at its
/// exact length. Where the file system refuses, all of it goes through the page cache. Memory that
/// is not aligned as the device wants it goes through a buffer of kBounceBytes, all other is not
/// copied. Thread-safe.
class DirectWriter {
 public:
  /// Runs of this size and more are worth it.
  static constexpr std::size_t kLeastBytes = std::size_t(256) << 10;
  /// Fits the cache, so that copying into it costs no memory bandwidth but the reading.
  static constexpr std::size_t kBounceBytes = std::size_t(1) << 20;

  /// One file. It is used by one thread, and outlives its jobs: wait() before it goes.
  class Stream {
   public:
    /// `fd`, open for writing through the page cache, outlives it.
    Stream(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

   private:
    friend DirectWriter;
    enum class State : std::uint8_t { kUntried, kOpen, kRefused };
    int fd_;
    int direct_fd_ = -1;
    std::string path_;
    std::atomic<State> state_ = State::kUntried;
    std::size_t memory_alignment_ = kLeastMemoryAlignment;  ///< the thread's
    Status failed_;                                         ///< first failure; under the mutex
  };

  explicit DirectWriter(std::unique_ptr<DirectCalls> calls = std::make_unique<DirectCalls>())
      : calls_(std::move(calls)) {}
  /// No stream has jobs left.
  ~DirectWriter() = default;

  /// Whether the file can be written round the page cache, as far as is known.
  [[nodiscard]] bool accepts(Stream& stream);
  /// Enqueues; `bytes` stay as they are until wait() has returned.
  void post(Stream& stream, std::uint64_t offset, std::span<const std::byte> bytes);
  /// Waits for all jobs of the stream; its first failure.
  Status wait(Stream& stream);
  /// Waits for the jobs that touch [offset, offset + num_bytes); the stream's first failure so far.
  Status wait(Stream& stream, std::uint64_t offset, std::uint64_t num_bytes);
  /// Where the furthest of the stream's jobs ends, 0 if there are none.
  [[nodiscard]] std::uint64_t pending_end(const Stream& stream) const;

 private:
  /// What devices ask of memory, at least; some want whole blocks.
  static constexpr std::size_t kLeastMemoryAlignment = 512;

  struct Job {
    Stream* stream = nullptr;
    std::uint64_t offset = 0;
    std::span<const std::byte> bytes;
  };
  struct FreeBounce {
    void operator()(std::byte* bytes) const;
  };
  void run(const std::stop_token& stop);
  Status write(const Job& job);
  /// Writes whole blocks; `done` counts what was written before the file system refused.
  Status write_blocks(const Job& blocks, std::size_t& done);
  [[nodiscard]] std::span<std::byte> bounce();

  std::unique_ptr<DirectCalls> calls_;
  std::unique_ptr<std::byte, FreeBounce> bounce_;  ///< the thread's
  mutable std::mutex mutex_;
  std::condition_variable_any posted_;
  std::condition_variable done_;
  std::deque<Job> jobs_;  ///< the first is under way
  std::jthread thread_;   ///< last: it uses all the others
};

/// The operating system's files, with large writes by `writer`.
[[nodiscard]] std::unique_ptr<FileSystem> make_posix_file_system(
    std::shared_ptr<DirectWriter> writer);

}  // namespace pecan
