#include "checkpoint/nodes.hpp"

#include <set>

#include "checkpoint/replicator.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::checkpoint {
namespace {

/// All ways to give up to `max_ranks` ranks to nodes of which the first is "a" and each new one the
/// next letter.
void for_each_placement(std::vector<std::string>& names,
                        int max_ranks,
                        char next,
                        const auto& body) {
  if (!names.empty()) body(names);
  if (int(names.size()) == max_ranks) return;
  for (char name = 'a'; name <= next; ++name) {
    names.emplace_back(1, name);
    for_each_placement(names, max_ranks, name == next ? char(next + 1) : next, body);
    names.pop_back();
  }
}

TEST_CASE("copies lie on other nodes, each on another, and are kept by those they are given to",
          "[nodes]") {
  int placements = 0;
  std::vector<std::string> names;
  for_each_placement(names, 6, 'a', [&](const std::vector<std::string>& name_of_rank) {
    ++placements;
    const Nodes nodes(name_of_rank);
    const std::set<std::string> distinct(name_of_rank.begin(), name_of_rank.end());
    REQUIRE(nodes.size() == int(distinct.size()));
    REQUIRE(nodes.num_ranks() == int(name_of_rank.size()));
    const int num_copies = nodes.size() - 1;
    std::set<std::tuple<Rank, Rank, int>> given;
    for (int r = 0; r < nodes.num_ranks(); ++r) {
      std::set<int> used{nodes.of(Rank{r})};
      for (int copy = 1; copy <= num_copies; ++copy) {
        const Rank keeper = nodes.keeper(Rank{r}, copy);
        CHECK(used.insert(nodes.of(keeper)).second);
        CHECK((name_of_rank[std::size_t(r)] != name_of_rank[std::size_t(keeper.value)]));
        given.emplace(keeper, Rank{r}, copy);
      }
      for (int other = 0; other < nodes.num_ranks(); ++other) {
        CHECK((nodes.of(Rank{r}) == nodes.of(Rank{other})) ==
              (name_of_rank[std::size_t(r)] == name_of_rank[std::size_t(other)]));
      }
      CHECK(nodes.is_first_of_node(Rank{r}) ==
            (std::ranges::find(name_of_rank, name_of_rank[std::size_t(r)]) - name_of_rank.begin() ==
             r));
    }
    std::set<std::tuple<Rank, Rank, int>> kept;
    for (int r = 0; r < nodes.num_ranks(); ++r) {
      for (const auto& [owner, copy] : nodes.kept_by(Rank{r}, num_copies))
        kept.emplace(Rank{r}, owner, copy);
    }
    CHECK(kept == given);
  });
  CHECK(placements == 1 + 2 + 5 + 15 + 52 + 203);  // Bell numbers
}

TEST_CASE("a copy is kept where the nodes of now would send it", "[nodes]") {
  const Nodes three({"a", "b", "c"});
  const Nodes one({"a", "a"});
  const auto name = [](int rank, int copy) {
    return SegmentName{"run", "host", Rank{rank}, 0, copy};
  };
  for (int rank = 0; rank < 3; ++rank) {
    for (int copy = 1; copy <= 3; ++copy) {
      for (int node = 0; node < 3; ++node) {
        CHECK(keeps_copy(name(rank, copy), three, node, 2, 1) ==
              (copy <= 2 && node == (rank + copy) % 3));
      }
      // Copies of a start on more nodes may lie about.
      CHECK_FALSE(keeps_copy(name(rank, copy), one, 0, 2, 1));
    }
  }
}

TEST_CASE("nodes of equally many ranks keep equally many copies", "[nodes]") {
  const Nodes nodes({"a", "b", "c", "a", "b", "c"});
  for (int r = 0; r < 6; ++r) CHECK(nodes.kept_by(Rank{r}, 2).size() == 2);
}

}  // namespace
}  // namespace pecan::checkpoint
