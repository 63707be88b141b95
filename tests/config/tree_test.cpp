#include "config/tree.hpp"

#include <cstdlib>

#include <pecan/core/error.hpp>

#include "support/catch.hpp"

namespace pecan::config::detail {
namespace {

std::string refusal(const std::string& yaml) {
  try {
    (void)parse_tree(yaml, "run.yaml");
    return "";
  } catch (const ConfigError& e) {
    return e.what();
  }
}

TEST_CASE("a tree knows the line of every key", "[config]") {
  const Node tree = parse_tree("a: 1\nb:\n  c: x\n  d: [1, 2]\n", "run.yaml");
  CHECK(tree.find("a")->where == "run.yaml:1");
  CHECK(tree.find("b")->find("c")->where == "run.yaml:3");
  CHECK(tree.find("b")->find("c")->scalar == "x");
  CHECK(tree.find("b")->find("d")->items.size() == 2);
  CHECK(tree.find("z") == nullptr);
}

TEST_CASE("environment variables are replaced in values", "[config]") {
  setenv("PECAN_TEST_DIR", "/data ${NOT_AGAIN}", 1);
  unsetenv("PECAN_TEST_UNSET");
  CHECK(parse_tree("a: ${PECAN_TEST_DIR}/x", "f").find("a")->scalar == "/data ${NOT_AGAIN}/x");
  CHECK(parse_tree("a: $${PECAN_TEST_DIR}", "f").find("a")->scalar == "${PECAN_TEST_DIR}");
  CHECK(parse_tree("a: $5", "f").find("a")->scalar == "$5");
  CHECK_THAT(refusal("b: 1\na: ${PECAN_TEST_UNSET}"),
             Catch::Contains("run.yaml:2: environment variable PECAN_TEST_UNSET is not set"));
  CHECK_THAT(refusal("a: \"${}\""), Catch::Contains("is not an environment variable"));
  CHECK_THAT(refusal("a: \"${OPEN\""), Catch::Contains("is not an environment variable"));
}

TEST_CASE("malformed YAML is refused with file, line and column", "[config]") {
  CHECK_THAT(refusal("a: 1\nb: [1, 2\n"), Catch::Contains("run.yaml:2:1: malformed YAML: "));
  CHECK_THAT(refusal("a: 1\n  b: 2\n"), Catch::Contains("run.yaml:2:4: malformed YAML: "));
  CHECK_THAT(refusal("a: \"open\n"), Catch::Contains("malformed YAML"));
  CHECK_THAT(refusal("a: *nowhere\n"), Catch::Contains("malformed YAML"));
  CHECK_THAT(refusal("a:\n\tb: 1\n"), Catch::Contains("malformed YAML"));
}

TEST_CASE("what YAML allows but a configuration cannot mean is refused", "[config]") {
  CHECK_THAT(refusal("a: 1\nb: 2\na: 3\n"),
             Catch::Contains(
                 "run.yaml:3: key a is given twice in the same section (first at run.yaml:1)"));
  CHECK_THAT(refusal("- a\n- b\n"),
             Catch::Contains("run.yaml:1: the configuration is not a map of sections"));
  CHECK_THAT(refusal("just words"), Catch::Contains("not a map of sections"));
  CHECK_THAT(refusal("a: 1\n---\nb: 2\n"), Catch::Contains("holds 2 YAML documents"));
  CHECK_THAT(refusal("? [a, b]\n: 1\n"), Catch::Contains("a key is a list or a map"));
}

TEST_CASE("aliases work, and those that grow without end are refused", "[config]") {
  CHECK(parse_tree("a: &x {n: 1}\nb: *x\n", "f").find("b")->find("n")->scalar == "1");
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 12; ++i) {
    bomb += fmt::format(
        "a{0}: &a{0} [*a{1}, *a{1}, *a{1}, *a{1}, *a{1}, *a{1}, *a{1}, *a{1}, *a{1}]\n", i, i - 1);
  }
  CHECK_THAT(refusal(bomb), Catch::Contains("larger than 100000 values"));
  CHECK_THAT(refusal("a: &x [1, *x]\n"), Catch::Contains("deeper than 32 levels"));
}

TEST_CASE("what yaml-cpp would read for ever or in part is refused", "[config]") {
  for (const char* yaml : {",", "a: 1\n]", "a: [1]}", "}", "a: 1\n---\n, 2"}) {
    CAPTURE(yaml);
    CHECK_THAT(refusal(yaml), Catch::Contains("malformed YAML"));
  }
  CHECK_THROWS_WITH(parse_setting("a=,2"), Catch::Contains("malformed YAML"));
  using namespace std::string_literals;
  CHECK_THAT(refusal("a: 1\nb: \0 2"s), Catch::Contains("run.yaml:2: byte 8 is 0x00"));
  CHECK_THAT(refusal("a: caf\xE9\n"),
             Catch::Contains("run.yaml:1: byte 6 is 0xe9, which is not UTF-8"));
  CHECK_THAT(refusal("a: \"x\\0y\"\n"), Catch::Contains("run.yaml:1: a value holds the character"));
  setenv("PECAN_TEST_DIR", "caf\xE9", 1);
  CHECK_THAT(refusal("a: ${PECAN_TEST_DIR}"), Catch::Contains("PECAN_TEST_DIR is not UTF-8 text"));
  CHECK(parse_tree("a: caf\xC3\xA9", "f").find("a")->scalar == "caf\xC3\xA9");
}

TEST_CASE("a long text is shown by its beginning", "[config]") {
  CHECK(refusal(fmt::format("a: ${{{}}}", std::string(5000, 'V'))).size() < 600);
  CHECK_THROWS_WITH(parse_setting(fmt::format("{}a=1", std::string(50, '.'))),
                    Catch::Contains("more than 32 parts"));
}

TEST_CASE("merging replaces values and joins maps", "[config]") {
  Node base = parse_tree("a: {x: 1, y: 2}\nb: [1, 2, 3]\nc: 1\n", "base");
  merge(base, parse_tree("a: {y: 3, z: 4}\nb: [9]\nc: {d: 1}\ne: 5\n", "over"));
  CHECK(base.find("a")->find("x")->scalar == "1");
  CHECK(base.find("a")->find("y")->scalar == "3");
  CHECK(base.find("a")->find("y")->where == "over:1");
  CHECK(base.find("a")->find("z")->scalar == "4");
  CHECK(base.find("b")->items.size() == 1);
  CHECK(base.find("c")->find("d")->scalar == "1");
  CHECK(base.find("e")->scalar == "5");
  merge(base, parse_tree("a:\nc: ~\n", "nulls"));
  CHECK(base.find("a")->keys.size() == 3);
  CHECK(base.find("c")->find("d")->scalar == "1");
}

TEST_CASE("a setting is a tree of its own", "[config]") {
  const Node tree = parse_setting("a.b.c=[1, {d: x}]");
  CHECK(tree.find("a")->find("b")->find("c")->items[1].find("d")->scalar == "x");
  CHECK(parse_setting("a=''").find("a")->kind == Node::Kind::kScalar);
  for (const char* empty : {"a.b=", "a.b=~", "a.b= "})
    CHECK_THROWS_WITH(parse_setting(empty), Catch::Contains("a.b has no value"));
  CHECK_THROWS_WITH(parse_setting("a=[1"),
                    Catch::Contains("--set a=[1:1:") && Catch::Contains("malformed YAML"));
}

}  // namespace
}  // namespace pecan::config::detail
