#include "train/batches.hpp"

#include <algorithm>

#include <pecan/data/documents.hpp>
#include <pecan/data/tokenizer.hpp>

#include <pecan/train/plan.hpp>

namespace pecan::train {
namespace {

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

enum class Loss : std::uint8_t { kOfAll, kAsConfigured };

DocumentMarks marks_of(const config::DataConfig& data, Loss loss) {
  DocumentMarks marks{data.reset_attention_mask,
                      data.reset_position_ids,
                      loss == Loss::kAsConfigured && data.eod_mask_loss};
  if (marks.any())
    marks.end_of_document = data::Tokenizer::load(data.tokenizer_model).end_of_document();
  return marks;
}

ConstTensorView view_of_ids(const std::vector<std::int32_t>& ids) {
  return ids.empty() ? ConstTensorView() : const_view_of(std::span(ids));
}

}  // namespace

std::int64_t resolve_vocab_size(const config::Config& config) {
  if (config.model.vocab_size > 0) return config.model.vocab_size;
  PECAN_VALIDATE(!config.data.tokenizer_model.empty(),
                 ConfigError,
                 "the vocabulary size is not known: set model.vocab_size or data.tokenizer_model");
  return data::Tokenizer::load(config.data.tokenizer_model).vocab_size();
}

BatchMemory::BatchMemory(const model::ModelDims& dims, const DocumentMarks& marks)
    : length_(dims.sequence),
      dtype_(dims.dtype),
      marks_(marks),
      tokens_T_(std::size_t(dims.tokens())),
      labels_T_(std::size_t(dims.tokens())),
      positions_T_(marks.positions ? tokens_T_.size() : 0),
      starts_T_(marks.starts ? tokens_T_.size() : 0),
      mask_(std::size_t(dims.tokens())),
      mask_T_(device::cpu(), std::size_t(dims.tokens()) * size_of(dims.dtype)) {}

void BatchMemory::mark(std::int64_t row) {
  data::mark_documents(tokens(row),
                       marks_.end_of_document,
                       row_of(positions_T_, row),
                       row_of(starts_T_, row),
                       marks_.loss_mask ? mask(row) : std::span<float>());
}

model::Batch BatchMemory::view(Masked masked) {
  model::Batch batch{view_of_ids(tokens_T_),
                     view_of_ids(labels_T_),
                     {},
                     view_of_ids(positions_T_),
                     view_of_ids(starts_T_)};
  if (masked == Masked::kNo) return batch;
  const TensorView mask_T{mask_T_.data(), dtype_, Shape{std::int64_t(mask_.size())}};
  switch (dtype_) {
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
  batch.mask_T = mask_T;
  return batch;
}

DeviceBatch::DeviceBatch(device::Device device, const model::ModelDims& dims) {
  if (device.kind == device::DeviceKind::kCpu) return;
  const auto tokens = std::size_t(dims.tokens());
  for (device::Buffer* ids : {&tokens_T_, &labels_T_, &positions_T_, &starts_T_})
    *ids = device::Buffer(device, tokens * sizeof(std::int32_t));
  mask_T_ = device::Buffer(device, tokens * size_of(dims.dtype));
}

ConstTensorView DeviceBatch::upload(Context& ctx, ConstTensorView host, device::Buffer& memory) {
  if (host.data == nullptr) return host;
  const TensorView here{memory.data(), host.dtype, host.shape};
  device::upload(ctx.stream, host, here);
  return here;
}

model::Batch DeviceBatch::of(Context& ctx, const model::Batch& batch) {
  if (ctx.device.kind == device::DeviceKind::kCpu) return batch;
  model::Batch here = batch;
  here.tokens_T = upload(ctx, batch.tokens_T, tokens_T_);
  here.labels_T = upload(ctx, batch.labels_T, labels_T_);
  here.mask_T = upload(ctx, batch.mask_T, mask_T_);
  here.positions_T = upload(ctx, batch.positions_T, positions_T_);
  here.document_start_T = upload(ctx, batch.document_start_T, starts_T_);
  return here;
}

TrainBatches::TrainBatches(const config::Config& config,
                           const model::ModelDims& dims,
                           int dp,
                           int dp_rank,
                           const SkippedRanges& skipped)
    : dims_(dims),
      dp_rank_(dp_rank),
      skipped_(skipped),
      sampler_{config.training.micro_batch_size, config.training.global_batch_size, dp},
      marks_(marks_of(config.data, Loss::kAsConfigured)),
      samples_(config.data.data_path,
               config.data.split,
               data::Split::kTrain,
               config.training.seq_length,
               config.training.train_iters * config.training.global_batch_size,
               std::uint64_t(config.training.seed),
               dims.vocab),
      memory_(dims, marks_) {
  for (const data::IndexedDataset& dataset : samples_.datasets())
    check_vocabulary(dataset, dims.vocab);
}

model::Batch TrainBatches::load(std::int64_t consumed_samples, int micro) {
  for (int row = 0; row < sampler_.micro_batch_size; ++row) {
    const std::int64_t position =
        skipped_.position(consumed_samples, sampler_.sample_index(0, micro, dp_rank_, row));
    samples_.sample(position % samples_.num_samples(), memory_.tokens(row), memory_.labels(row));
    memory_.mark(row);
  }
  return memory_.view(marks_.loss_mask ? BatchMemory::Masked::kYes : BatchMemory::Masked::kNo);
}

std::int64_t TrainBatches::learned_tokens(std::int64_t consumed_samples) {
  std::int64_t learned = 0;
  for (int micro = 0; micro < sampler_.num_micro_steps(); ++micro) {
    (void)load(consumed_samples, micro);
    for (int row = 0; row < sampler_.micro_batch_size; ++row)
      learned += std::ranges::count(memory_.mask(row), 1.0F);
  }
  return learned;
}

bool ValidBatches::configured(const config::Config& config) {
  if (!config.data.valid_data_path.empty()) return true;
  return !config.data.split.empty() &&
         data::split_range(config.data.split, data::Split::kValid, 1'000'000'000).count > 0;
}

ValidBatches::ValidBatches(const config::Config& config,
                           const model::ModelDims& dims,
                           int dp,
                           int dp_rank)
    : dims_(dims), dp_(dp), dp_rank_(dp_rank), memory_(dims, marks_of(config.data, Loss::kOfAll)) {
  const int length = config.training.seq_length;
  if (!config.data.valid_data_path.empty()) {
    const data::IndexedDataset& dataset = datasets_.emplace_back(config.data.valid_data_path);
    sets_.emplace_back(dataset, data::all_sequences(dataset), length);
    if (dataset.info()) text_bytes_ = dataset.info()->bytes;
  } else {
    datasets_.reserve(config.data.data_path.size());
    for (const config::WeightedDataset& part : config.data.data_path) {
      const data::IndexedDataset& dataset = datasets_.emplace_back(part.prefix);
      sets_.emplace_back(
          dataset,
          data::split_range(config.data.split, data::Split::kValid, dataset.num_sequences()),
          length);
    }
  }
  for (const data::IndexedDataset& dataset : datasets_) check_vocabulary(dataset, dims.vocab);
}

int ValidBatches::num_batches() const {
  std::int64_t windows = 0;
  for (const data::HeldOutSet& set : sets_) windows += set.num_windows();
  const std::int64_t mine = (windows + dp_ - 1) / dp_;
  return int((mine + dims_.micro_batch - 1) / dims_.micro_batch);
}

std::int64_t ValidBatches::predicted_tokens() const {
  std::int64_t tokens = 0;
  for (const data::HeldOutSet& set : sets_) tokens += set.num_predicted_tokens();
  return tokens;
}

void ValidBatches::read(std::int64_t window, std::int64_t row) {
  std::size_t set = 0;
  while (set + 1 < sets_.size() && window >= sets_[set].num_windows())
    window -= sets_[set++].num_windows();
  sets_[set].read(window, memory_.tokens(row), memory_.labels(row), memory_.mask(row));
  const auto where = [&] { return fmt::format("{}: window {}", datasets_[set].prefix(), window); };
  data::check_ids(memory_.tokens(row), dims_.vocab, where());
  data::check_ids(memory_.labels(row), dims_.vocab, where());
}

model::Batch ValidBatches::load(int index) {
  for (std::int64_t row = 0; row < dims_.micro_batch; ++row) {
    read(data::HeldOutSet::window_of(index * dims_.micro_batch + row, dp_rank_, dp_), row);
    memory_.mark(row);
  }
  return memory_.view(BatchMemory::Masked::kYes);
}

}  // namespace pecan::train
