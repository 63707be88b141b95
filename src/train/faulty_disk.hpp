#pragma once
/// A file system that runs full or slow when a fault says so.

#include <atomic>
#include <memory>
#include <string>

#include <pecan/core/forwarding_file_system.hpp>

namespace pecan::train {

/// Passes all calls to another file system, which outlives it; only writes into files change.
/// Thread-safe.
class FaultyDisk final : public ForwardingFileSystem {
 public:
  using ForwardingFileSystem::ForwardingFileSystem;
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

 private:
  class FaultyFile;
  std::atomic<bool> full_ = false;
  std::atomic<double> bytes_per_s_ = 0;
};

}  // namespace pecan::train
