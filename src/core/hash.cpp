#include <charconv>

#include <xxhash.h>

#include <pecan/core/error.hpp>
#include <pecan/core/hash.hpp>
#include <pecan/core/text.hpp>

namespace pecan {

std::uint64_t xxh3(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}
std::uint64_t xxh3(std::string_view text) {
  return XXH3_64bits(text.data(), text.size());
}

std::string to_hex(std::uint64_t hash) {
  return fmt::format("{:016x}", hash);
}

std::uint64_t from_hex(std::string_view text) {
  std::uint64_t hash = 0;
  const bool digits =
      text.size() == 16 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  PECAN_VALIDATE(
      digits && std::from_chars(text.data(), text.data() + text.size(), hash, 16).ec == std::errc{},
      CorruptionError,
      "\"{}\" is no checksum: 16 lower-case hexadecimal digits are expected",
      shortened(text));
  return hash;
}

struct Xxh3Stream::State {
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> xxh{XXH3_createState()};
};

Xxh3Stream::Xxh3Stream() : state_(std::make_unique<State>()) {
  PECAN_VALIDATE(state_->xxh && XXH3_64bits_reset(state_->xxh.get()) == XXH_OK,
                 InternalError,
                 "no memory for a checksum's state");
}
Xxh3Stream::~Xxh3Stream() = default;
Xxh3Stream::Xxh3Stream(Xxh3Stream&&) noexcept = default;
Xxh3Stream& Xxh3Stream::operator=(Xxh3Stream&&) noexcept = default;

void Xxh3Stream::update(std::span<const std::byte> bytes) {
  if (!bytes.empty()) XXH3_64bits_update(state_->xxh.get(), bytes.data(), bytes.size());
}

std::uint64_t Xxh3Stream::digest() const {
  return XXH3_64bits_digest(state_->xxh.get());
}

}  // namespace pecan
