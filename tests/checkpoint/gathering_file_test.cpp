#include "checkpoint/gathering_file.hpp"

#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/faulty_file_system.hpp"
#include "support/memory_file_system.hpp"

namespace pecan::checkpoint {
namespace {

using Bytes = std::vector<std::byte>;

std::string stored(FileSystem& fs) {
  return read_text(fs, "/f").value();
}

Status put(File& file, std::uint64_t offset, const std::string& text) {
  return file.write_at(offset, std::as_bytes(std::span(text)));
}

std::string get(File& file, std::uint64_t offset, std::size_t num_bytes) {
  std::string text(num_bytes, '#');
  text.resize(file.read_at(offset, std::as_writable_bytes(std::span(text))).value());
  return text;
}

TEST_CASE("a gathering file reads like any other, and is like any other once synced",
          "[gathering_file]") {
  std::uint32_t random = 1;
  const auto draw = [&](std::uint32_t below) {
    random = random * 1664525 + 1013904223;
    return (random >> 8) % below;
  };
  for (int round = 0; round < 300; ++round) {
    test::MemoryFileSystem fs;
    GatheringFile file(fs.open("/f", OpenMode::kCreateNew).value());
    const auto plain = fs.open("/plain", OpenMode::kCreateNew).value();
    for (int step = 0; step < 30; ++step) {
      const std::uint64_t offset = draw(60);
      const Bytes bytes(1 + draw(12), std::byte(step + 1));
      switch (draw(8)) {
        case 0: {
          REQUIRE(file.truncate(offset).ok());
          REQUIRE(plain->truncate(offset).ok());
          break;
        }
        case 1:
        case 2: {
          REQUIRE(file.write_behind(offset, bytes).ok());
          REQUIRE(plain->write_at(offset, bytes).ok());
          break;
        }
        default: {
          REQUIRE(file.write_at(offset, bytes).ok());
          REQUIRE(plain->write_at(offset, bytes).ok());
        }
      }
      REQUIRE(file.size().value() == plain->size().value());
      const std::uint64_t from = draw(70);
      REQUIRE(get(file, from, 20) == get(*plain, from, 20));
      if (draw(15) == 0) REQUIRE(file.sync().ok());
    }
    REQUIRE(file.sync().ok());
    REQUIRE(stored(fs) == read_text(fs, "/plain").value());
  }
}

TEST_CASE("what is gathered is written by sync alone, each run at once", "[gathering_file]") {
  test::MemoryFileSystem fs;
  GatheringFile file(fs.open("/f", OpenMode::kCreateNew).value());
  const std::size_t before = fs.num_mutations();
  REQUIRE(put(file, 0, "ab").ok());
  REQUIRE(put(file, 4, "ef").ok());
  REQUIRE(put(file, 2, "cd").ok());
  REQUIRE(put(file, 9, "j").ok());
  CHECK(fs.num_mutations() == before);
  CHECK(get(file, 0, 20) == std::string("abcdef\0\0\0j", 10));
  REQUIRE(file.sync().ok());
  CHECK(fs.num_mutations() == before + 3);  // two runs and the sync
  CHECK(stored(fs) == std::string("abcdef\0\0\0j", 10));
}

TEST_CASE("a failed write of what was gathered fails the sync", "[gathering_file]") {
  test::MemoryFileSystem inner;
  test::FaultyFileSystem fs(inner);
  GatheringFile file(fs.open("/f", OpenMode::kCreateNew).value());
  REQUIRE(put(file, 0, "ab").ok());
  REQUIRE(put(file, 5, "cd").ok());
  fs.inject({.call = test::Call::kWrite, .code = StatusCode::kNoSpace, .nth = 2});
  CHECK(file.sync().code == StatusCode::kNoSpace);
  fs.inject({.call = test::Call::kSync, .code = StatusCode::kIo});
  CHECK(file.sync().code == StatusCode::kIo);
}

}  // namespace
}  // namespace pecan::checkpoint
