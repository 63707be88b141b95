#pragma once
/// A file that is written under another name first, so that what has its name is whole.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>

namespace pecan::data {

/// Throws DataError if `status` is a failure.
void require(const Status& status);
/// The folder of a path.
[[nodiscard]] std::string folder_of(const std::string& path);

/// Appends to PATH.partial. Without commit() nothing stays.
class OutputFile {
 public:
  OutputFile(FileSystem& fs, std::string path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void append(std::span<const std::byte> bytes);
  /// Durable content, then the final name.
  void commit();

 private:
  void flush();
  FileSystem& fs_;
  std::string path_;
  std::unique_ptr<File> file_;
  std::vector<std::byte> buffer_;
  std::uint64_t written_ = 0;
};

}  // namespace pecan::data
