#include <algorithm>
#include <limits>
#include <numeric>

#include <pecan/data/gpt_dataset.hpp>
#include <pecan/data/numpy_random.hpp>

namespace pecan::data {
namespace {

/// Appends `epochs` times the numbers of the range's sequences, shuffled together.
void append_epochs(SequenceRange range,
                   std::int64_t epochs,
                   NumpyRandomState& random,
                   std::vector<std::int32_t>& index) {
  const std::size_t begin = index.size();
  index.resize(begin + static_cast<std::size_t>(range.count * epochs));
  for (std::size_t i = begin; i < index.size(); ++i) {
    index[i] =
        static_cast<std::int32_t>(range.first + static_cast<std::int64_t>(i - begin) % range.count);
  }
  random.shuffle(std::span(index).subspan(begin));
}

}  // namespace

GptDataset::GptDataset(const IndexedDataset& dataset,
                       SequenceRange range,
                       int seq_length,
                       std::int64_t num_samples,
                       std::uint64_t seed)
    : dataset_(&dataset), seq_length_(seq_length) {
  const std::int64_t epoch_tokens = num_tokens_of(dataset, range);
  PECAN_VALIDATE(seq_length >= 1 && num_samples >= 1,
                 DataError,
                 "{} samples of {} tokens cannot be planned; ask for at least one of each",
                 num_samples,
                 seq_length);
  PECAN_VALIDATE(
      epoch_tokens >= 1,
      DataError,
      "{}: its sequences {} to {} hold no tokens; prepare it from text with documents, or "
      "give this share of data.split more",
      dataset.prefix(),
      range.first,
      range.first + range.count);
  PECAN_VALIDATE(
      seed <= std::numeric_limits<std::uint32_t>::max(),
      DataError,
      "seed {} does not fit the 32 bits that the data order is drawn from; use 0 to 4294967295",
      seed);
  PECAN_VALIDATE(dataset.num_sequences() <= std::numeric_limits<std::int32_t>::max() &&
                     num_samples <= std::numeric_limits<std::uint32_t>::max() / 2,
                 DataError,
                 "{}: {} sequences and {} samples are more than 32-bit indices hold; split the "
                 "dataset or the run",
                 dataset.prefix(),
                 dataset.num_sequences(),
                 num_samples);

  const std::int64_t needed_tokens = num_samples * seq_length + 1;
  num_epochs_ = (needed_tokens + epoch_tokens - 1) / epoch_tokens;
  // Where only a small part of the last epoch is needed, its documents would otherwise mostly be
  // drawn from the tail of one big shuffle; then it is shuffled on its own.
  const std::int64_t samples_before_last = ((num_epochs_ - 1) * epoch_tokens - 1) / seq_length;
  const std::int64_t samples_of_last = num_samples - samples_before_last;
  const std::int64_t epoch_samples = (epoch_tokens - 1) / seq_length;
  const bool separate_last =
      num_epochs_ > 1 &&
      samples_of_last < static_cast<std::int64_t>(0.80 * static_cast<double>(epoch_samples));

  NumpyRandomState random(static_cast<std::uint32_t>(seed));
  append_epochs(range, separate_last ? num_epochs_ - 1 : num_epochs_, random, document_index_);
  if (separate_last) append_epochs(range, 1, random, document_index_);

  const std::int64_t planned = (num_epochs_ * epoch_tokens - 1) / seq_length;
  build_sample_index(planned);

  shuffle_index_.resize(static_cast<std::size_t>(planned));
  std::iota(shuffle_index_.begin(), shuffle_index_.end(), std::uint32_t{0});
  const auto first_part = static_cast<std::size_t>(separate_last ? samples_before_last : planned);
  random.shuffle(std::span(shuffle_index_).first(first_part));
  random.shuffle(std::span(shuffle_index_).subspan(first_part));
}

void GptDataset::build_sample_index(std::int64_t num_samples) {
  sample_index_.reserve(static_cast<std::size_t>(num_samples) + 1);
  Start next{0, 0};
  sample_index_.push_back(next);
  for (std::int64_t i = 0; i < num_samples; ++i) {
    std::int64_t remaining = seq_length_ + 1;
    while (true) {
      const std::int64_t available =
          dataset_->length(document_index_[static_cast<std::size_t>(next.position)]) - next.offset;
      if (available >= remaining) break;
      remaining -= available;
      next = {next.position + 1, 0};
    }
    next.offset += remaining - 1;  // the last token of this sample is the first of the next
    sample_index_.push_back(next);
  }
}

void GptDataset::sample(std::int64_t i,
                        std::span<std::int32_t> tokens,
                        std::span<std::int32_t> labels) const {
  PECAN_EXPECTS(i >= 0 && i < num_samples());
  const auto length = static_cast<std::size_t>(seq_length_);
  PECAN_EXPECTS(tokens.size() == length && labels.size() == length);
  const std::size_t row = shuffle_index_[static_cast<std::size_t>(i)];
  std::int32_t last = 0;
  std::size_t done = 0;
  for (Start at = sample_index_[row];; at = {at.position + 1, 0}) {
    const std::int64_t sequence = document_index_[static_cast<std::size_t>(at.position)];
    const auto available = static_cast<std::size_t>(dataset_->length(sequence) - at.offset);
    const std::int64_t first = dataset_->start(sequence) + at.offset;
    const std::size_t count = std::min(available, length - done);
    dataset_->read(first, tokens.subspan(done, count));
    done += count;
    if (available > count) {
      dataset_->read(first + static_cast<std::int64_t>(count), std::span(&last, 1));
      break;
    }
  }
  std::copy(tokens.begin() + 1, tokens.end(), labels.begin());
  labels.back() = last;
}

}  // namespace pecan::data
