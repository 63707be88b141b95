#pragma once
/// Micro-batches from the datasets of a run, as the model takes them.

#include <memory>
#include <vector>

#include <pecan/config/config.hpp>

#include <pecan/device/device.hpp>

#include <pecan/data/gpt_dataset.hpp>
#include <pecan/data/held_out.hpp>
#include <pecan/data/indexed_dataset.hpp>
#include <pecan/data/sampler.hpp>

#include <pecan/model/transformer.hpp>

namespace pecan::train {

/// Fills i32 tokens and labels and a mask for one rank. Position comes from consumed samples alone.
class TrainBatches {
 public:
  TrainBatches(const config::Config& config, const model::ModelDims& dims, int dp, int dp_rank);
  /// Micro-batch `micro` of the global batch that starts at `consumed_samples`.
  [[nodiscard]] model::Batch load(std::int64_t consumed_samples, int micro);

 private:
  const model::ModelDims& dims_;
  int dp_rank_;
  data::Sampler sampler_;
  data::IndexedDataset dataset_;
  data::GptDataset samples_;
  std::vector<std::int32_t> tokens_T_, labels_T_;
};

/// Windows of the held-out set: every token predicted once, the same number of forward passes on
/// every rank.
class ValidBatches {
 public:
  ValidBatches(const config::Config& config, const model::ModelDims& dims, int dp, int dp_rank);
  [[nodiscard]] int num_batches() const;
  [[nodiscard]] model::Batch load(int index);
  [[nodiscard]] std::int64_t predicted_tokens() const;
  /// Bytes of the held-out text; 0 where the dataset does not say (no PREFIX.json).
  [[nodiscard]] std::int64_t text_bytes() const { return text_bytes_; }

 private:
  const model::ModelDims& dims_;
  int dp_;
  int dp_rank_;
  data::IndexedDataset dataset_;
  data::HeldOutSet windows_;
  std::int64_t text_bytes_ = 0;
  std::vector<std::int32_t> tokens_T_, labels_T_;
  std::vector<float> mask_;
  device::Buffer mask_T_;  ///< in the model's dtype
};

}  // namespace pecan::train
