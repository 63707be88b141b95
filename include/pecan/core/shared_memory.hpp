#pragma once
/// Memory that outlives the process: a mapped file in a memory directory (tmpfs).

#include <cstddef>
#include <span>
#include <string>

#include <pecan/core/error.hpp>

namespace pecan {

/// A file in memory, mapped by the process that made it. While the object lives, a lock on the file
/// is its sign of life; the lock ends with the process, whatever ends that, and is seen from every
/// pid namespace. Move-only; the destructor unmaps and leaves the file.
///
/// Others read the file with plain reads: a mapping of theirs would raise SIGBUS when the owner
/// shrinks it.
class SharedMemory {
 public:
  SharedMemory() = default;
  /// Makes the file new, zeroed, for this user alone, with all its memory reserved, so that no
  /// later access can fail. A file of this name is removed first: who still has it open keeps the
  /// old content. kNoSpace says wanted and free bytes; kPermission and kNotFound are about the
  /// directory.
  static Result<SharedMemory> create(const std::string& path, std::size_t num_bytes);
  /// Takes over a file that an earlier process has left, with its content. kNotFound if there is
  /// none, kExists if a process still holds it.
  static Result<SharedMemory> adopt(const std::string& path);
  ~SharedMemory();
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() const { return {data_, size_}; }
  [[nodiscard]] const std::string& path() const { return path_; }
  /// Gives back what lies behind the first `num_bytes`, at least 1; the rest stays where it is.
  Status shrink(std::size_t num_bytes);
  /// Removes the file's name; the memory is freed with the last object or process that has it.
  Status remove();

  /// Whether a process holds the file as its SharedMemory. Fails where this user may not ask.
  static Result<bool> is_in_use(const std::string& path);
  /// Removes the file unless a process holds it; true if it is gone.
  static Result<bool> remove_unless_in_use(const std::string& path);

 private:
  int fd_ = -1;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::string path_;
};

}  // namespace pecan
