#include "support/faulty_file_system.hpp"

#include <utility>

namespace pecan::test {
namespace {

Status failure(const Fault& fault, const std::string& path) {
  return Status::failure(fault.code, fmt::format("injected fault at {}", path));
}

void flip(std::span<std::byte> bytes, std::size_t bit) {
  if (bytes.empty()) return;
  bytes[bit / 8 % bytes.size()] ^= std::byte(1U << (bit % 8));
}

}  // namespace

class FaultyFileSystem::FaultyFile final : public File {
 public:
  FaultyFile(FaultyFileSystem& fs, std::unique_ptr<File> inner, std::string path)
      : fs_(fs), inner_(std::move(inner)), path_(std::move(path)) {}

  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> bytes) override {
    const std::optional<Fault> fault = fs_.strike(Call::kRead, path_);
    if (fault && fault->effect != Effect::kFlipBit) return failure(*fault, path_);
    Result<std::size_t> count = inner_->read_at(offset, bytes);
    if (fault && count.ok()) flip(bytes.first(count.value()), fault->bit);
    return count;
  }

  Status write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    return write(offset, bytes, [&] { return inner_->write_at(offset, bytes); });
  }

  Status write_behind(std::uint64_t offset, std::span<const std::byte> bytes) override {
    return write(offset, bytes, [&] { return inner_->write_behind(offset, bytes); });
  }

  Status truncate(std::uint64_t size) override {
    Status status = fs_.check(Call::kTruncate, path_);
    return status.ok() ? inner_->truncate(size) : status;
  }

  Result<std::uint64_t> size() override {
    Status status = fs_.check(Call::kSize, path_);
    if (!status.ok()) return status;
    return inner_->size();
  }

  Status sync() override {
    Status status = fs_.check(Call::kSync, path_);
    return status.ok() ? inner_->sync() : status;
  }

 private:
  template <typename Good>
  Status write(std::uint64_t offset, std::span<const std::byte> bytes, Good good) {
    const std::optional<Fault> fault = fs_.strike(Call::kWrite, path_);
    if (!fault) return good();
    if (fault->effect == Effect::kFlipBit) {
      std::vector<std::byte> flipped(bytes.begin(), bytes.end());
      flip(flipped, fault->bit);
      return inner_->write_at(offset, flipped);
    }
    if (fault->effect == Effect::kHalf) {
      static_cast<void>(inner_->write_at(offset, bytes.first(bytes.size() / 2)));
    }
    return failure(*fault, path_);
  }

  FaultyFileSystem& fs_;
  std::unique_ptr<File> inner_;
  std::string path_;
};

void FaultyFileSystem::inject(Fault fault) {
  const std::lock_guard lock(mutex_);
  faults_.push_back(std::move(fault));
}

void FaultyFileSystem::clear() {
  const std::lock_guard lock(mutex_);
  faults_.clear();
}

int FaultyFileSystem::num_struck() const {
  const std::lock_guard lock(mutex_);
  return num_struck_;
}

std::optional<Fault> FaultyFileSystem::strike(Call call, const std::string& path) {
  const std::lock_guard lock(mutex_);
  std::optional<Fault> struck;
  for (Fault& fault : faults_) {
    if (fault.call != call || path.find(fault.path_contains) == std::string::npos) continue;
    --fault.nth;
    if (!struck && (fault.nth == 0 || (fault.nth < 0 && fault.repeats))) struck = fault;
  }
  if (struck) ++num_struck_;
  return struck;
}

Status FaultyFileSystem::check(Call call, const std::string& path) {
  const std::optional<Fault> fault = strike(call, path);
  return fault ? failure(*fault, path) : Status{};
}

Result<std::unique_ptr<File>> FaultyFileSystem::open(const std::string& path, OpenMode mode) {
  if (Status status = check(Call::kOpen, path); !status.ok()) return status;
  Result<std::unique_ptr<File>> inner = inner_.open(path, mode);
  if (!inner.ok()) return inner.status();
  return std::unique_ptr<File>(std::make_unique<FaultyFile>(*this, std::move(inner).value(), path));
}

Status FaultyFileSystem::create_directories(const std::string& path) {
  Status status = check(Call::kCreateDirectories, path);
  return status.ok() ? inner_.create_directories(path) : status;
}

Result<std::vector<DirEntry>> FaultyFileSystem::list(const std::string& path) {
  if (Status status = check(Call::kList, path); !status.ok()) return status;
  return inner_.list(path);
}

Status FaultyFileSystem::rename(const std::string& from, const std::string& to) {
  Status status = check(Call::kRename, from);
  return status.ok() ? inner_.rename(from, to) : status;
}

Status FaultyFileSystem::remove_file(const std::string& path) {
  Status status = check(Call::kRemove, path);
  return status.ok() ? inner_.remove_file(path) : status;
}

Status FaultyFileSystem::remove_all(const std::string& path) {
  Status status = check(Call::kRemove, path);
  return status.ok() ? inner_.remove_all(path) : status;
}

Status FaultyFileSystem::sync_directory(const std::string& path) {
  Status status = check(Call::kSyncDirectory, path);
  return status.ok() ? inner_.sync_directory(path) : status;
}

void flip_bit(FileSystem& fs, const std::string& path, std::uint64_t bit) {
  Result<std::unique_ptr<File>> file = fs.open(path, OpenMode::kReadWrite);
  PECAN_VALIDATE(file.ok(), InternalError, "{}", file.status().message);
  std::byte byte{};
  const Result<std::size_t> count = file.value()->read_at(bit / 8, {&byte, 1});
  PECAN_VALIDATE(
      count.ok() && count.value() == 1, InternalError, "{} has no byte {}", path, bit / 8);
  byte ^= std::byte(1U << (bit % 8));
  const Status status = file.value()->write_at(bit / 8, {&byte, 1});
  PECAN_VALIDATE(status.ok(), InternalError, "{}", status.message);
}

}  // namespace pecan::test
