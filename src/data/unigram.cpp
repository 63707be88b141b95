#include <algorithm>
#include <cmath>
#include <numbers>

#include <pecan/data/unigram.hpp>

namespace pecan::data {
namespace {

/// How often each id occurs from token `first` on.
std::vector<std::int64_t> count_tokens(const IndexedDataset& dataset,
                                       std::int64_t first,
                                       int vocab_size) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(vocab_size));
  std::vector<std::int32_t> chunk;
  for (std::int64_t at = first; at < dataset.num_tokens();
       at += static_cast<std::int64_t>(chunk.size())) {
    chunk.resize(
        static_cast<std::size_t>(std::min<std::int64_t>(1 << 16, dataset.num_tokens() - at)));
    dataset.read(at, chunk);
    for (const std::int32_t token : chunk) {
      PECAN_VALIDATE(token < vocab_size,
                     DataError,
                     "{}.bin: token id {} is outside the vocabulary of {}: the tokens were made "
                     "with another tokenizer; "
                     "prepare the dataset again",
                     dataset.prefix(),
                     token,
                     vocab_size);
      ++counts[static_cast<std::size_t>(token)];
    }
  }
  return counts;
}

}  // namespace

UnigramBaseline unigram_baseline(const IndexedDataset& train,
                                 const IndexedDataset& held_out,
                                 int vocab_size) {
  PECAN_VALIDATE(held_out.num_tokens() >= 2,
                 DataError,
                 "{}: {} tokens are too few to predict one from another; hold out more documents",
                 held_out.prefix(),
                 held_out.num_tokens());
  const std::vector<std::int64_t> seen = count_tokens(train, 0, vocab_size);
  const std::vector<std::int64_t> predicted = count_tokens(held_out, 1, vocab_size);
  const double log_total = std::log(static_cast<double>(train.num_tokens() + vocab_size));
  double nll = 0;
  for (std::size_t token = 0; token < seen.size(); ++token) {
    nll += static_cast<double>(predicted[token]) *
           (log_total - std::log(static_cast<double>(seen[token] + 1)));
  }
  UnigramBaseline baseline;
  baseline.nll_per_token = nll / static_cast<double>(held_out.num_tokens() - 1);
  if (held_out.info() && held_out.info()->bytes > 0) {
    baseline.bits_per_byte = nll / std::numbers::ln2 / static_cast<double>(held_out.info()->bytes);
  }
  return baseline;
}

}  // namespace pecan::data
