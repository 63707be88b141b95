#pragma once
/// Which experts can wait no longer, for policies that would pass over some for ever.

#include <vector>

#include <pecan/checkpoint/select.hpp>

namespace pecan::checkpoint {

/// Of one layer, the experts that must be saved now if `per_checkpoint` are saved in each
/// checkpoint and none may miss more than budget.max_age in a row: for every deadline d, as many as
/// the checkpoints up to it could not take later. Oldest first; empty without a limit.
[[nodiscard]] std::vector<UnitIndex> overdue(const ExpertGrid& grid,
                                             const SelectionHistory& history,
                                             const SelectionBudget& budget,
                                             int per_checkpoint,
                                             int layer);

}  // namespace pecan::checkpoint
