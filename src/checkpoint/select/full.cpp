#include <pecan/checkpoint/select.hpp>

namespace pecan::checkpoint {

std::vector<UnitIndex> select_full(const ExpertGrid& grid,
                                   const SelectionHistory& /*history*/,
                                   const SelectionBudget& /*budget*/,
                                   Step /*step*/) {
  std::vector<UnitIndex> all;
  for (int unit = 1; unit <= grid.num_units(); ++unit) all.push_back(UnitIndex{unit});
  return all;
}

}  // namespace pecan::checkpoint
