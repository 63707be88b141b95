#include "checkpoint/seal.hpp"

#include <array>

#include <pecan/core/hash.hpp>

#include "support/catch.hpp"
#include "support/faulty_file_system.hpp"
#include "support/memory_file_system.hpp"
#include "support/support.hpp"

namespace pecan::checkpoint {
namespace {

/// A file of 40 bytes whose bytes 10..19 and 30..32 are data.
std::unique_ptr<File> sealed_file(FileSystem& fs) {
  auto file = fs.open("/s", OpenMode::kCreate).value();
  const std::string text = "0123456789abcdefghij0123456789abc3456789";
  REQUIRE(file->write_at(0, std::as_bytes(std::span(text))).ok());
  REQUIRE(append_seal(*file, std::array<DataRange, 2>{{{10, 10}, {30, 3}}}).ok());
  return file;
}

TEST_CASE("a seal gives back the size of what it seals", "[seal]") {
  test::MemoryFileSystem fs;
  const auto file = sealed_file(fs);
  CHECK(check_seal(*file, "/s").value() == 40);

  const auto empty = fs.open("/empty", OpenMode::kCreate).value();
  REQUIRE(append_seal(*empty, {}).ok());
  CHECK(empty->size().value() == 24);
  CHECK(check_seal(*empty, "/empty").value() == 0);
}

TEST_CASE("a seal is the documented bytes", "[seal]") {
  test::MemoryFileSystem fs;
  const auto file = sealed_file(fs);
  const std::array<std::uint64_t, 5> table{10, 10, 30, 3, 2};
  std::string covered(reinterpret_cast<const char*>(table.data()), 32);
  covered += "012345678901234567893456789";
  std::string expected(reinterpret_cast<const char*>(table.data()), 40);
  const std::uint64_t hash = xxh3(covered);
  expected.append(reinterpret_cast<const char*>(&hash), 8);
  expected += "PcnSeal1";
  CHECK((read_text(fs, "/s").value().substr(40) == expected));
}

TEST_CASE("a seal sees every bit but those of data", "[seal]") {
  test::MemoryFileSystem fs;
  const auto file = sealed_file(fs);
  const std::uint64_t size = file->size().value();
  int wrong = 0;
  for (std::uint64_t bit = 0; bit < 8 * size; ++bit) {
    const std::uint64_t byte = bit / 8;
    const bool is_data = (byte >= 10 && byte < 20) || (byte >= 30 && byte < 33);
    test::flip_bit(fs, "/s", bit);
    wrong += check_seal(*file, "/s").ok() == is_data ? 0 : 1;
    test::flip_bit(fs, "/s", bit);
  }
  CHECK(wrong == 0);
  for (std::uint64_t cut = size; cut-- > 0;) {
    REQUIRE(file->truncate(cut).ok());
    wrong += check_seal(*file, "/s").status().code == StatusCode::kCorrupt ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("a seal that cannot be written or read is no corruption", "[seal]") {
  test::MemoryFileSystem inner;
  test::FaultyFileSystem fs(inner);
  const auto file = sealed_file(fs);
  for (const test::Call call : {test::Call::kRead, test::Call::kSize, test::Call::kWrite}) {
    fs.inject({.call = call, .code = StatusCode::kPermission});
    CHECK((call == test::Call::kWrite ||
           check_seal(*file, "/s").status().code == StatusCode::kPermission));
    fs.clear();
    fs.inject({.call = call, .code = StatusCode::kNoSpace});
    CHECK(append_seal(*file, {}).code == StatusCode::kNoSpace);
    fs.clear();
  }
}

}  // namespace
}  // namespace pecan::checkpoint
