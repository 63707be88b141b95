#pragma once
/// Shared by the fuzz targets: an oracle that says what it saw, and files that live in memory.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/file_system.hpp>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace pecan::fuzz {

/// Ends the program where the code under test broke its word; libFuzzer then keeps the input.
inline void expect(bool condition, std::string_view broken_promise) {
  if (condition) return;
  std::fprintf(stderr,
               "broken promise: %.*s\n",
               static_cast<int>(broken_promise.size()),
               broken_promise.data());
  std::abort();
}

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// One file in memory. The tests' MemoryFileSystem journals every write, at a tenth of the speed.
class BytesFile final : public File {
 public:
  explicit BytesFile(std::vector<std::byte>& bytes) : bytes_(bytes) {}
  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> out) override {
    if (out.empty() || offset >= bytes_.size()) return std::size_t(0);
    const std::size_t count = std::min<std::size_t>(out.size(), bytes_.size() - offset);
    std::memcpy(out.data(), bytes_.data() + offset, count);
    return count;
  }
  Status write_at(std::uint64_t offset, std::span<const std::byte> in) override {
    if (bytes_.size() < offset + in.size()) bytes_.resize(offset + in.size());
    std::ranges::copy(in, bytes_.begin() + std::ptrdiff_t(offset));
    return {};
  }
  Status truncate(std::uint64_t size) override {
    bytes_.resize(size);
    return {};
  }
  Result<std::uint64_t> size() override { return std::uint64_t(bytes_.size()); }
  Status sync() override { return {}; }

 private:
  std::vector<std::byte>& bytes_;
};

/// A file system whose every path is the same file.
class OneFile final : public FileSystem {
 public:
  std::vector<std::byte> bytes;

  Result<std::unique_ptr<File>> open(const std::string& /*path*/, OpenMode mode) override {
    if (mode == OpenMode::kCreate || mode == OpenMode::kCreateNew) bytes.clear();
    return std::unique_ptr<File>(std::make_unique<BytesFile>(bytes));
  }
  Status create_directories(const std::string& /*path*/) override { return {}; }
  Result<std::vector<DirEntry>> list(const std::string& /*path*/) override {
    return std::vector<DirEntry>{};
  }
  bool exists(const std::string& /*path*/) override { return true; }
  Status rename(const std::string& /*from*/, const std::string& /*to*/) override { return {}; }
  Status remove_file(const std::string& /*path*/) override { return {}; }
  Status remove_all(const std::string& /*path*/) override { return {}; }
  Status sync_directory(const std::string& /*path*/) override { return {}; }
};

}  // namespace pecan::fuzz
