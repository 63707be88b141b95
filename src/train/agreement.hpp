#pragma once
/// Texts that one rank knows and all ranks need.

#include <functional>
#include <string>

#include <pecan/comm/group.hpp>

namespace pecan::train {

/// The text that `source` gives; those of others are not looked at. Collective over `world`.
[[nodiscard]] std::string from_rank(Context& ctx,
                                    comm::Group& world,
                                    Rank source,
                                    std::string text);

/// Runs `body` on rank 0 and gives its text to all. A ConfigError of it becomes one of all ranks,
/// any other pecan::Error a CheckpointError. Collective over `world`.
[[nodiscard]] std::string from_root(Context& ctx,
                                    comm::Group& world,
                                    const std::function<std::string()>& body);

}  // namespace pecan::train
