#pragma once
/// Defaults that follow from other values, and checks across keys.

#include <pecan/config/config.hpp>

namespace pecan::config::detail {

/// A configuration whose derived values are all unset (0, or empty for the layer pattern).
[[nodiscard]] Config unresolved_defaults();
/// Fills derived values, then checks values against each other; ConfigError.
void resolve(Config& config);

}  // namespace pecan::config::detail
