#pragma once
/// How many experts a checkpoint holds after failures: Dynamic-K. Pure.

namespace pecan::checkpoint {

/// What a run has spent of its budget of lost tokens; saved in every manifest, so that it survives
/// restarts.
struct ExpertBudget {
  int checkpoint = 0;    ///< K of each layer in storage, in force
  int snapshot = 0;      ///< K of each layer in memory, in force
  double lost = 0;       ///< PLT of all recoveries so far
  double lost_at_k = 0;  ///< that of the recoveries since K is in force
  double share = 0;      ///< of the budget, for K in force
  bool operator==(const ExpertBudget&) const = default;
};

/// The budget at the start of a run: half of `plt_budget` is for the first K.
[[nodiscard]] ExpertBudget first_expert_budget(int checkpoint, int snapshot, double plt_budget);

/// PLT that one failure costs on the average, by the closed form for even routing and sequential
/// selection: (N/K - 1)/2 * interval / total, in steps.
/// Source: papers on PEC, eq. 7, with N_fault = 1 (our derivation).
[[nodiscard]] double expected_plt(int num_experts, int experts, double interval, double total);

/// The budget after a recovery that lost `plt`: where the recoveries at K have spent more than its
/// share, K is doubled (on both levels) until a failure like the last one, but at the new K, fits
/// into half of what is left, at most to `num_experts`. K never falls.
/// Source: MoC section 5.3 (Dynamic-K). Differs from the paper: the split of the budget over values
/// of K, which it does not give, is geometric.
[[nodiscard]] ExpertBudget after_recovery(ExpertBudget budget,
                                          double plt,
                                          double plt_budget,
                                          int num_experts);

}  // namespace pecan::checkpoint
