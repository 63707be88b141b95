#include "train/faulty_disk.hpp"

#include <chrono>
#include <thread>
#include <utility>

namespace pecan::train {

class FaultyDisk::FaultyFile final : public File {
 public:
  FaultyFile(FaultyDisk& disk, std::unique_ptr<File> inner, std::string path)
      : disk_(disk), inner_(std::move(inner)), path_(std::move(path)) {}
  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> bytes) override {
    return inner_->read_at(offset, bytes);
  }
  Status write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    const Status status = suffer(bytes.size());
    return status.ok() ? inner_->write_at(offset, bytes) : status;
  }
  Status write_behind(std::uint64_t offset, std::span<const std::byte> bytes) override {
    const Status status = suffer(bytes.size());
    return status.ok() ? inner_->write_behind(offset, bytes) : status;
  }
  Status truncate(std::uint64_t size) override { return inner_->truncate(size); }
  Result<std::uint64_t> size() override { return inner_->size(); }
  void start_writeback(std::uint64_t offset, std::uint64_t num_bytes) override {
    inner_->start_writeback(offset, num_bytes);
  }
  Status sync() override { return inner_->sync(); }

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
  std::unique_ptr<File> inner_;
  std::string path_;
};

Result<std::unique_ptr<File>> FaultyDisk::open(const std::string& path, OpenMode mode) {
  Result<std::unique_ptr<File>> file = inner().open(path, mode);
  if (!file.ok() || mode == OpenMode::kRead) return file;
  return std::unique_ptr<File>(std::make_unique<FaultyFile>(*this, std::move(file).value(), path));
}

}  // namespace pecan::train
