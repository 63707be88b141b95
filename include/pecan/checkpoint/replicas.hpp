#pragma once
/// Whether ranks that should hold the same bytes do.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::checkpoint {

/// A block that several ranks hold.
struct Replicated {
  std::string name;    ///< of what it is a block of
  ItemIndex item{-1};  ///< in the catalog, if it stands there
  Block block;
  std::vector<Rank> holders;  ///< ascending, at least two
};

/// A block of which not all holders have the same bytes.
struct ReplicaDifference {
  std::string name;
  Block block;
  std::vector<Rank> holders;
  /// Those that differ from more than half of the holders; all of them where no bytes have such a
  /// majority, as with two holders.
  std::vector<Rank> suspects;
  bool operator==(const ReplicaDifference&) const = default;
};

/// What is compared of a catalog.
enum class ReplicaScope : std::uint8_t {
  kEverything,
  kParameters,  ///< weights, masters and moments
};

/// The blocks of the catalog that several ranks hold, in its order. Pure.
[[nodiscard]] std::vector<Replicated> replicated_blocks(const StateCatalog& catalog,
                                                        ReplicaScope scope);

/// XXH3 of what this rank holds of a block of the catalog, in logical order.
[[nodiscard]] std::uint64_t hash_of(const StateBinding& binding,
                                    const StateCatalog& catalog,
                                    const Replicated& shared);

/// Which of `shared` differ, in their order; the same on all ranks. `hash(i)` is asked for blocks
/// that this rank holds. Collective over `world`; `shared` is equal on all ranks. Two integers a
/// block are reduced, and for those that differ one more a holder.
[[nodiscard]] std::vector<ReplicaDifference> compare_replicas(
    Context& ctx,
    comm::Group& world,
    comm::Purpose purpose,
    std::span<const Replicated> shared,
    const std::function<std::uint64_t(std::size_t)>& hash);

/// "rank 1 holds other bytes of NAME than ranks 0, 2", or with two holders "ranks 0 and 1 hold
/// different bytes of NAME".
[[nodiscard]] std::string describe(const ReplicaDifference& difference);

}  // namespace pecan::checkpoint
