#include <pecan/checkpoint/dynamic_k.hpp>
#include <pecan/checkpoint/select.hpp>

#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::checkpoint;

namespace {

/// Measured PLT of one failure at step `fault` of a run with one layer of `experts` experts that
/// all get equally many tokens, saved by sequential selection: counted token by token.
double measured_plt(int experts, int budget, int interval, int total, int fault) {
  const ExpertGrid grid{1, experts, 1};
  SelectionHistory history = SelectionHistory::uniform(grid, budget, Step{0});
  std::vector<std::int64_t> routed(std::size_t(experts), 0);
  std::vector<std::int64_t> absorbed_by_copy = routed;
  for (int step = 1; step <= fault; ++step) {
    for (std::int64_t& slots : routed) ++slots;
    if (step % interval != 0) continue;
    const auto units = select_sequential(grid, history, {budget}, Step{step});
    history.saved(units, Step{step});
    for (const UnitIndex unit : units)
      absorbed_by_copy[grid.index(unit)] = routed[grid.index(unit)];
  }
  std::int64_t lost = 0;
  for (std::size_t e = 0; e < routed.size(); ++e) lost += routed[e] - absorbed_by_copy[e];
  return double(lost) / (double(total) * experts);
}

}  // namespace

TEST_CASE("the papers' anchor: 3.75 % are lost at N 8, K 2, interval 32 of 1280, fault at 640",
          "[dynamic_k]") {
  for (const auto& [budget, plt] : {std::pair(1, 0.0875), {2, 0.0375}, {4, 0.0125}, {8, 0.0}}) {
    CHECK(measured_plt(8, budget, 32, 1280, 640) == Approx(plt).margin(1e-12));
    CHECK(expected_plt(8, budget, 32, 1280) == Approx(plt).margin(1e-12));
  }
}

TEST_CASE("the closed form is the mean over fault steps", "[dynamic_k]") {
  for (const int experts : {4, 6, 8}) {
    for (const int budget : {1, 2, experts}) {
      double sum = 0;
      int count = 0;
      for (int fault = 10 * experts * 4; fault < 10 * experts * 8; fault += 10, ++count)
        sum += measured_plt(experts, budget, 10, 1000, fault);
      CHECK(sum / count == Approx(expected_plt(experts, budget, 10, 1000)).margin(1e-12));
    }
  }
}

TEST_CASE("K stays while recoveries fit into its share, and doubles where they do not",
          "[dynamic_k]") {
  constexpr double kBudget = 0.0375;
  ExpertBudget budget = first_expert_budget(1, 2, kBudget);
  CHECK(budget.share == kBudget / 2);
  budget = after_recovery(budget, 0.010, kBudget, 16);
  CHECK(budget.checkpoint == 1);
  budget = after_recovery(budget, 0.010, kBudget, 16);  // 0.020 of a share of 0.01875
  CHECK(budget.lost == Approx(0.020));
  CHECK(budget.lost_at_k == 0);
  CHECK(budget.share == Approx(0.0175 / 2));
  CHECK(budget.checkpoint == 2);  // 0.010 * 7 / 15 = 0.0047 fits
  CHECK(budget.snapshot == 4);
}

TEST_CASE("K doubles until the next failure fits, whatever it costs at most to all experts",
          "[dynamic_k]") {
  // A failure that has cost 3 % at K = 1 of 16: at K 2 1.4 %, 4 0.6 %, 8 0.2 %.
  const ExpertBudget steep = after_recovery(first_expert_budget(1, 1, 0.0375), 0.03, 0.0375, 16);
  CHECK(steep.share == Approx(0.00375));
  CHECK(steep.checkpoint == 8);
  // The whole budget is spent at once: nothing may be lost any more.
  const ExpertBudget spent = after_recovery(first_expert_budget(1, 4, 0.0375), 0.05, 0.0375, 16);
  CHECK(spent.checkpoint == 16);
  CHECK(spent.snapshot == 16);
  CHECK(after_recovery(spent, 0.0, 0.0375, 16) == [&] {
    ExpertBudget same = spent;
    same.lost_at_k = 0;
    return same;
  }());
}

TEST_CASE("K never falls and the budget holds over many failures", "[dynamic_k]") {
  for (const int experts : {6, 8, 16, 64}) {
    for (const double interval : {1.0, 10.0, 40.0}) {
      ExpertBudget budget = first_expert_budget(1, 1, 0.0375);
      const double first = expected_plt(experts, 1, interval, 10000);
      for (int fault = 0; fault < 1000; ++fault) {
        const int before = budget.checkpoint;
        budget = after_recovery(
            budget, expected_plt(experts, budget.checkpoint, interval, 10000), 0.0375, experts);
        if (budget.checkpoint < before || budget.checkpoint > experts) FAIL("K " << before);
      }
      // Each share is overshot by one failure at most.
      CHECK(budget.lost <= 0.0375 + first);
    }
  }
}
