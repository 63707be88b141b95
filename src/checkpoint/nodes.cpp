#include "checkpoint/nodes.hpp"

#include <algorithm>

#include <pecan/core/error.hpp>

namespace pecan::checkpoint {

Nodes::Nodes(std::vector<std::string> name_of_rank) {
  std::vector<std::string> names;
  for (std::size_t r = 0; r < name_of_rank.size(); ++r) {
    const auto found = std::ranges::find(names, name_of_rank[r]);
    const auto node = std::size_t(found - names.begin());
    if (found == names.end()) {
      names.push_back(std::move(name_of_rank[r]));
      ranks_.emplace_back();
    }
    node_of_rank_.push_back(int(node));
    ranks_[node].emplace_back(std::int32_t(r));
  }
}

Rank Nodes::keeper(Rank rank, int copy) const {
  PECAN_EXPECTS(copy > 0 && copy < size());
  const int node = of(rank);
  const auto& mates = ranks(node);
  const auto place = std::size_t(std::ranges::find(mates, rank) - mates.begin());
  const auto& keepers = ranks((node + copy) % size());
  return keepers[place % keepers.size()];
}

std::vector<std::pair<Rank, int>> Nodes::kept_by(Rank keeper_rank, int num_copies) const {
  std::vector<std::pair<Rank, int>> kept;
  for (std::size_t r = 0; r < node_of_rank_.size(); ++r) {
    const Rank rank{std::int32_t(r)};
    for (int copy = 1; copy <= num_copies; ++copy) {
      if (keeper(rank, copy) == keeper_rank) kept.emplace_back(rank, copy);
    }
  }
  return kept;
}

}  // namespace pecan::checkpoint
