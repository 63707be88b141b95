#pragma once
/// The bases of files and file systems that change a few calls of another one.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pecan/core/file_system.hpp>

namespace pecan {

/// Passes all calls to another file, which it owns.
class ForwardingFile : public File {
 public:
  explicit ForwardingFile(std::unique_ptr<File> inner) : inner_(std::move(inner)) {}
  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> bytes) override {
    return inner_->read_at(offset, bytes);
  }
  Status write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    return inner_->write_at(offset, bytes);
  }
  Status write_behind(std::uint64_t offset, std::span<const std::byte> bytes) override {
    return inner_->write_behind(offset, bytes);
  }
  Status truncate(std::uint64_t size) override { return inner_->truncate(size); }
  [[nodiscard]] Result<std::uint64_t> size() override { return inner_->size(); }
  void start_writeback(std::uint64_t offset, std::uint64_t num_bytes) override {
    inner_->start_writeback(offset, num_bytes);
  }
  Status sync() override { return inner_->sync(); }

 protected:
  [[nodiscard]] File& inner() const { return *inner_; }

 private:
  std::unique_ptr<File> inner_;
};

/// Passes all calls to another file system, which outlives it.
class ForwardingFileSystem : public FileSystem {
 public:
  explicit ForwardingFileSystem(FileSystem& inner) : inner_(inner) {}
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) override {
    return inner_.open(path, mode);
  }
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

 protected:
  [[nodiscard]] FileSystem& inner() const { return inner_; }

 private:
  FileSystem& inner_;
};

}  // namespace pecan
