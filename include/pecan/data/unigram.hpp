#pragma once
/// What a model that knows only how often each token occurs would reach: the baseline of a loss
/// curve.

#include <optional>

#include <pecan/data/indexed_dataset.hpp>

namespace pecan::data {

struct UnigramBaseline {
  double nll_per_token = 0;             ///< nats
  std::optional<double> bits_per_byte;  ///< absent where the held-out set has no PREFIX.json
};

/// Probabilities (count + 1) / (tokens + vocab_size) from `train`, measured on the tokens of
/// `held_out` that HeldOutSet predicts. DataError for ids outside the vocabulary. Cost: one pass
/// over both sets.
[[nodiscard]] UnigramBaseline unigram_baseline(const IndexedDataset& train,
                                               const IndexedDataset& held_out,
                                               int vocab_size);

}  // namespace pecan::data
