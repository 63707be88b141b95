#pragma once
/// A file system that runs full or slow when a fault says so.

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>

namespace pecan::train {

/// Passes all calls to another file system, which outlives it; only writes into files change.
/// Thread-safe.
class FaultyDisk final : public FileSystem {
 public:
  explicit FaultyDisk(FileSystem& inner) : inner_(inner) {}
  /// From now on every write finds the disk full.
  void fill() { full_ = true; }
  /// From now on each write takes as long as at `bytes_per_s`; 0: as long as it takes.
  void slow_down(double bytes_per_s) { bytes_per_s_ = bytes_per_s; }
  /// Back to what the other file system does.
  void mend() {
    full_ = false;
    bytes_per_s_ = 0;
  }

  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) override;
  Status create_directories(const std::string& path) override {
    return inner_.create_directories(path);
  }
  Result<std::vector<DirEntry>> list(const std::string& path) override { return inner_.list(path); }
  [[nodiscard]] bool exists(const std::string& path) override { return inner_.exists(path); }
  Status rename(const std::string& from, const std::string& to) override {
    return inner_.rename(from, to);
  }
  Status remove_file(const std::string& path) override { return inner_.remove_file(path); }
  Status remove_all(const std::string& path) override { return inner_.remove_all(path); }
  Status sync_directory(const std::string& path) override { return inner_.sync_directory(path); }

 private:
  class FaultyFile;
  FileSystem& inner_;
  std::atomic<bool> full_ = false;
  std::atomic<double> bytes_per_s_ = 0;
};

}  // namespace pecan::train
