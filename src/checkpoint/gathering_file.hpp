#pragma once
/// A new file whose small writes wait in memory until it is synced.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <pecan/core/file_system.hpp>

namespace pecan::checkpoint {

/// What write_at() is given stays in memory until sync(), which writes each contiguous run of it at
/// once; what write_behind() is given goes on to the file. So metadata neither waits for large
/// writes that are under way nor comes between them. After a failed sync() the file is bad; closed
/// without sync(), it lacks what was gathered.
class GatheringFile final : public File {
 public:
  /// `inner` is empty.
  explicit GatheringFile(std::unique_ptr<File> inner) : inner_(std::move(inner)) {}
  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> bytes) override;
  Status write_at(std::uint64_t offset, std::span<const std::byte> bytes) override;
  Status write_behind(std::uint64_t offset, std::span<const std::byte> bytes) override;
  Status truncate(std::uint64_t size) override;
  Result<std::uint64_t> size() override { return size_; }
  void start_writeback(std::uint64_t offset, std::uint64_t num_bytes) override {
    inner_->start_writeback(offset, num_bytes);
  }
  Status sync() override;

 private:
  /// Drops what is gathered of [begin, end).
  void forget(std::uint64_t begin, std::uint64_t end);

  std::unique_ptr<File> inner_;
  std::uint64_t size_ = 0;
  bool resized_ = false;
  std::map<std::uint64_t, std::vector<std::byte>> runs_;  ///< by offset; none touches another
};

}  // namespace pecan::checkpoint
