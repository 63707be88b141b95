#include <string>

#include <pecan/core/error.hpp>
#include <pecan/core/hash.hpp>

#include "support/catch.hpp"

using namespace pecan;

TEST_CASE("XXH3 has the published values", "[core]") {
  // Published with the algorithm: the empty input, seed 0.
  CHECK(to_hex(xxh3(std::string_view{})) == "2d06800538d394c2");
}

TEST_CASE("a streamed checksum equals that of the whole, for every cut", "[core]") {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += char('a' + i % 23);
  const auto bytes = std::as_bytes(std::span<const char>(text));
  for (const std::size_t cut :
       {std::size_t{0}, std::size_t{1}, std::size_t{255}, std::size_t{256}, text.size()}) {
    Xxh3Stream stream;
    stream.update(bytes.first(cut));
    stream.update(bytes.subspan(cut));
    CHECK(stream.digest() == xxh3(text));
  }
}

TEST_CASE("hexadecimal digits round-trip and anything else is corrupt", "[core]") {
  for (const std::uint64_t value : {std::uint64_t{0}, std::uint64_t{1}, ~std::uint64_t{0}}) {
    CHECK(from_hex(to_hex(value)) == value);
  }
  for (const char* bad : {"", "123", "000000000000000G", "000000000000000A", "00000000000000000"}) {
    CHECK_THROWS_AS(from_hex(bad), CorruptionError);
  }
}
