#include <string>

#include <fmt/format.h>

#include <pecan/core/text.hpp>

#include "support/catch.hpp"

namespace pecan {
namespace {

TEST_CASE("well-formed UTF-8 of every length passes", "[core]") {
  for (const char* text : {"",
                           "plain",
                           "\xC2\x80",
                           "\xDF\xBF",
                           "\xE0\xA0\x80",
                           "\xEF\xBF\xBF",
                           "\xF0\x90\x80\x80",
                           "\xF4\x8F\xBF\xBF",
                           "a\xE2\x80\x94z \xF0\x9F\x98\x80"}) {
    INFO(text);
    CHECK_FALSE(find_invalid_utf8(text));
  }
}

TEST_CASE("malformed UTF-8 is found at its first byte", "[core]") {
  for (const char* bad : {"\x80",
                          "\xBF",
                          "\xC0\xAF",
                          "\xC1\xBF",
                          "\xE0\x80\xAF",
                          "\xE0\x9F\xBF",
                          "\xED\xA0\x80",
                          "\xED\xBF\xBF",
                          "\xF0\x80\x80\xAF",
                          "\xF0\x8F\xBF\xBF",
                          "\xF4\x90\x80\x80",
                          "\xF5\x80\x80\x80",
                          "\xFE",
                          "\xFF",
                          "\xC2",
                          "\xE2\x80",
                          "\xF0\x9F\x98",
                          "\xC2z",
                          "\xE2\x80z"}) {
    CHECK(find_invalid_utf8(bad) == std::size_t{0});
    CHECK(find_invalid_utf8("ok\xC3\xA9" + std::string(bad)) == std::size_t{4});
  }
}

TEST_CASE("a long text is shown by its beginning", "[core]") {
  CHECK(shortened("short") == "short");
  CHECK(shortened(std::string(120, 'x')) == std::string(120, 'x'));
  CHECK(shortened(std::string(121, 'x')) ==
        fmt::format("{}... (121 bytes)", std::string(120, 'x')));
  std::string accents = "x";
  for (int i = 0; i < 100; ++i) accents += "\xC3\xA9";
  CHECK(shortened(accents) == fmt::format("{}... (201 bytes)", accents.substr(0, 119)));
}

TEST_CASE("nesting is counted outside of strings", "[core]") {
  CHECK_FALSE(nests_deeper("", 0));
  CHECK_FALSE(nests_deeper("[]", 1));
  CHECK(nests_deeper("[]", 0));
  CHECK(nests_deeper(R"({"a": [{}]})", 2));
  CHECK_FALSE(nests_deeper(R"({"a": [{}], "b": [{}]})", 3));
  CHECK_FALSE(nests_deeper(R"(["[[[", "\"[[[", "\\"])", 1));
  CHECK(nests_deeper(R"(["\\", [1]])", 1));
  CHECK(nests_deeper(std::string(1'000'000, '['), 64));
}

}  // namespace
}  // namespace pecan
