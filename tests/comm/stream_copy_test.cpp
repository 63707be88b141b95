#include "comm/stream_copy.hpp"

#include <cstddef>
#include <span>
#include <vector>

#include "support/catch.hpp"

namespace pecan::comm {
namespace {

TEST_CASE("copies past the caches are exact at every place and length", "[comm]") {
  std::vector<std::byte> from(1000);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = std::byte(i * 7 + i / 251);
  for (const std::size_t source : {0, 1, 63}) {
    for (std::size_t target = 0; target < 65; target += 4) {
      for (const std::size_t count : {0, 1, 15, 63, 64, 65, 127, 128, 300, 517}) {
        std::vector<std::byte> to(700), expected(700);
        for (std::size_t i = 0; i < count; ++i) expected[target + i] = from[source + i];
        stream_copy(std::span(from).subspan(source, count), std::span(to).subspan(target, count));
        REQUIRE(to == expected);
      }
    }
  }
}

}  // namespace
}  // namespace pecan::comm
