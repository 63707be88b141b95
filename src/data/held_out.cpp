#include <algorithm>

#include <pecan/data/held_out.hpp>

namespace pecan::data {

HeldOutSet::HeldOutSet(const IndexedDataset& dataset, SequenceRange range, int seq_length)
    : dataset_(&dataset),
      first_token_(num_tokens_of(dataset, {0, range.first})),
      num_tokens_(num_tokens_of(dataset, range)),
      seq_length_(seq_length) {
  PECAN_EXPECTS(seq_length >= 1);
  PECAN_VALIDATE(num_tokens_ >= 2,
                 DataError,
                 "{}: {} held-out tokens are too few to predict one from another; hold out more "
                 "documents",
                 dataset.prefix(),
                 num_tokens_);
}

std::int64_t HeldOutSet::num_windows() const {
  return (num_predicted_tokens() + seq_length_ - 1) / seq_length_;
}

std::int64_t HeldOutSet::windows_per_rank(int num_ranks) const {
  return (num_windows() + num_ranks - 1) / num_ranks;
}

void HeldOutSet::read(std::int64_t window,
                      std::span<std::int32_t> tokens,
                      std::span<std::int32_t> labels,
                      std::span<float> mask) const {
  const auto length = static_cast<std::size_t>(seq_length_);
  PECAN_EXPECTS(window >= 0 && tokens.size() == length && labels.size() == length &&
                mask.size() == length);
  std::fill(tokens.begin(), tokens.end(), 0);
  std::fill(labels.begin(), labels.end(), 0);
  std::fill(mask.begin(), mask.end(), 0.0f);
  const std::int64_t first = window * seq_length_;
  const auto predicted = static_cast<std::size_t>(
      std::clamp<std::int64_t>(num_predicted_tokens() - first, 0, seq_length_));
  if (predicted == 0) return;
  dataset_->read(first_token_ + first, tokens.first(predicted));
  dataset_->read(first_token_ + first + 1, labels.first(predicted));
  std::fill_n(mask.begin(), predicted, 1.0f);
}

}  // namespace pecan::data
