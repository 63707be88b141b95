#include <pecan/core/file_system.hpp>

namespace pecan {

Status File::write_behind(std::uint64_t offset, std::span<const std::byte> bytes) {
  return write_at(offset, bytes);
}

void File::start_writeback(std::uint64_t /*offset*/, std::uint64_t /*num_bytes*/) {}

std::string parent_of(const std::string& path) {
  const std::size_t name_end = path.find_last_not_of('/');
  if (name_end == std::string::npos) return path.empty() ? "." : "/";
  const std::size_t slash = path.rfind('/', name_end);
  if (slash == std::string::npos) return ".";
  const std::size_t parent_end = path.find_last_not_of('/', slash);
  return parent_end == std::string::npos ? "/" : path.substr(0, parent_end + 1);
}

namespace {

Status write_and_sync(FileSystem& fs, const std::string& path, const std::string& text) {
  Result<std::unique_ptr<File>> file = fs.open(path, OpenMode::kCreate);
  if (!file.ok()) return file.status();
  if (Status status = file.value()->write_at(0, std::as_bytes(std::span(text))); !status.ok()) {
    return status;
  }
  return file.value()->sync();
}

}  // namespace

Result<std::string> read_text(FileSystem& fs, const std::string& path) {
  Result<std::unique_ptr<File>> file = fs.open(path, OpenMode::kRead);
  if (!file.ok()) return file.status();
  const Result<std::uint64_t> size = file.value()->size();
  if (!size.ok()) return size.status();
  std::string text(size.value(), '\0');
  const Result<std::size_t> count =
      file.value()->read_at(0, std::as_writable_bytes(std::span(text)));
  if (!count.ok()) return count.status();
  text.resize(count.value());
  return text;
}

bool ends_within_line(FileSystem& fs, const std::string& path) {
  const Result<std::unique_ptr<File>> file = fs.open(path, OpenMode::kRead);
  if (!file.ok()) return false;
  const Result<std::uint64_t> size = file.value()->size();
  if (!size.ok() || size.value() == 0) return false;
  char last = '\n';
  const auto byte = std::as_writable_bytes(std::span(&last, 1));
  const Result<std::size_t> count = file.value()->read_at(size.value() - 1, byte);
  return count.ok() && count.value() == 1 && last != '\n';
}

Status write_text_atomically(FileSystem& fs, const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  // The content is durable before its name is: a crash in between leaves the old file, never an
  // empty one.
  Status status = write_and_sync(fs, temporary, text);
  if (status.ok()) status = fs.rename(temporary, path);
  if (!status.ok()) {
    static_cast<void>(fs.remove_file(temporary));  // the first failure is the one to report
    return status;
  }
  // Without this a crash of the node may bring the old name back.
  return fs.sync_directory(parent_of(path));
}

}  // namespace pecan
