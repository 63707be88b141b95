#include <algorithm>

#include <pecan/checkpoint/dynamic_k.hpp>

namespace pecan::checkpoint {
namespace {

/// Rotation's length less one: what staleness is proportional to.
double staleness(int num_experts, int experts) {
  return double(num_experts) / double(experts) - 1;
}

}  // namespace

ExpertBudget first_expert_budget(int checkpoint, int snapshot, double plt_budget) {
  return {checkpoint, snapshot, 0, 0, plt_budget / 2};
}

double expected_plt(int num_experts, int experts, double interval, double total) {
  return total > 0 ? staleness(num_experts, experts) / 2 * interval / total : 0;
}

ExpertBudget after_recovery(ExpertBudget budget, double plt, double plt_budget, int num_experts) {
  budget.lost += plt;
  budget.lost_at_k += plt;
  if (budget.lost_at_k <= budget.share || budget.checkpoint >= num_experts) return budget;
  const double before = staleness(num_experts, budget.checkpoint);
  budget.share = std::max(0.0, plt_budget - budget.lost) / 2;
  budget.lost_at_k = 0;
  do {
    budget.checkpoint = std::min(2 * budget.checkpoint, num_experts);
    budget.snapshot = std::min(2 * budget.snapshot, num_experts);
  } while (budget.checkpoint < num_experts &&
           plt * staleness(num_experts, budget.checkpoint) / before > budget.share);
  return budget;
}

}  // namespace pecan::checkpoint
