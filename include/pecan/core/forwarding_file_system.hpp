#pragma once
/// The base of file systems that change a few calls of another one.

#include <memory>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>

namespace pecan {

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
