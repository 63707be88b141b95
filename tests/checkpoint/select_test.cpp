#include <algorithm>
#include <map>
#include <set>

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
      : grid_(grid), budget_(budget), history_(SelectionHistory::uniform(grid, budget, Step{0})) {}
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

/// Token slots of each expert in a step: the lower its id, the more; the last few none.
std::vector<std::int64_t> skewed_load(const ExpertGrid& grid) {
  std::vector<std::int64_t> load;
  for (int u = 0; u < grid.num_units(); ++u) {
    const int expert = u % grid.num_experts;
    load.push_back(expert >= grid.num_experts - 2 ? 0 : 1000 / (1 + expert));
  }
  return load;
}

/// Longest that any expert goes unsaved, in checkpoints, over a run that selects by `policy`; -1 if
/// a selection breaks its budget or is not ascending.
int longest_gap(SelectFunction policy,
                const ExpertGrid& grid,
                const SelectionBudget& budget,
                int checkpoints) {
  SelectionHistory history = SelectionHistory::uniform(grid, budget.experts, Step{0});
  const std::vector<std::int64_t> load = skewed_load(grid);
  int longest = 0;
  for (int c = 1; c <= checkpoints; ++c) {
    for (std::size_t u = 0; u < load.size(); ++u) history.unsaved[u] += load[u];
    const std::vector<UnitIndex> units = policy(grid, history, budget, Step{c});
    if (units != policy(grid, history, budget, Step{c})) return -1;
    if (std::ranges::adjacent_find(units, std::ranges::greater_equal{}) != units.end()) return -1;
    history.saved(units, Step{c});
    longest = std::max(longest, std::ranges::max(history.age));
  }
  return longest;
}

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

TEST_CASE("load-aware selection takes the most unsaved token slots, ties to the lowest id",
          "[select]") {
  const ExpertGrid grid{2, 4, 2};
  SelectionHistory history = SelectionHistory::uniform(grid, 2, Step{0});
  history.unsaved = {5, 9, 1, 9, /*layer 1*/ 0, 0, 3, 0};
  CHECK(experts_of(grid, select_load_aware(grid, history, {2}, Step{1})) ==
        std::vector{1, 3, 0, 2});
  history.saved(select_load_aware(grid, history, {2}, Step{1}), Step{1});
  CHECK(experts_of(grid, select_load_aware(grid, history, {1}, Step{2})) == std::vector{0, 0});
}

TEST_CASE("no expert is older than the limit, with or without tokens", "[select]") {
  int cases = 0;
  for (const int layers : {1, 3}) {
    for (const int experts : {2, 3, 4, 8, 13}) {
      for (int budget = 1; budget <= experts; ++budget) {
        const ExpertGrid grid{layers, experts, 1};
        const int rotation = (experts + budget - 1) / budget;
        for (const int max_age : {rotation - 1, rotation, 2 * rotation, 5 * rotation}) {
          if (max_age == 0) continue;
          const int gap = longest_gap(select_load_aware, grid, {budget, max_age}, 8 * max_age);
          INFO("layers " << layers << " N " << experts << " K " << budget << " max " << max_age);
          REQUIRE(gap >= 0);
          REQUIRE(gap <= max_age);
          ++cases;
        }
      }
    }
  }
  CHECK(cases > 150);
  // Without a limit an expert without tokens is never saved: the limit is what saves it.
  CHECK(longest_gap(select_load_aware, {1, 8, 1}, {1, 0}, 200) > 150);
}

