#include <array>
#include <charconv>
#include <cmath>

#include <pecan/data/split.hpp>

namespace pecan::data {
namespace {

constexpr std::array<std::string_view, 3> kNames{"train", "valid", "test"};

std::array<double, 3> parse_shares(std::string_view text) {
  std::array<double, 3> shares{1, 0, 0};
  if (text.empty()) return shares;
  shares = {};
  const char* at = text.data();
  const char* const end = at + text.size();
  double sum = 0;
  bool good = true;
  for (std::size_t i = 0; good; ++i) {
    good = i < shares.size();
    if (!good) break;
    const auto [next, error] = std::from_chars(at, end, shares[i]);
    good = error == std::errc{} && std::isfinite(shares[i]) && shares[i] >= 0 &&
           (next == end || *next == ',');
    sum += shares[i];
    if (!good || next == end) break;
    at = next + 1;
  }
  PECAN_VALIDATE(good && sum > 0,
                 ConfigError,
                 "the split \"{}\" is not a list of up to three shares; write one like 99,1,0",
                 text);
  for (double& share : shares) share /= sum;
  return shares;
}

}  // namespace

std::string_view name_of(Split split) {
  return kNames[static_cast<std::size_t>(split)];
}

Split split_from_name(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<Split>(i);
  }
  throw ConfigError(fmt::format("\"{}\" is no split; use train, valid or test", name));
}

std::int64_t num_tokens_of(const IndexedDataset& dataset, SequenceRange range) {
  const auto tokens_before = [&](std::int64_t sequence) {
    return sequence == dataset.num_sequences() ? dataset.num_tokens() : dataset.start(sequence);
  };
  return tokens_before(range.first + range.count) - tokens_before(range.first);
}

SequenceRange split_range(std::string_view shares, Split split, std::int64_t num_sequences) {
  const std::array<double, 3> parts = parse_shares(shares);
  // The order of these additions decides the last bit, and so the bound.
  double low = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(split); ++i) low += parts[i];
  const double high = low + parts[static_cast<std::size_t>(split)];
  const auto bound = [&](double share) {
    return static_cast<std::int64_t>(std::nearbyint(share * static_cast<double>(num_sequences)));
  };
  const std::int64_t first = bound(low);
  return {first, bound(high) - first};
}

}  // namespace pecan::data
