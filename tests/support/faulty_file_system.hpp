#pragma once
/// A file system that fails where a test says so.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>

namespace pecan::test {

enum class Call : std::uint8_t {
  kOpen,
  kRead,
  kWrite,
  kTruncate,
  kSize,
  kSync,
  kCreateDirectories,
  kList,
  kRename,
  kRemove,
  kSyncDirectory
};

enum class Effect : std::uint8_t {
  kFail,     ///< the call does nothing and fails
  kHalf,     ///< a write writes the first half of its bytes and fails
  kFlipBit,  ///< a read returns, or a write stores, bytes with one bit flipped, and succeeds
};

/// One planned fault.
struct Fault {
  Call call = Call::kWrite;
  StatusCode code = StatusCode::kIo;
  int nth = 1;                ///< matching calls from now, 1: the next one
  bool repeats = false;       ///< all later matching calls as well
  std::string path_contains;  ///< empty: any path
  Effect effect = Effect::kFail;
  std::size_t bit = 0;  ///< of the bytes read or written, modulo their number
};

/// Passes all calls to another file system, which must outlive it, but for the injected faults.
/// Thread-safe.
class FaultyFileSystem final : public FileSystem {
 public:
  explicit FaultyFileSystem(FileSystem& inner) : inner_(inner) {}

  void inject(Fault fault);
  void clear();
  /// Faults that have struck so far.
  [[nodiscard]] int num_struck() const;

  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) override;
  Status create_directories(const std::string& path) override;
  Result<std::vector<DirEntry>> list(const std::string& path) override;
  bool exists(const std::string& path) override { return inner_.exists(path); }
  Status rename(const std::string& from, const std::string& to) override;
  Status remove_file(const std::string& path) override;
  Status remove_all(const std::string& path) override;
  Status sync_directory(const std::string& path) override;

 private:
  class FaultyFile;
  /// The fault that strikes this call, if any.
  std::optional<Fault> strike(Call call, const std::string& path);
  /// Failure of a call that has no data.
  Status check(Call call, const std::string& path);

  FileSystem& inner_;
  mutable std::mutex mutex_;
  std::vector<Fault> faults_;
  int num_struck_ = 0;
};

/// Flips one bit (of byte bit / 8) of a stored file. Throws InternalError if that fails.
void flip_bit(FileSystem& fs, const std::string& path, std::uint64_t bit);

}  // namespace pecan::test
