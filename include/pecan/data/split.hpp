#pragma once
/// Shares of a dataset: which of its sequences are for training, evaluation and test.

#include <cstdint>
#include <string_view>

#include <pecan/data/indexed_dataset.hpp>

namespace pecan::data {

enum class Split : std::uint8_t { kTrain, kValid, kTest };
[[nodiscard]] std::string_view name_of(Split split);
/// "train", "valid" or "test"; ConfigError otherwise.
[[nodiscard]] Split split_from_name(std::string_view name);

/// Consecutive sequences of a dataset.
struct SequenceRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
  bool operator==(const SequenceRange&) const = default;
};
[[nodiscard]] inline SequenceRange all_sequences(const IndexedDataset& dataset) {
  return {0, dataset.num_sequences()};
}
/// Tokens of the sequences of `range`.
[[nodiscard]] std::int64_t num_tokens_of(const IndexedDataset& dataset, SequenceRange range);

/// The sequences of one share. `shares` are up to three numbers ("99,1,0"; empty: all for
/// training), normalised and summed up in doubles; a bound is its share of the sequences, rounded
/// half to even. Pure; ConfigError where `shares` is not such a list. Source: Megatron-LM's split
/// (conventions 2.3.1).
[[nodiscard]] SequenceRange split_range(std::string_view shares,
                                        Split split,
                                        std::int64_t num_sequences);

}  // namespace pecan::data
