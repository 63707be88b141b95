#include "train/faulty_disk.hpp"

#include <chrono>
#include <thread>
#include <utility>

namespace pecan::train {

class FaultyDisk::FaultyFile final : public ForwardingFile {
 public:
  FaultyFile(FaultyDisk& disk, std::unique_ptr<File> inner, std::string path)
      : ForwardingFile(std::move(inner)), disk_(disk), path_(std::move(path)) {}
  Status write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    const Status status = suffer(bytes.size());
    return status.ok() ? inner().write_at(offset, bytes) : status;
  }
  Status write_behind(std::uint64_t offset, std::span<const std::byte> bytes) override {
    const Status status = suffer(bytes.size());
    return status.ok() ? inner().write_behind(offset, bytes) : status;
  }

 private:
  /// What the fault does to a write of `num_bytes`.
  Status suffer(std::size_t num_bytes) {
    if (disk_.full_) return disk_full(path_);
    const double rate = disk_.bytes_per_s_;
    if (rate > 0)
      std::this_thread::sleep_for(std::chrono::duration<double>(double(num_bytes) / rate));
    return {};
  }

  FaultyDisk& disk_;
  std::string path_;
};

Result<std::unique_ptr<File>> FaultyDisk::open(const std::string& path, OpenMode mode) {
  Result<std::unique_ptr<File>> file = inner().open(path, mode);
  if (!file.ok() || mode == OpenMode::kRead) return file;
  return std::unique_ptr<File>(std::make_unique<FaultyFile>(*this, std::move(file).value(), path));
}

}  // namespace pecan::train
