#include <cmath>

#include <pecan/core/philox.hpp>

#include "support/catch.hpp"

using namespace pecan;

TEST_CASE("Philox4x32-10 has the known answers of its authors", "[core]") {
  using Words = std::array<std::uint32_t, 4>;
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("normals have the moments of N(0, 1) and differ by seed, stream and element", "[core]") {
  constexpr int kSamples = 20000;
  double sum = 0, squares = 0, cubes = 0, fourths = 0;
  for (int i = 0; i < kSamples; ++i) {
    const double x = philox_normal(7, stream_of("model.norm.weight"), std::uint64_t(i));
    sum += x;
    squares += x * x;
    cubes += x * x * x;
    fourths += x * x * x * x;
  }
  // Five standard errors: 1, sqrt(2), sqrt(15) and sqrt(96) over sqrt(n).
  const double root = std::sqrt(double(kSamples));
  CHECK(std::abs(sum / kSamples) < 5 / root);
  CHECK(std::abs(squares / kSamples - 1) < 5 * std::sqrt(2.0) / root);
  CHECK(std::abs(cubes / kSamples) < 5 * std::sqrt(15.0) / root);
  CHECK(std::abs(fourths / kSamples - 3) < 5 * std::sqrt(96.0) / root);
  CHECK(philox_normal(7, 1, 0) != philox_normal(8, 1, 0));
  CHECK(philox_normal(7, 1, 0) != philox_normal(7, 2, 0));
  CHECK(philox_normal(7, 1, 0) != philox_normal(7, 1, std::uint64_t{1} << 32));
}

TEST_CASE("uniforms lie in [0, 1) with mean one half", "[core]") {
  double sum = 0;
  for (std::uint64_t i = 0; i < 10000; ++i) {
    const double u = philox_uniform(1, 2, i);
    REQUIRE(u >= 0);
    REQUIRE(u < 1);
    sum += u;
  }
  CHECK(std::abs(sum / 10000 - 0.5) < 5 * std::sqrt(1.0 / 12 / 10000));
}
