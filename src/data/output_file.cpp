#include "data/output_file.hpp"

#include <utility>

#include <pecan/core/log.hpp>

namespace pecan::data {
namespace {
constexpr std::size_t kBufferBytes = 1 << 20;
}

void require(const Status& status) {
  if (!status.ok()) throw DataError(status.message);
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

OutputFile::OutputFile(FileSystem& fs, std::string path) : fs_(fs), path_(std::move(path)) {
  Result<std::unique_ptr<File>> file = fs_.open(path_ + ".partial", OpenMode::kCreate);
  require(file.status());
  file_ = std::move(file).value();
}

OutputFile::~OutputFile() {
  if (file_ == nullptr) return;
  file_.reset();
  if (const Status status = fs_.remove_file(path_ + ".partial"); !status.ok()) {
    PECAN_LOG(kWarn, "[data] {}", status.message);
  }
}

void OutputFile::append(std::span<const std::byte> bytes) {
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  if (buffer_.size() >= kBufferBytes) flush();
}

void OutputFile::flush() {
  require(file_->write_at(written_, buffer_));
  written_ += buffer_.size();
  buffer_.clear();
}

void OutputFile::commit() {
  flush();
  // Content before name: a crash of the node must not leave a file that has its name but not its
  // bytes.
  require(file_->sync());
  require(fs_.rename(path_ + ".partial", path_));
  file_.reset();
  require(fs_.sync_directory(folder_of(path_)));
}

}  // namespace pecan::data
