#pragma once
/// XXH3 checksums, whole and streamed.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace pecan {

/// XXH3-64 (seed 0) of bytes.
[[nodiscard]] std::uint64_t xxh3(std::span<const std::byte> bytes);
[[nodiscard]] std::uint64_t xxh3(std::string_view text);
/// 16 lower-case hexadecimal digits, and back (CorruptionError on anything else).
[[nodiscard]] std::string to_hex(std::uint64_t hash);
[[nodiscard]] std::uint64_t from_hex(std::string_view text);

/// XXH3-64 of bytes that come in pieces; equal to xxh3 of their concatenation.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(Xxh3Stream&&) noexcept;
  Xxh3Stream& operator=(Xxh3Stream&&) noexcept;
  void update(std::span<const std::byte> bytes);
  [[nodiscard]] std::uint64_t digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace pecan
