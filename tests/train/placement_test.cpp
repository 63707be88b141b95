#include <pecan/train/placement.hpp>

#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::train;

namespace {

Cores cores(std::initializer_list<int> numbers) {
  Cores set;
  for (const int number : numbers) set.set(std::size_t(number));
  return set;
}

const Cores kFour = cores({0, 1, 2, 3});

}  // namespace

TEST_CASE("the cores of a host are shared out among its ranks", "[train]") {
  const std::vector<RankCores> two(2, {1, kFour, kFour});
  CHECK(place_threads(two, Rank{1}, 0).threads == 2);
  CHECK(place_threads(two, Rank{1}, 0).cores_here == 4);
  CHECK(place_threads(two, Rank{1}, 3).threads == 3);
  CHECK(place_threads(two, Rank{1}, 0).complaint.empty());
  const std::vector<RankCores> many(9, {1, kFour, kFour});
  CHECK(place_threads(many, Rank{8}, 0).threads == 1);
  CHECK(place_threads(many, Rank{8}, 0).complaint.empty());

  // Other hosts have cores of the same numbers.
  std::vector<RankCores> hosts(3, {1, kFour, kFour});
  hosts[2].host = 2;
  CHECK(place_threads(hosts, Rank{2}, 0).threads == 4);
  CHECK(place_threads(hosts, Rank{2}, 0).ranks_here == 1);
  CHECK(place_threads(hosts, Rank{0}, 0).threads == 2);

  // Nothing is known of cores.
  CHECK(place_threads(std::vector<RankCores>(2), Rank{0}, 0).threads == 1);
}

TEST_CASE("a bad binding is reported with what to change", "[train]") {
  const std::vector<RankCores> apart{{1, cores({0}), kFour}, {1, cores({1}), kFour}};
  CHECK(place_threads(apart, Rank{0}, 0).threads == 1);
  CHECK(place_threads(apart, Rank{0}, 0).complaint.empty());
  CHECK_THAT(place_threads(apart, Rank{0}, 2).complaint,
             Catch::Contains("rank 0 has 2 threads (training.threads) but is bound to 1 cores"));

  const std::vector<RankCores> together(2, {1, cores({0}), kFour});
  CHECK_THAT(place_threads(together, Rank{0}, 0).complaint,
             Catch::Contains("the 2 ranks of this host are bound to 1 of the 4 cores") &&
                 Catch::Contains("--bind-to none"));
  // A job that was itself given one core cannot do better.
  const std::vector<RankCores> confined(2, {1, cores({0}), cores({0})});
  CHECK(place_threads(confined, Rank{0}, 0).complaint.empty());
}
