#include "data/output_file.hpp"

#include "data_support.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::data {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

TEST_CASE("a file has its name only once it is whole", "[data]") {
  const pecan::test::TempDir dir;
  const auto fs = make_posix_file_system();
  const std::string path = dir / "out";
  std::string content;
  {
    OutputFile file(*fs, path);
    for (int i = 0; i < 40; ++i) {  // beyond the buffer
      const std::string part(50'000, static_cast<char>('a' + i % 26));
      file.append(bytes_of(part));
      content += part;
    }
    CHECK_FALSE(fs->exists(path));
    file.commit();
  }
  CHECK(test::read_file(path) == content);
  CHECK(fs->list(dir.path()).value().size() == 1);
}

TEST_CASE("without commit nothing stays, and an older file is untouched", "[data]") {
  const pecan::test::TempDir dir;
  const auto fs = make_posix_file_system();
  test::write_file(dir / "out", "old");
  { OutputFile(*fs, dir / "out").append(bytes_of("new")); }
  CHECK(test::read_file(dir / "out") == "old");
  CHECK(fs->list(dir.path()).value().size() == 1);
}

TEST_CASE("a folder that is not there is a DataError with the path", "[data]") {
  const pecan::test::TempDir dir;
  const auto fs = make_posix_file_system();
  CHECK_THROWS_AS(OutputFile(*fs, dir / "no/out"), DataError);
  CHECK_THROWS_WITH(OutputFile(*fs, dir / "no/out"), Catch::Contains("no/out"));
}

TEST_CASE("the folder of a path", "[data]") {
  CHECK(folder_of("a/b/c") == "a/b");
  CHECK(folder_of("c") == ".");
  CHECK(folder_of("/c") == "/");
}

}  // namespace
}  // namespace pecan::data
