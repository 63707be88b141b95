#pragma once
/// Training samples in Megatron's order.

#include <cstdint>
#include <span>
#include <vector>

#include <pecan/data/indexed_dataset.hpp>
#include <pecan/data/split.hpp>

namespace pecan::data {

/// Fixed-length samples of a dataset: sequences in shuffled order are joined over as many epochs as
/// needed and cut into samples of seq_length + 1 tokens, each starting at the last token of the one
/// before; then the samples are shuffled. Determinism: the order depends on the lengths of the
/// sequences, seq_length, num_samples and seed only, and is bit-equal to that of Megatron-LM's
/// GPTDataset (conventions 2.3).
class GptDataset {
 public:
  /// Plans at least `num_samples` samples of the sequences of `range`. `dataset` must outlive this
  /// object. Keep num_samples the same when a run is resumed: the order depends on it. DataError:
  /// no tokens, num_samples < 1, a seed above 2^32 - 1.
  GptDataset(const IndexedDataset& dataset,
             SequenceRange range,
             int seq_length,
             std::int64_t num_samples,
             std::uint64_t seed);

  /// Samples planned: at least as many as asked for.
  [[nodiscard]] std::int64_t num_samples() const {
    return static_cast<std::int64_t>(shuffle_index_.size());
  }
  [[nodiscard]] std::int64_t num_epochs() const { return num_epochs_; }
  /// Copies sample i: seq_length tokens, and for each the token that follows it. Thread-safe.
  void sample(std::int64_t i, std::span<std::int32_t> tokens, std::span<std::int32_t> labels) const;

  /// Where a sample starts: a position in document_index and a token of that sequence.
  struct Start {
    std::int64_t position;
    std::int64_t offset;
    bool operator==(const Start&) const = default;
  };
  /// Megatron's three indices, for tests and tools.
  [[nodiscard]] std::span<const std::int32_t> document_index() const { return document_index_; }
  [[nodiscard]] std::span<const Start> sample_index() const { return sample_index_; }
  [[nodiscard]] std::span<const std::uint32_t> shuffle_index() const { return shuffle_index_; }

 private:
  void build_sample_index(std::int64_t num_samples);

  const IndexedDataset* dataset_;
  int seq_length_;
  std::int64_t num_epochs_ = 1;
  std::vector<std::int32_t> document_index_;
  std::vector<Start> sample_index_;  ///< one more than there are samples
  std::vector<std::uint32_t> shuffle_index_;
};

}  // namespace pecan::data
