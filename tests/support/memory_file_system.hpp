#pragma once
/// A file system in memory that forgets on a crash what was not synced.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>

namespace pecan::test {

/// Durable are: a file's content and size as of its last sync(), and a directory's names (created,
/// renamed, removed) as of its last sync_directory(). Mutating operations (each write, truncate,
/// sync, directory sync, and each single name created, renamed or removed) are counted and can be
/// stopped at any of them. Thread-safe. Files opened before a crash or a restart are dead after it.
class MemoryFileSystem final : public FileSystem {
 public:
  MemoryFileSystem();
  ~MemoryFileSystem() override;

  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) override;
  Status create_directories(const std::string& path) override;
  Result<std::vector<DirEntry>> list(const std::string& path) override;
  bool exists(const std::string& path) override;
  Status rename(const std::string& from, const std::string& to) override;
  Status remove_file(const std::string& path) override;
  Status remove_all(const std::string& path) override;
  Status sync_directory(const std::string& path) override;

  /// Mutating operations so far, stopped ones included.
  [[nodiscard]] std::size_t num_mutations() const;
  /// As if the process died: the n-th mutating operation from now (1: the next) and all later ones
  /// fail with kIo and do nothing, except that the n-th, if it is a write, leaves half of its
  /// bytes.
  void stop_at(std::size_t n);
  /// A new process: operations work again, and all that was written is there.
  void restart();
  /// The node went down: what was not synced is lost; then as restart().
  void crash();
  /// The same, but a pseudo-random subset of the unsynced writes (some torn) and names was
  /// persisted, as file systems may.
  void crash(std::uint64_t seed);

 private:
  struct State;
  class OpenFile;
  std::unique_ptr<State> state_;
};

}  // namespace pecan::test
