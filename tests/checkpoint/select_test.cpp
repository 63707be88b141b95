#include <algorithm>
#include <map>

#include <pecan/checkpoint/select.hpp>

#include "checkpoint/job.hpp"
#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::checkpoint;

namespace {

/// Selections of successive checkpoints, after a full one at step 0; a failed one changes nothing.
class Rotation {
 public:
  Rotation(ExpertGrid grid, int budget)
      : grid_(grid),
        budget_(budget),
        history_(SelectionHistory::uniform(grid, budget, Step{0})) {}
  void set_budget(int budget) { budget_ = budget; }
  std::vector<UnitIndex> next(bool fails = false) {
    ++step_.value;
    auto units = select_sequential(grid_, history_, {budget_}, step_);
    if (!fails) history_.saved(units, step_);
    return units;
  }

 private:
  ExpertGrid grid_;
  int budget_;
  SelectionHistory history_;
  Step step_{0};
};

std::vector<int> experts_of(const ExpertGrid& grid, const std::vector<UnitIndex>& units) {
  std::vector<int> experts;
  for (const UnitIndex unit : units) experts.push_back(int(grid.index(unit)) % grid.num_experts);
  return experts;
}

/// Most experts of one expert-parallel rank.
int max_load(const ExpertGrid& grid, const std::vector<UnitIndex>& units) {
  std::map<int, int> load;
  int most = 0;
  for (const int expert : experts_of(grid, units)) {
    most = std::max(most, ++load[expert / (grid.num_experts / grid.ep_size)]);
  }
  return most;
}

}  // namespace

TEST_CASE("sequential selection is that of figure 4", "[select]") {
  const ExpertGrid grid{4, 3, 1};
  Rotation rotation(grid, 1);
  CHECK(experts_of(grid, rotation.next()) == std::vector{0, 1, 2, 0});
  CHECK(experts_of(grid, rotation.next()) == std::vector{1, 2, 0, 1});
  CHECK(experts_of(grid, rotation.next()) == std::vector{2, 0, 1, 2});
}

TEST_CASE("sequential selection is the printed formula while K divides N", "[select]") {
  for (const int ep : {1, 2, 4}) {
    for (const int budget : {1, 2, 4, 8}) {
      const ExpertGrid grid{3, 8, ep};
      Rotation rotation(grid, budget);
      for (int c = 0; c < 20; ++c) {
        std::vector<UnitIndex> expected;
        for (int m = 0; m < grid.num_layers; ++m) {
          for (int j = 0; j < budget; ++j) {
            const int p = (c * budget + m * budget + j) % 8;
            expected.push_back(grid.unit(m, p % ep * (8 / ep) + p / ep));
          }
        }
        std::ranges::sort(expected);
        REQUIRE(rotation.next() == expected);
      }
    }
  }
}

TEST_CASE("expert-parallel ranks share the work evenly wherever equation 9 allows it", "[select]") {
  int cases = 0;
  for (int layers = 1; layers <= 8; ++layers) {
    for (const int experts : {2, 3, 4, 6, 8, 12, 16}) {
      for (int ep = 1; ep <= experts; ++ep) {
        if (experts % ep != 0) continue;
        for (int budget = 1; budget <= experts; ++budget) {
          if (budget * layers % ep != 0) continue;
          const ExpertGrid grid{layers, experts, ep};
          Rotation rotation(grid, budget);
          for (int c = 0; c < 2 * experts; ++c) {
            const auto units = rotation.next(c % 5 == 3);
            if (max_load(grid, units) * ep != budget * layers) {
              FAIL("layers " << layers << " experts " << experts << " ep " << ep << " K "
                             << budget);
            }
          }
          ++cases;
        }
      }
    }
  }
  CHECK(cases > 1000);
}

TEST_CASE("every expert is saved within ceil(N/K) checkpoints, whatever fails", "[select]") {
  for (const int experts : {3, 4, 7, 8}) {
    for (int first = 1; first <= experts; ++first) {
      for (int second = 1; second <= experts; ++second) {
        const ExpertGrid grid{2, experts, 1};
        Rotation rotation(grid, first);
        for (int c = 0; c < experts + 1; ++c) static_cast<void>(rotation.next(c % 3 == 1));
        rotation.set_budget(second);
        std::vector<bool> saved(std::size_t(grid.num_units()));
        for (int c = 0; c < (experts + second - 1) / second; ++c) {
          static_cast<void>(rotation.next(true));
          for (const UnitIndex unit : rotation.next()) saved[grid.index(unit)] = true;
        }
        REQUIRE(std::ranges::count(saved, false) == 0);
      }
    }
  }
}

TEST_CASE("the slots of a full checkpoint are the checkpoints that supersede it", "[select]") {
  for (const int budget : {1, 2, 3, 4, 8}) {
    const ExpertGrid grid{3, 8, 2};
    const std::vector<int> slots =
        rotation_slots(grid, select_sequential, {budget}, budget, Step{0});
    std::vector<int> superseded_at(std::size_t(grid.num_units()), -1);
    Rotation rotation(grid, budget);
    for (int c = 0; c < (8 + budget - 1) / budget; ++c) {
      for (const UnitIndex unit : rotation.next()) {
        int& at = superseded_at[grid.index(unit)];
        if (at < 0) at = c;
      }
    }
    CHECK(slots == superseded_at);
  }
}

TEST_CASE("an unknown selection policy is refused with those there are", "[select]") {
  CHECK_THROWS_WITH(selection_policy("sequentail"), Catch::Matchers::Contains("use sequential"));
}

TEST_CASE("the expert-parallel size is read off the holders", "[select]") {
  for (const int ep : {1, 2, 4}) {
    for (const int edp : {1, 2}) {
      const ExpertGrid grid = expert_grid(test::make_catalog({2, 8, ep, edp}));
      CHECK(grid.ep_size == ep);
      CHECK(grid.num_layers == 2);
      CHECK(grid.num_experts == 8);
    }
  }
  StateCatalog catalog = test::make_catalog({1, 4, 2, 1});
  for (StateItem& item : catalog.items) {
    if (item.unit == UnitIndex{1}) item.blocks[0].holders = {Rank{1}};
  }
  CHECK_THROWS_AS(expert_grid(catalog), InternalError);
}
