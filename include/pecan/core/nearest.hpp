#pragma once
/// The known name that somebody probably meant, for messages about unknown ones.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace pecan {

/// Number of insertions, deletions and substitutions of characters between two names.
[[nodiscard]] std::size_t edit_distance(std::string_view a, std::string_view b);

/// The name among `known` with the fewest edits to `name`, the first of several; empty where
/// `known` is.
[[nodiscard]] std::string nearest_name(std::string_view name, std::span<const std::string> known);

}  // namespace pecan
