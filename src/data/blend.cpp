#include <algorithm>
#include <cmath>
#include <limits>

#include <pecan/data/blend.hpp>

namespace pecan::data {
namespace {

/// More than the share that a dataset will give: rounding must never leave a blend short.
constexpr double kSurplus = 1.005;

std::int64_t samples_wanted(std::int64_t num_samples, double weight) {
  return static_cast<std::int64_t>(
      std::ceil(std::ceil(static_cast<double>(num_samples) * weight) * kSurplus));
}

std::vector<BlendedDataset::Source> deal(std::span<const double> weights,
                                         std::int64_t num_samples) {
  std::vector<BlendedDataset::Source> order;
  order.reserve(static_cast<std::size_t>(num_samples));
  std::vector<std::int64_t> counts(weights.size(), 0);
  for (std::int64_t t = 0; t < num_samples; ++t) {
    const auto lag = [&](std::size_t i) {
      return weights[i] * static_cast<double>(std::max<std::int64_t>(t, 1)) -
             static_cast<double>(counts[i]);
    };
    std::size_t most = 0;
    for (std::size_t i = 1; i < weights.size(); ++i) {
      if (lag(i) > lag(most)) most = i;
    }
    order.push_back({static_cast<std::int16_t>(most), counts[most]++});
  }
  return order;
}

}  // namespace

BlendedDataset::BlendedDataset(std::span<const config::WeightedDataset> parts,
                               std::string_view split,
                               Split which,
                               int seq_length,
                               std::int64_t num_samples,
                               std::uint64_t seed,
                               std::int64_t vocab_size)
    : vocab_size_(vocab_size) {
  PECAN_VALIDATE(!parts.empty(),
                 DataError,
                 "there is no dataset to read; set data.data_path to the path of a .bin and .idx "
                 "without extension (pecan-data prepare makes them)");
  PECAN_VALIDATE(parts.size() <= std::numeric_limits<std::int16_t>::max(),
                 DataError,
                 "a blend of {} datasets is more than 32767; merge some (pecan-data merge)",
                 parts.size());
  double sum = 0;
  for (const config::WeightedDataset& part : parts) sum += part.weight;
  std::vector<double> weights;
  datasets_.reserve(parts.size());
  samples_.reserve(parts.size());
  for (const config::WeightedDataset& part : parts) {
    weights.push_back(part.weight / sum);
    const IndexedDataset& dataset = datasets_.emplace_back(part.prefix);
    const SequenceRange range = split_range(split, which, dataset.num_sequences());
    PECAN_VALIDATE(range.count > 0,
                   DataError,
                   "{}: the {} share of data.split={} holds none of its {} sequences; give it a "
                   "larger share, or a dataset of more documents",
                   part.prefix,
                   name_of(which),
                   split,
                   dataset.num_sequences());
    const std::int64_t wanted =
        parts.size() == 1 ? num_samples : samples_wanted(num_samples, weights.back());
    samples_.emplace_back(dataset, range, seq_length, wanted, seed);
  }
  if (parts.size() > 1) order_ = deal(weights, num_samples);
}

std::int64_t BlendedDataset::num_samples() const {
  return order_.empty() ? samples_[0].num_samples() : static_cast<std::int64_t>(order_.size());
}

void BlendedDataset::sample(std::int64_t i,
                            std::span<std::int32_t> tokens,
                            std::span<std::int32_t> labels) const {
  PECAN_EXPECTS(i >= 0 && i < num_samples());
  const Source source = order_.empty() ? Source{0, i} : order_[static_cast<std::size_t>(i)];
  const auto d = static_cast<std::size_t>(source.dataset);
  samples_[d].sample(source.sample, tokens, labels);
  if (vocab_size_ == 0) return;
  const auto where = [&] {
    return fmt::format("{}: sample {}", datasets_[d].prefix(), source.sample);
  };
  const auto outside = [&](std::int32_t id) { return id < 0 || id >= vocab_size_; };
  if (std::ranges::any_of(tokens, outside)) check_ids(tokens, vocab_size_, where());
  if (outside(labels.back())) check_ids(labels, vocab_size_, where());
}

void check_ids(std::span<const std::int32_t> ids, std::int64_t vocab_size, std::string_view where) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    PECAN_VALIDATE(
        ids[i] >= 0 && ids[i] < vocab_size,
        DataError,
        "{} holds token {} at position {}, but the vocabulary has {} entries (0 to {}); use "
        "the tokenizer that the dataset was made with, or prepare it again",
        where,
        ids[i],
        i,
        vocab_size,
        vocab_size - 1);
  }
}

}  // namespace pecan::data
