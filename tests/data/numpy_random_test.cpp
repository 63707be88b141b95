#include <numeric>
#include <vector>

#include <pecan/data/numpy_random.hpp>

#include "support/catch.hpp"

namespace pecan::data {
namespace {

std::vector<int> shuffled(std::uint32_t seed, int size) {
  std::vector<int> values(static_cast<std::size_t>(size));
  std::iota(values.begin(), values.end(), 0);
  NumpyRandomState(seed).shuffle(std::span(values));
  return values;
}

TEST_CASE("shuffles are those published for NumPy's RandomState", "[data]") {
  CHECK(shuffled(0, 10) == std::vector<int>{2, 8, 4, 9, 1, 6, 7, 3, 0, 5});
  CHECK(shuffled(42, 10) == std::vector<int>{8, 1, 5, 0, 7, 2, 9, 4, 3, 6});
  CHECK(shuffled(1234, 10) == std::vector<int>{7, 2, 9, 1, 0, 8, 4, 5, 6, 3});
}

TEST_CASE("nothing and a single value stay as they are and draw nothing", "[data]") {
  NumpyRandomState random(5);
  std::vector<int> empty;
  std::vector<int> one{7};
  random.shuffle(std::span(empty));
  random.shuffle(std::span(one));
  CHECK(one == std::vector<int>{7});
  CHECK(random.interval(0xffff'ffff) == NumpyRandomState(5).interval(0xffff'ffff));
}

TEST_CASE("intervals stay in range, and above 32 bits take two draws, the high word first",
          "[data]") {
  NumpyRandomState random(7);
  for (const std::uint64_t max :
       {1ull, 2ull, 3ull, 7ull, 8ull, 1000ull, 0x1'0000'0000ull, 0xffff'ffff'ffff'ffffull}) {
    for (int i = 0; i < 100; ++i) CHECK(random.interval(max) <= max);
  }
  NumpyRandomState words(99);  // numpy.random.RandomState(99): first outputs
  CHECK(words.interval(0xffff'ffff'ffff'ffff) == (2887414401ull << 32 | 3103284259ull));
  CHECK(words.interval(0xffff'ffff) == 2096280761ull);
}

}  // namespace
}  // namespace pecan::data
