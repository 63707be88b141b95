#include "data/mapped_file.hpp"

#include <pecan/core/error.hpp>

#include "data_support.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::data {
namespace {

TEST_CASE("a mapped file shows its bytes, aligned or not", "[data]") {
  const pecan::test::TempDir dir;
  test::write_file(dir / "f", std::string("x\x01\x00\x00\x00yz", 7));
  const MappedFile file(dir / "f");
  CHECK(file.size() == 7);
  CHECK(file.load<std::uint32_t>(1) == 1);
  CHECK(file.text().substr(5) == "yz");
}

TEST_CASE("an empty file maps to nothing; what is no file is refused", "[data]") {
  const pecan::test::TempDir dir;
  test::write_file(dir / "empty", "");
  CHECK(MappedFile(dir / "empty").text().empty());
  CHECK_THROWS_WITH(MappedFile(dir / "absent"),
                    Catch::Contains("No such file") && Catch::Contains("absent"));
  CHECK_THROWS_AS(MappedFile(dir / "absent"), DataError);
  CHECK_THROWS_WITH(MappedFile(dir.path()), Catch::Contains("not a regular file"));
}

}  // namespace
}  // namespace pecan::data
