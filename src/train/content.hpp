#pragma once
/// Hashes of the state's content, so that a test can tell what a recovery has brought back.

#include <cstdint>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::train {

/// A hash of each item's elements and their places, equal on all ranks and for every layout: the
/// sum over elements of a hash of (index, bits), of which each block's first holder adds its own.
/// Collective.
[[nodiscard]] std::vector<std::uint64_t> content_hashes(Context& ctx,
                                                        comm::Group& world,
                                                        const StateCatalog& catalog,
                                                        const StateBinding& binding);

}  // namespace pecan::train
