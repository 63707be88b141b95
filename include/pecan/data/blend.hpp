#pragma once
/// Training samples from one dataset or a weighted blend of several, in Megatron's order.

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include <pecan/config/config.hpp>

#include <pecan/data/gpt_dataset.hpp>

namespace pecan::data {

/// Samples of one share of each dataset, dealt by weight: sample t comes from the dataset whose
/// count so far lags most behind its weight. Determinism: the order depends on the datasets'
/// lengths, weights, split, seq_length, num_samples and seed only. Source: Megatron-LM's
/// BlendedDataset (conventions 2.3.2 and 2.3.10).
class BlendedDataset {
 public:
  /// Opens the datasets. Keep num_samples the same when a run is resumed. Ids outside [0,
  /// vocab_size) are refused when they are read; vocab_size 0: not checked. DataError: none given,
  /// more than 32767, and what IndexedDataset and GptDataset refuse; ConfigError: a bad split.
  BlendedDataset(std::span<const config::WeightedDataset> parts,
                 std::string_view split,
                 Split which,
                 int seq_length,
                 std::int64_t num_samples,
                 std::uint64_t seed,
                 std::int64_t vocab_size);

  /// Exactly what was asked for in a blend, at least that much of a single dataset.
  [[nodiscard]] std::int64_t num_samples() const;
  /// Copies sample i: seq_length tokens, and for each the token that follows it. DataError for an
  /// id outside the vocabulary. Thread-safe.
  void sample(std::int64_t i, std::span<std::int32_t> tokens, std::span<std::int32_t> labels) const;
  [[nodiscard]] std::span<const IndexedDataset> datasets() const { return datasets_; }

  /// Where sample i of a blend comes from.
  struct Source {
    std::int16_t dataset;
    std::int64_t sample;
    bool operator==(const Source&) const = default;
  };
  /// The order of a blend; empty for a single dataset.
  [[nodiscard]] std::span<const Source> order() const { return order_; }

 private:
  std::vector<IndexedDataset> datasets_;
  std::vector<GptDataset> samples_;
  std::vector<Source> order_;
  std::int64_t vocab_size_;
};

/// DataError naming `where` and the position of the first id outside [0, vocab_size).
void check_ids(std::span<const std::int32_t> ids, std::int64_t vocab_size, std::string_view where);

}  // namespace pecan::data
