#include "train/batches.hpp"

#include <algorithm>

#include <pecan/data/tokenizer.hpp>

#include <pecan/train/plan.hpp>

namespace pecan::train {
namespace {

model::Batch as_batch(const std::vector<std::int32_t>& tokens_T,
                      const std::vector<std::int32_t>& labels_T,
                      ConstTensorView mask_T) {
  return {const_view_of(std::span(tokens_T)), const_view_of(std::span(labels_T)), mask_T};
}

/// A dataset without PREFIX.json may hold any ids. Those between the vocabulary and its padding
/// would even find a row of the embedding, and make the loss infinite.
void check_ids(const data::IndexedDataset& dataset,
               const std::vector<std::int32_t>& ids,
               std::int64_t vocab_size) {
  const auto highest = std::ranges::max_element(ids);
  PECAN_VALIDATE(
      highest == ids.end() || *highest < vocab_size,
      DataError,
      "{}.bin holds token {}, but the model's vocabulary has {} entries (0 to {}); use the "
      "tokenizer that the dataset was prepared with, or prepare it again",
      dataset.prefix(),
      *highest,
      vocab_size,
      vocab_size - 1);
}

/// The ids must be of the vocabulary that the model is built for; PREFIX.json says which it was.
void check_vocabulary(const data::IndexedDataset& dataset, std::int64_t vocab_size) {
  PECAN_VALIDATE(!dataset.info() || dataset.info()->vocab_size <= vocab_size,
                 DataError,
                 "{} was made with a vocabulary of {} entries, the model has {}; use the tokenizer "
                 "that the dataset was "
                 "prepared with, or prepare it again",
                 dataset.prefix(),
                 dataset.info()->vocab_size,
                 vocab_size);
}

}  // namespace

std::int64_t resolve_vocab_size(const config::Config& config) {
  if (config.model.vocab_size > 0) return config.model.vocab_size;
  PECAN_VALIDATE(!config.data.tokenizer_model.empty(),
                 ConfigError,
                 "the vocabulary size is not known: set model.vocab_size or data.tokenizer_model");
  return data::Tokenizer::load(config.data.tokenizer_model).vocab_size();
}

TrainBatches::TrainBatches(const config::Config& config,
                           const model::ModelDims& dims,
                           int dp,
                           int dp_rank)
    : dims_(dims),
      dp_rank_(dp_rank),
      sampler_{config.training.micro_batch_size, config.training.global_batch_size, dp},
      dataset_(config.data.data_path.empty() ? std::string() : config.data.data_path[0].prefix),
      samples_(dataset_,
               config.training.seq_length,
               config.training.train_iters * config.training.global_batch_size,
               std::uint64_t(config.training.seed)),
      tokens_T_(std::size_t(dims.tokens())),
      labels_T_(std::size_t(dims.tokens())) {
  check_vocabulary(dataset_, dims.vocab);
}

model::Batch TrainBatches::load(std::int64_t consumed_samples, int micro) {
  const std::size_t length = std::size_t(dims_.sequence);
  for (int row = 0; row < sampler_.micro_batch_size; ++row) {
    const std::size_t first = std::size_t(row) * length;
    samples_.sample(sampler_.sample_index(consumed_samples, micro, dp_rank_, row),
                    std::span(tokens_T_).subspan(first, length),
                    std::span(labels_T_).subspan(first, length));
  }
  check_ids(dataset_, tokens_T_, dims_.vocab);
  check_ids(dataset_, labels_T_, dims_.vocab);
  return as_batch(tokens_T_, labels_T_, {});
}

ValidBatches::ValidBatches(const config::Config& config,
                           const model::ModelDims& dims,
                           int dp,
                           int dp_rank)
    : dims_(dims),
      dp_(dp),
      dp_rank_(dp_rank),
      dataset_(config.data.valid_data_path),
      windows_(dataset_, config.training.seq_length),
      text_bytes_(dataset_.info() ? dataset_.info()->bytes : 0),
      tokens_T_(std::size_t(dims.tokens())),
      labels_T_(std::size_t(dims.tokens())),
      mask_(std::size_t(dims.tokens())),
      mask_T_(device::cpu(), std::size_t(dims.tokens()) * size_of(dims.dtype)) {
  check_vocabulary(dataset_, dims.vocab);
}

int ValidBatches::num_batches() const {
  const std::int64_t windows = windows_.windows_per_rank(dp_);
  return int((windows + dims_.micro_batch - 1) / dims_.micro_batch);
}

std::int64_t ValidBatches::predicted_tokens() const {
  return windows_.num_predicted_tokens();
}

model::Batch ValidBatches::load(int index) {
  const std::size_t length = std::size_t(dims_.sequence);
  for (std::int64_t row = 0; row < dims_.micro_batch; ++row) {
    const std::size_t first = std::size_t(row) * length;
    windows_.read(data::HeldOutSet::window_of(index * dims_.micro_batch + row, dp_rank_, dp_),
                  std::span(tokens_T_).subspan(first, length),
                  std::span(labels_T_).subspan(first, length),
                  std::span(mask_).subspan(first, length));
  }
  const TensorView mask_T{mask_T_.data(), dims_.dtype, Shape{dims_.tokens()}};
  switch (dims_.dtype) {
    case DType::kF64:
      std::ranges::copy(mask_, mask_T.as<double>().begin());
      break;
    case DType::kBF16:
      std::ranges::transform(
          mask_, mask_T.as<BFloat16>().begin(), [](float value) { return BFloat16(value); });
      break;
    default:
      std::ranges::copy(mask_, mask_T.as<float>().begin());
  }
  check_ids(dataset_, tokens_T_, dims_.vocab);
  check_ids(dataset_, labels_T_, dims_.vocab);
  return as_batch(tokens_T_, labels_T_, mask_T);
}

}  // namespace pecan::train
