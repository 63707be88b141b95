#pragma once
/// Held-out text cut into windows, for evaluation.

#include <cstdint>
#include <span>

#include <pecan/data/indexed_dataset.hpp>
#include <pecan/data/split.hpp>

namespace pecan::data {

/// The documents of a dataset, joined in order and cut into windows that overlap by one token, so
/// that every token but the very first is predicted exactly once.
class HeldOutSet {
 public:
  /// The sequences of `range`. `dataset` must outlive this object. DataError if they hold fewer
  /// than two tokens.
  HeldOutSet(const IndexedDataset& dataset, SequenceRange range, int seq_length);

  [[nodiscard]] std::int64_t num_windows() const;
  [[nodiscard]] std::int64_t num_predicted_tokens() const { return num_tokens_ - 1; }
  /// Windows that each of `num_ranks` ranks reads, equally many so that every rank enters every
  /// collective.
  [[nodiscard]] std::int64_t windows_per_rank(int num_ranks) const;
  /// The i-th window of a rank; may be past the last one.
  [[nodiscard]] static std::int64_t window_of(std::int64_t i, int rank, int num_ranks) {
    return i * num_ranks + rank;
  }
  /// Copies a window: seq_length tokens, the token after each, and 1 where that is to be predicted.
  /// Past the end of the text, and in windows past the last one, tokens and labels are 0 and the
  /// mask is 0.
  void read(std::int64_t window,
            std::span<std::int32_t> tokens,
            std::span<std::int32_t> labels,
            std::span<float> mask) const;

 private:
  const IndexedDataset* dataset_;
  std::int64_t first_token_;
  std::int64_t num_tokens_;
  int seq_length_;
};

}  // namespace pecan::data
