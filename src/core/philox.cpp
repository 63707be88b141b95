#include <cmath>
#include <numbers>

#include <pecan/core/hash.hpp>
#include <pecan/core/philox.hpp>

namespace pecan {
namespace {

/// The 128 random bits of one element of one stream, as two 64-bit words.
std::array<std::uint64_t, 2> draw(std::uint64_t seed, std::uint64_t stream, std::uint64_t element) {
  const auto low = [](std::uint64_t v) { return std::uint32_t(v); };
  const auto high = [](std::uint64_t v) { return std::uint32_t(v >> 32); };
  const auto bits =
      philox4x32({low(element), high(element), low(stream), high(stream)}, {low(seed), high(seed)});
  return {std::uint64_t(bits[0]) | std::uint64_t(bits[1]) << 32,
          std::uint64_t(bits[2]) | std::uint64_t(bits[3]) << 32};
}

double unit_interval(std::uint64_t bits) {
  return double(bits >> 11) * 0x1p-53;
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key) {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t product0 = kMultiplier0 * counter[0];
    const std::uint64_t product1 = kMultiplier1 * counter[2];
    counter = {std::uint32_t(product1 >> 32) ^ counter[1] ^ key[0],
               std::uint32_t(product1),
               std::uint32_t(product0 >> 32) ^ counter[3] ^ key[1],
               std::uint32_t(product0)};
    key = {key[0] + kWeyl0, key[1] + kWeyl1};
  }
  return counter;
}

double philox_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t element) {
  const auto bits = draw(seed, stream, element);
  // 1 - u lies in (0, 1], where the logarithm is finite.
  const double radius = std::sqrt(-2.0 * std::log(1.0 - unit_interval(bits[0])));
  return radius * std::cos(2.0 * std::numbers::pi * unit_interval(bits[1]));
}

double philox_uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t element) {
  return unit_interval(draw(seed, stream, element)[0]);
}

std::uint64_t stream_of(std::string_view name) {
  return xxh3(name);
}

}  // namespace pecan
