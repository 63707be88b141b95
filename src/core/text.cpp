#include <cstdint>
#include <system_error>

#include <fmt/format.h>

#include <pecan/core/text.hpp>

namespace pecan {
namespace {

constexpr std::size_t kMaxShownBytes = 120;

/// Bytes of the character whose first byte is `lead`; 0 if it cannot be one.
std::size_t character_size(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead < 0xE0) return 2;
  if (lead >= 0xE0 && lead < 0xF0) return 3;
  if (lead >= 0xF0 && lead < 0xF5) return 4;
  return 0;
}

}  // namespace

std::optional<std::size_t> find_invalid_utf8(std::string_view text) {
  constexpr std::uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  std::size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t size = character_size(lead);
    if (size == 0 || i + size > text.size()) return i;
    std::uint32_t code = size == 1 ? lead : lead & (0xFFu >> (size + 1));
    for (std::size_t k = 1; k < size; ++k) {
      if (starts_character(text[i + k])) return i;
      code = code << 6 | (static_cast<unsigned char>(text[i + k]) & 0x3Fu);
    }
    if (code < kSmallest[size] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return i;
    i += size;
  }
  return std::nullopt;
}

std::string shortened(std::string_view text) {
  if (text.size() <= kMaxShownBytes) return std::string(text);
  std::size_t end = kMaxShownBytes;
  while (end > 0 && !starts_character(text[end])) --end;
  return fmt::format("{}... ({} bytes)", text.substr(0, end), text.size());
}

std::string errno_text(int error) {
  return std::generic_category().message(error);
}

bool nests_deeper(std::string_view json, int limit) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (c == '"') in_string = !in_string;
    if (in_string) {
      if (c == '\\') ++i;
    } else if (c == '[' || c == '{') {
      if (++depth > limit) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace pecan
