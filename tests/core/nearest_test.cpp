#include <array>

#include <pecan/core/nearest.hpp>

#include "support/catch.hpp"

namespace pecan {
namespace {

TEST_CASE("edit_distance counts insertions, deletions and substitutions", "[core]") {
  CHECK(edit_distance("", "") == 0);
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("abc", "") == 3);
  CHECK(edit_distance("kitten", "sitting") == 3);  // the textbook's example
  CHECK(edit_distance("flaw", "lawn") == 2);
  CHECK(edit_distance("num_layer", "num_layers") == 1);
}

TEST_CASE("nearest_name takes the first of the nearest", "[core]") {
  const std::array<std::string, 3> known{"--run-dir", "--resume", "--resume-from-failure"};
  CHECK(nearest_name("--rundir", known) == "--run-dir");
  CHECK(nearest_name("--resum", known) == "--resume");
  CHECK(nearest_name("--resume-after-failure", known) == "--resume-from-failure");
  CHECK(nearest_name("anything", std::span<const std::string>()).empty());
}

}  // namespace
}  // namespace pecan
