#pragma once
/// Which ranks share a node, and so its memory.

#include <string>
#include <utility>
#include <vector>

#include <pecan/core/ids.hpp>

namespace pecan::checkpoint {

/// The nodes of this start, in the order of their lowest ranks. Equal on all ranks.
class Nodes {
 public:
  Nodes() = default;
  /// `name_of_rank`: each rank's node.
  explicit Nodes(std::vector<std::string> name_of_rank);
  [[nodiscard]] int size() const { return int(ranks_.size()); }
  [[nodiscard]] int num_ranks() const { return int(node_of_rank_.size()); }
  [[nodiscard]] int of(Rank rank) const { return node_of_rank_[std::size_t(rank.value)]; }
  /// Ascending.
  [[nodiscard]] const std::vector<Rank>& ranks(int node) const { return ranks_[std::size_t(node)]; }
  [[nodiscard]] bool is_first_of_node(Rank rank) const { return ranks(of(rank)).front() == rank; }
  /// Where copy number `copy` (from 1) of the snapshots of `rank` lies: on the `copy`-th node after
  /// its own, dealt over that node's ranks. `copy` is below size().
  /// Source: the ring placement of Gemini (SOSP 2023).
  [[nodiscard]] Rank keeper(Rank rank, int copy) const;
  /// The (rank, copy) that `keeper` keeps, of `num_copies` copies besides each rank's own.
  [[nodiscard]] std::vector<std::pair<Rank, int>> kept_by(Rank keeper, int num_copies) const;

 private:
  std::vector<int> node_of_rank_;
  std::vector<std::vector<Rank>> ranks_;
};

}  // namespace pecan::checkpoint
