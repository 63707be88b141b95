#include <set>

#include <pecan/data/sampler.hpp>

#include "support/catch.hpp"

namespace pecan::data {
namespace {

TEST_CASE("a rank takes a contiguous share of each micro-step", "[data]") {
  const Sampler sampler{.micro_batch_size = 2, .global_batch_size = 12, .data_parallel_size = 3};
  CHECK(sampler.num_micro_steps() == 2);
  CHECK(sampler.sample_index(100, 0, 0, 0) == 100);
  CHECK(sampler.sample_index(100, 0, 0, 1) == 101);
  CHECK(sampler.sample_index(100, 0, 2, 1) == 105);
  CHECK(sampler.sample_index(100, 1, 0, 0) == 106);
  CHECK(sampler.sample_index(100, 1, 2, 1) == 111);
}

TEST_CASE("a global batch is the same consecutive samples for every layout, each once", "[data]") {
  const int global = 24;
  for (const int micro : {1, 2, 3, 4}) {
    for (const int ranks : {1, 2, 3, 6}) {
      if (global % (micro * ranks) != 0) continue;
      const Sampler sampler{micro, global, ranks};
      std::multiset<std::int64_t> seen;
      for (int m = 0; m < sampler.num_micro_steps(); ++m) {
        for (int r = 0; r < ranks; ++r) {
          for (int row = 0; row < micro; ++row) seen.insert(sampler.sample_index(48, m, r, row));
        }
      }
      INFO("micro-batch " << micro << ", ranks " << ranks);
      CHECK(seen.size() == 24);
      CHECK(*seen.begin() == 48);
      CHECK(*seen.rbegin() == 71);
      CHECK(std::set<std::int64_t>(seen.begin(), seen.end()).size() == 24);
    }
  }
}

}  // namespace
}  // namespace pecan::data
