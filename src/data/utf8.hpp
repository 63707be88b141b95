#pragma once
/// Strict UTF-8.

#include <cstddef>
#include <optional>
#include <string_view>

namespace pecan::data {

/// Offset of the first byte that does not belong to well-formed UTF-8 (no overlong forms,
/// surrogates, or code points above U+10FFFF).
[[nodiscard]] std::optional<std::size_t> find_invalid_utf8(std::string_view text);
/// Whether a byte starts a character.
[[nodiscard]] constexpr bool starts_character(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
}

}  // namespace pecan::data
