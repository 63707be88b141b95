#pragma once
/// Micro-batches from the datasets of a run, as the model takes them.

#include <span>
#include <vector>

#include <pecan/config/config.hpp>

#include <pecan/device/device.hpp>

#include <pecan/data/blend.hpp>
#include <pecan/data/held_out.hpp>
#include <pecan/data/indexed_dataset.hpp>
#include <pecan/data/sampler.hpp>

#include <pecan/model/transformer.hpp>

#include "train/skipped_data.hpp"

namespace pecan::train {

/// What data.reset_attention_mask, reset_position_ids and eod_mask_loss ask for.
struct DocumentMarks {
  bool starts = false;
  bool positions = false;
  bool loss_mask = false;
  std::int32_t end_of_document = -1;
  [[nodiscard]] bool any() const { return starts || positions || loss_mask; }
};

/// Memory of one micro-batch, B rows of S tokens.
class BatchMemory {
 public:
  BatchMemory(const model::ModelDims& dims, const DocumentMarks& marks);
  [[nodiscard]] std::span<std::int32_t> tokens(std::int64_t row) { return row_of(tokens_T_, row); }
  [[nodiscard]] std::span<std::int32_t> labels(std::int64_t row) { return row_of(labels_T_, row); }
  [[nodiscard]] std::span<float> mask(std::int64_t row) { return row_of(mask_, row); }
  /// Positions and starts of `row`'s documents, and its mask where the marks ask for one.
  void mark(std::int64_t row);
  enum class Masked : std::uint8_t { kNo, kYes };
  [[nodiscard]] model::Batch view(Masked masked);

 private:
  template <typename T>
  [[nodiscard]] std::span<T> row_of(std::vector<T>& all, std::int64_t row) {
    if (all.empty()) return {};
    return std::span(all).subspan(std::size_t(row * length_), std::size_t(length_));
  }
  std::int64_t length_;
  DType dtype_;
  DocumentMarks marks_;
  std::vector<std::int32_t> tokens_T_, labels_T_, positions_T_, starts_T_;
  std::vector<float> mask_;
  device::Buffer mask_T_;  ///< in the model's dtype
};

/// A micro-batch where the model computes: on the CPU what the host has, else a copy of it in
/// memory of the device.
class DeviceBatch {
 public:
  DeviceBatch(device::Device device, const model::ModelDims& dims);
  /// Valid until the next call; `batch` may change when it returns.
  [[nodiscard]] model::Batch of(Context& ctx, const model::Batch& batch);

 private:
  [[nodiscard]] ConstTensorView upload(Context& ctx, ConstTensorView host, device::Buffer& memory);

  device::Buffer tokens_T_, labels_T_, mask_T_, positions_T_, starts_T_;
};

/// Fills i32 tokens and labels and what marks documents for one rank. Position comes from consumed
/// samples and what is passed over alone. Behind the data of the planned training, where passing
/// over leads, the order begins anew.
class TrainBatches {
 public:
  /// `skipped` outlives the object and may grow.
  TrainBatches(const config::Config& config,
               const model::ModelDims& dims,
               int dp,
               int dp_rank,
               const SkippedRanges& skipped);
  /// Consumed samples after the global batch that starts at `consumed_samples`.
  [[nodiscard]] std::int64_t position_after(std::int64_t consumed_samples) const {
    return skipped_.position(consumed_samples, sampler_.global_batch_size - 1) + 1;
  }
  /// Micro-batch `micro` of the global batch that starts at `consumed_samples`.
  [[nodiscard]] model::Batch load(std::int64_t consumed_samples, int micro);
  /// Whether some tokens of a batch are not learned.
  [[nodiscard]] bool masks_tokens() const { return marks_.loss_mask; }
  /// Tokens that are learned, in this rank's micro-batches of that global batch.
  [[nodiscard]] std::int64_t learned_tokens(std::int64_t consumed_samples);

 private:
  const model::ModelDims& dims_;
  int dp_rank_;
  const SkippedRanges& skipped_;
  data::Sampler sampler_;
  DocumentMarks marks_;
  data::BlendedDataset samples_;
  BatchMemory memory_;
};

/// Windows of the held-out sets: every token predicted once, whatever eod_mask_loss says, and the
/// same number of forward passes on every rank.
class ValidBatches {
 public:
  /// Whether the configuration holds out text.
  [[nodiscard]] static bool configured(const config::Config& config);
  ValidBatches(const config::Config& config, const model::ModelDims& dims, int dp, int dp_rank);
  [[nodiscard]] int num_batches() const;
  [[nodiscard]] model::Batch load(int index);
  [[nodiscard]] std::int64_t predicted_tokens() const;
  /// Bytes of the held-out text; 0 where that is not known: without PREFIX.json, or for a part of a
  /// dataset.
  [[nodiscard]] std::int64_t text_bytes() const { return text_bytes_; }

 private:
  void read(std::int64_t window, std::int64_t row);

  const model::ModelDims& dims_;
  int dp_;
  int dp_rank_;
  std::vector<data::IndexedDataset> datasets_;
  std::vector<data::HeldOutSet> sets_;
  std::int64_t text_bytes_ = 0;
  BatchMemory memory_;
};

}  // namespace pecan::train
