#pragma once
/// Text from outside: strict UTF-8, bounded nesting, lengths that fit a message.

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace pecan {

/// Offset of the first byte that does not belong to well-formed UTF-8 (no overlong forms,
/// surrogates, or code points above U+10FFFF).
[[nodiscard]] std::optional<std::size_t> find_invalid_utf8(std::string_view text);
/// Whether a byte starts a character.
[[nodiscard]] constexpr bool starts_character(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
}

/// A user's text for a message: at most some hundred bytes of it, cut between characters.
[[nodiscard]] std::string shortened(std::string_view text);
/// What the operating system says of an errno: "No such file or directory".
[[nodiscard]] std::string errno_text(int error);
/// Whether a JSON text opens more than `limit` lists and objects inside each other. Parsers and
/// writers recurse: deeply nested text must be refused before they see it.
[[nodiscard]] bool nests_deeper(std::string_view json, int limit);

}  // namespace pecan
