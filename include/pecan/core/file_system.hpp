#pragma once
/// The seam through which every byte of a checkpoint goes: Posix, memory (loses unsynced data on a
/// crash) and faulty.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <pecan/core/error.hpp>

namespace pecan {

/// An open file with positional access. Move-only by unique_ptr; the destructor closes without
/// syncing.
class File {
 public:
  File() = default;
  virtual ~File() = default;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  /// Reads up to bytes.size() at `offset`; returns the bytes read, fewer only at the end of the
  /// file.
  virtual Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> bytes) = 0;
  /// Writes all bytes at `offset`, extending the file; a short write is retried or a failure.
  virtual Status write_at(std::uint64_t offset, std::span<const std::byte> bytes) = 0;
  /// write_at() for much data that nobody reads soon: it may go round the page cache, and still be
  /// under way when this returns. `bytes` stay as they are until sync() has returned or the file is
  /// closed. Other calls see it as done; its failure is reported here or by any of them.
  virtual Status write_behind(std::uint64_t offset, std::span<const std::byte> bytes);
  virtual Status truncate(std::uint64_t size) = 0;
  [[nodiscard]] virtual Result<std::uint64_t> size() = 0;
  /// A hint that [offset, offset + num_bytes) (0 bytes: to the end) is complete and will be synced:
  /// the device may begin with it. Promises nothing, and does nothing where there is no such call.
  virtual void start_writeback(std::uint64_t offset, std::uint64_t num_bytes);
  /// fsync: content and size survive a crash of the node afterwards.
  virtual Status sync() = 0;
};

enum class OpenMode : std::uint8_t {
  kRead,
  kReadWrite,
  kCreate /*new or truncated*/,
  kCreateNew /*fails with kExists*/
};

struct DirEntry {
  std::string name;
  bool is_directory = false;
  bool operator==(const DirEntry&) const = default;
};

/// Paths are '/'-separated. Failures are Results with the path, the errno text and, where known,
/// what to try.
class FileSystem {
 public:
  FileSystem() = default;
  virtual ~FileSystem() = default;
  FileSystem(const FileSystem&) = delete;
  FileSystem& operator=(const FileSystem&) = delete;
  virtual Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) = 0;
  /// Creates the directory and its parents; success if it is there.
  virtual Status create_directories(const std::string& path) = 0;
  /// Sorted by name.
  virtual Result<std::vector<DirEntry>> list(const std::string& path) = 0;
  [[nodiscard]] virtual bool exists(const std::string& path) = 0;
  /// Atomic for files and for directories onto a name that is free; a file replaces a file.
  virtual Status rename(const std::string& from, const std::string& to) = 0;
  virtual Status remove_file(const std::string& path) = 0;
  /// The directory and all below it.
  virtual Status remove_all(const std::string& path) = 0;
  /// fsync of the directory: creations, renames and removals in it survive a crash afterwards.
  virtual Status sync_directory(const std::string& path) = 0;
};

/// The operating system's files.
[[nodiscard]] std::unique_ptr<FileSystem> make_posix_file_system();

/// What a write to `path` returns where no space is left.
[[nodiscard]] Status disk_full(const std::string& path);

/// The directory that holds `path`, with or without slashes at its end; "." for a bare name.
[[nodiscard]] std::string parent_of(const std::string& path);

/// Whole-file helpers over any FileSystem.
Result<std::string> read_text(FileSystem& fs, const std::string& path);
/// Writes to `path`.tmp, syncs, renames, syncs the parent: a crash leaves the old or the new
/// content.
Status write_text_atomically(FileSystem& fs, const std::string& path, const std::string& text);
/// Whether the last line of `path` has no end: a crash has cut it short, and what is appended would
/// become part of it. False for a file that is empty or cannot be read.
[[nodiscard]] bool ends_within_line(FileSystem& fs, const std::string& path);

}  // namespace pecan