TEST_CASE("auto takes what is hidden, most tokens first, evenly over the ranks", "[select]") {
  // Two layers of four experts on two ranks; an expert of layer 1 is twice as large.
  ExpertGrid grid{2, 4, 2, {100, 200}};
  SelectionHistory history = SelectionHistory::uniform(grid, 4, Step{0});
  history.unsaved = {1, 2, 3, 4, /*layer 1*/ 8, 7, 6, 5};
  const auto load = [&](const std::vector<UnitIndex>& units) {
    std::vector<std::int64_t> bytes(2);
    for (const UnitIndex unit : units) {
      const int at = int(grid.index(unit));
      bytes[std::size_t(at % 4 / 2)] += at / 4 == 0 ? 100 : 200;
    }
    return bytes;
  };
  const auto select = [&](std::int64_t rank_bytes, int experts = 4) {
    return select_auto(grid, history, {experts, 99, rank_bytes}, Step{1});
  };
  CHECK(select(300) == std::vector{UnitIndex{2}, UnitIndex{4}, UnitIndex{5}, UnitIndex{7}});
  CHECK(load(select(300)) == std::vector<std::int64_t>{300, 300});
  CHECK(load(select(600)) == std::vector<std::int64_t>{600, 600});
  CHECK(load(select(10'000)) == std::vector<std::int64_t>{600, 600});
  CHECK(select(0) == std::vector{UnitIndex{5}});  // one at least, that with most tokens
  for (const UnitIndex unit : select(10'000, 1)) {
    CHECK((unit == UnitIndex{4} || unit == UnitIndex{5}));
  }
  for (const std::int64_t bytes : {150, 250, 400, 10'000}) {
    grid.unit_bytes = {100, 100};
    INFO(bytes);
    CHECK(longest_gap(select_auto, grid, {4, 6, bytes}, 60) <= 6);
    CHECK(longest_gap(select_auto, grid, {4, 6, bytes}, 60) >= 0);
  }
  for (const int experts : {5, 8, 16}) {
    const ExpertGrid many{3, experts, 1, {10, 20, 30}};
    for (const std::int64_t bytes : {1, 60, 100, 500}) {
      const int gap = longest_gap(select_auto, many, {experts, 0, bytes}, 6 * experts);
      const int fit = std::max(1, int(std::min<std::int64_t>(experts, bytes / 60)));
      CHECK(gap >= 0);
      CHECK(gap <= default_max_age(experts, fit));
    }
  }
}

TEST_CASE("storage reaches every expert for every ratio of the levels", "[select]") {
  // Snapshots of K_s experts, every `ratio`-th also for storage with K_p; of those `replaced` in
  // three never get there, as a later one takes their place.
  int cases = 0;
  for (const SelectFunction policy : {select_sequential, select_load_aware}) {
    for (const int experts : {2, 3, 4, 6, 8}) {
      for (int in_memory = 1; in_memory <= experts; ++in_memory) {
        for (int in_storage = 1; in_storage <= in_memory; ++in_storage) {
          for (const int ratio : {1, 2, 3, 4, 5}) {
            for (const int replaced : {0, 1, 2}) {
              const ExpertGrid grid{2, experts, 1};
              const int rotation = (experts + in_storage - 1) / in_storage;
              const SelectionHistory start = SelectionHistory::uniform(grid, 1, Step{0});
              Level memory{start, {in_memory, 0}};
              Level storage{start, {in_storage, rotation}};
              std::set<UnitIndex> unsaved;
              for (int u = 1; u <= grid.num_units(); ++u) unsaved.insert(UnitIndex{u});
              int committed = 0;
              bool small = true;
              for (int i = 0; committed < rotation + 1; ++i) {
                const bool due = i % ratio == 0;
                const Step step{i + 1};
                for (Level* level : {&memory, &storage}) {
                  for (std::size_t u = 0; u < level->history.unsaved.size(); ++u)
                    level->history.unsaved[u] += 1 + std::int64_t(u) % 3;
                }
                const LevelSelection selection = select_levels(
                    grid, policy, memory, storage, due ? ForStorage::kYes : ForStorage::kNo, step);
                small = small && int(selection.snapshot.size()) <= 2 * in_memory &&
                        std::ranges::includes(selection.snapshot, selection.persist) &&
                        selection.persist.size() == (due ? 2U * unsigned(in_storage) : 0U);
                memory.history.saved(selection.snapshot, step);
                if (!due || i / ratio % 3 < replaced) continue;
                storage.history.saved(selection.persist, step);
                for (const UnitIndex unit : selection.persist) unsaved.erase(unit);
                ++committed;
              }
              INFO("N " << experts << " K_s " << in_memory << " K_p " << in_storage << " ratio "
                        << ratio << " replaced " << replaced);
              REQUIRE(small);
              REQUIRE(unsaved.empty());
              ++cases;
            }
          }
        }
      }
    }
  }
  CHECK(cases > 2000);
}

TEST_CASE("memory rotates over all experts too", "[select]") {
  for (const int experts : {4, 6, 8}) {
    for (int in_memory = 1; in_memory <= experts; ++in_memory) {
      for (const int ratio : {1, 2, 3, 8}) {
        const ExpertGrid grid{1, experts, 1};
        const SelectionHistory start = SelectionHistory::uniform(grid, 1, Step{0});
        Level memory{start, {in_memory}};
        Level storage{start, {1}};
        const int rotation = (experts + in_memory - 1) / in_memory;
        for (int i = 0; i < 6 * rotation * ratio; ++i) {
          const LevelSelection selection =
              select_levels(grid,
                            select_sequential,
                            memory,
                            storage,
                            i % ratio == 0 ? ForStorage::kYes : ForStorage::kNo,
                            Step{i + 1});
          memory.history.saved(selection.snapshot, Step{i + 1});
          if (i % ratio == 0) storage.history.saved(selection.persist, Step{i + 1});
        }
        INFO("N " << experts << " K_s " << in_memory << " ratio " << ratio);
        // What storage takes is not what memory needs most, which may cost a snapshot in each
        // rotation of it.
        CHECK(std::ranges::max(memory.history.age) <= 2 * rotation + experts);
      }
    }
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
