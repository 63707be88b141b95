#include <limits>

#include <nlohmann/json.hpp>

#include <pecan/core/file_system.hpp>
#include <pecan/core/text.hpp>

#include <pecan/data/indexed_dataset.hpp>

#include "data/mapped_file.hpp"
#include "data/output_file.hpp"

namespace pecan::data {
namespace {

// The index, all little-endian and unaligned:
//   magic (9) | u64 version | u8 token type | u64 S | u64 D | i32 length[S] | i64 start_bytes[S] |
//   i64 document_end[D]
constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr std::uint64_t kVersion = 1;
constexpr std::uint64_t kVersionOffset = 9;
constexpr std::uint64_t kTypeOffset = 17;
constexpr std::uint64_t kSequencesOffset = 18;
constexpr std::uint64_t kDocumentsOffset = 26;
constexpr std::uint64_t kHeaderBytes = 34;
constexpr std::string_view kRemedy =
    "write the dataset again with pecan-data, or copy both files again";

std::uint64_t length_offset(std::int64_t sequence) {
  return kHeaderBytes + 4 * static_cast<std::uint64_t>(sequence);
}
std::uint64_t start_offset(std::int64_t num_sequences, std::int64_t sequence) {
  return length_offset(num_sequences) + 8 * static_cast<std::uint64_t>(sequence);
}
std::uint64_t document_offset(std::int64_t num_sequences, std::int64_t document) {
  return start_offset(num_sequences, num_sequences) + 8 * static_cast<std::uint64_t>(document);
}

template <typename Stored>
void copy_tokens(const MappedFile& file, std::int64_t first, std::span<std::int32_t> out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::uint64_t offset = (static_cast<std::uint64_t>(first) + i) * sizeof(Stored);
    const auto token = static_cast<std::int64_t>(file.load<Stored>(offset));
    PECAN_VALIDATE(token >= 0 && token <= std::numeric_limits<std::int32_t>::max(),
                   DataError,
                   "{}: token {} at offset {} is not a token id (0 to 2147483647); {}",
                   file.path(),
                   token,
                   offset,
                   kRemedy);
    out[i] = static_cast<std::int32_t>(token);
  }
}

template <typename Stored>
void store_tokens(std::span<const std::int32_t> tokens, std::vector<std::byte>& out) {
  out.resize(tokens.size() * sizeof(Stored));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto stored = static_cast<Stored>(tokens[i]);
    PECAN_VALIDATE(tokens[i] >= 0 && static_cast<std::int64_t>(stored) == tokens[i],
                   DataError,
                   "token id {} does not fit the dataset's element type of {} bytes; choose the "
                   "type by the size of the "
                   "vocabulary",
                   tokens[i],
                   sizeof(Stored));
    std::memcpy(out.data() + i * sizeof(Stored), &stored, sizeof stored);
  }
}

/// Calls body with a value of the stored type.
template <typename Body>
void with_stored_type(TokenType type, Body body) {
  switch (type) {
    case TokenType::kU8:
      return body(std::uint8_t{});
    case TokenType::kI8:
      return body(std::int8_t{});
    case TokenType::kI16:
      return body(std::int16_t{});
    case TokenType::kI32:
      return body(std::int32_t{});
    case TokenType::kI64:
      return body(std::int64_t{});
    case TokenType::kU16:
      return body(std::uint16_t{});
  }
  throw InternalError(fmt::format("token type {}", static_cast<int>(type)));
}

/// The non-negative integer at `key`; nlohmann's own conversion would round, wrap or overflow.
template <typename Int>
Int count_at(const nlohmann::json& json, const char* key, const std::string& path) {
  const nlohmann::json& value = json.at(key);
  PECAN_VALIDATE(
      value.is_number_unsigned() &&
          value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<Int>::max()),
      DataError,
      "{}: \"{}\" is {}, not an integer from 0 to {}; {}",
      path,
      key,
      value.is_primitive() ? shortened(value.dump()) : value.type_name(),
      std::numeric_limits<Int>::max(),
      kRemedy);
  return value.get<Int>();
}

std::optional<DatasetInfo> read_info(const std::string& path) {
  const std::unique_ptr<FileSystem> fs = make_posix_file_system();
  if (!fs->exists(path)) return std::nullopt;
  const Result<std::string> text = read_text(*fs, path);
  require(text.status());
  constexpr int kMaxDepth = 8;
  PECAN_VALIDATE(!nests_deeper(text.value(), kMaxDepth),
                 DataError,
                 "{}: not the description of a dataset: nested more than {} levels deep; {}",
                 path,
                 kMaxDepth,
                 kRemedy);
  try {
    const nlohmann::json json = nlohmann::json::parse(text.value());
    return DatasetInfo{count_at<std::int64_t>(json, "bytes", path),
                       count_at<std::int64_t>(json, "documents", path),
                       count_at<std::int64_t>(json, "tokens", path),
                       json.at("tokenizer_xxh3").get<std::string>(),
                       count_at<int>(json, "vocab_size", path)};
  } catch (const nlohmann::json::exception& e) {
    throw DataError(fmt::format(
        "{}: not the description of a dataset: {}; {}", path, shortened(e.what()), kRemedy));
  }
}

std::string to_json(const DatasetInfo& info) {
  const nlohmann::ordered_json json{{"bytes", info.bytes},
                                    {"documents", info.documents},
                                    {"tokens", info.tokens},
                                    {"tokenizer_xxh3", info.tokenizer_xxh3},
                                    {"vocab_size", info.vocab_size}};
  return json.dump(2) + "\n";
}

}  // namespace

std::string_view name_of(TokenType type) {
  switch (type) {
    case TokenType::kU8:
      return "u8";
    case TokenType::kI8:
      return "i8";
    case TokenType::kI16:
      return "i16";
    case TokenType::kI32:
      return "i32";
    case TokenType::kI64:
      return "i64";
    case TokenType::kU16:
      return "u16";
  }
  throw InternalError(fmt::format("token type {}", static_cast<int>(type)));
}

std::size_t size_of(TokenType type) {
  std::size_t size = 0;
  with_stored_type(type, [&](auto stored) { size = sizeof stored; });
  return size;
}

TokenType token_type_for(int vocab_size) {
  return vocab_size < 65500 ? TokenType::kU16 : TokenType::kI32;
}

IndexedDataset::IndexedDataset(const std::string& prefix)
    : prefix_(prefix),
      index_(std::make_unique<MappedFile>(prefix + ".idx")),
      tokens_(std::make_unique<MappedFile>(prefix + ".bin")) {
  check_header();
  check_arrays();
  num_tokens_ = static_cast<std::int64_t>(tokens_->size() / size_of(type_));
  info_ = read_info(prefix + ".json");
  PECAN_VALIDATE(!info_ || (info_->documents == num_documents_ && info_->tokens == num_tokens_),
                 DataError,
                 "{}.json describes {} documents and {} tokens, but {}.idx holds {} and {}: they "
                 "belong to different "
                 "datasets; {}",
                 prefix,
                 info_->documents,
                 info_->tokens,
                 prefix,
                 num_documents_,
                 num_tokens_,
                 kRemedy);
}

IndexedDataset::~IndexedDataset() = default;
IndexedDataset::IndexedDataset(IndexedDataset&&) noexcept = default;
IndexedDataset& IndexedDataset::operator=(IndexedDataset&&) noexcept = default;

std::int64_t IndexedDataset::first_sequence(std::int64_t document) const {
  PECAN_EXPECTS(document >= 0 && document <= num_documents_);
  return index_->load<std::int64_t>(document_offset(num_sequences_, document));
}

void IndexedDataset::check_header() {
  const MappedFile& file = *index_;
  PECAN_VALIDATE(
      file.size() >= kHeaderBytes,
      DataError,
      "{}: {} bytes, shorter than the {} bytes of an index header: the file is truncated; {}",
      file.path(),
      file.size(),
      kHeaderBytes,
      kRemedy);
  PECAN_VALIDATE(file.text().starts_with(kMagic),
                 DataError,
                 "{}: the magic number at offset 0 is wrong: not a Megatron index; give the prefix "
                 "of a .bin/.idx pair",
                 file.path());
  const auto version = file.load<std::uint64_t>(kVersionOffset);
  PECAN_VALIDATE(version == kVersion,
                 DataError,
                 "{}: version {} at offset {}, but only {} is known; {}",
                 file.path(),
                 version,
                 kVersionOffset,
                 kVersion,
                 kRemedy);
  const auto type = file.load<std::uint8_t>(kTypeOffset);
  PECAN_VALIDATE(type != 6 && type != 7,
                 DataError,
                 "{}: element type {} at offset {} is floating point, so the set holds no token "
                 "ids; tokenize text instead",
                 file.path(),
                 type,
                 kTypeOffset);
  PECAN_VALIDATE(type >= 1 && type <= 8,
                 DataError,
                 "{}: element type {} at offset {} is not one of 1 to 8; {}",
                 file.path(),
                 type,
                 kTypeOffset,
                 kRemedy);
  type_ = static_cast<TokenType>(type);

  const auto sequences = file.load<std::uint64_t>(kSequencesOffset);
  const auto documents = file.load<std::uint64_t>(kDocumentsOffset);
  const std::uint64_t rest = file.size() - kHeaderBytes;
  const bool fits = sequences <= rest / 12 && documents <= (rest - 12 * sequences) / 8;
  PECAN_VALIDATE(fits,
                 DataError,
                 "{}: {} sequences (offset {}) and {} document boundaries (offset {}) need more "
                 "than the file's {} bytes: "
                 "the file is truncated or the counts are damaged; {}",
                 file.path(),
                 sequences,
                 kSequencesOffset,
                 documents,
                 kDocumentsOffset,
                 file.size(),
                 kRemedy);
  const std::uint64_t excess = rest - 12 * sequences - 8 * documents;
  PECAN_VALIDATE(excess == 0 || excess != sequences,
                 DataError,
                 "{}: {} bytes follow the document boundaries, one for each sequence, as in a "
                 "multimodal dataset, which "
                 "cannot be trained on; use a text dataset",
                 file.path(),
                 excess);
  PECAN_VALIDATE(excess == 0,
                 DataError,
                 "{}: {} bytes, but {} sequences and {} document boundaries need {}: the file or "
                 "its counts are damaged; {}",
                 file.path(),
                 file.size(),
                 sequences,
                 documents,
                 file.size() - excess,
                 kRemedy);
  PECAN_VALIDATE(documents >= 1,
                 DataError,
                 "{}: no document boundaries (offset {}), but even an empty set has one; {}",
                 file.path(),
                 kDocumentsOffset,
                 kRemedy);
  num_sequences_ = static_cast<std::int64_t>(sequences);
  num_documents_ = static_cast<std::int64_t>(documents) - 1;
}

void IndexedDataset::check_arrays() const {
  const MappedFile& file = *index_;
  const auto token_bytes = static_cast<std::int64_t>(size_of(type_));
  std::int64_t expected_start = 0;
  for (std::int64_t s = 0; s < num_sequences_; ++s) {
    const auto tokens = file.load<std::int32_t>(length_offset(s));
    PECAN_VALIDATE(tokens >= 0,
                   DataError,
                   "{}: length {} of sequence {} at offset {} is negative; {}",
                   file.path(),
                   tokens,
                   s,
                   length_offset(s),
                   kRemedy);
    const auto start_bytes = file.load<std::int64_t>(start_offset(num_sequences_, s));
    PECAN_VALIDATE(
        start_bytes == expected_start,
        DataError,
        "{}: sequence {} starts at byte {} (offset {}), but the one before ends at byte {}; {}",
        file.path(),
        s,
        start_bytes,
        start_offset(num_sequences_, s),
        expected_start,
        kRemedy);
    expected_start += token_bytes * tokens;
  }
  PECAN_VALIDATE(tokens_->size() == static_cast<std::uint64_t>(expected_start),
                 DataError,
                 "{}: {} bytes, but the sequences of {} need {}: one of the files is truncated or "
                 "of another dataset; {}",
                 tokens_->path(),
                 tokens_->size(),
                 file.path(),
                 expected_start,
                 kRemedy);
  std::int64_t previous = 0;
  for (std::int64_t d = 0; d <= num_documents_; ++d) {
    const std::uint64_t offset = document_offset(num_sequences_, d);
    const auto boundary = file.load<std::int64_t>(offset);
    PECAN_VALIDATE(boundary >= previous && boundary <= num_sequences_ && (d > 0 || boundary == 0) &&
                       (d < num_documents_ || boundary == num_sequences_),
                   DataError,
                   "{}: document boundary {} at offset {} is {}, but boundaries rise from 0 to the "
                   "{} sequences; {}",
                   file.path(),
                   d,
                   offset,
                   boundary,
                   num_sequences_,
                   kRemedy);
    previous = boundary;
  }
}

std::int32_t IndexedDataset::length(std::int64_t sequence) const {
  PECAN_EXPECTS(sequence >= 0 && sequence < num_sequences_);
  return index_->load<std::int32_t>(length_offset(sequence));
}

std::int64_t IndexedDataset::start(std::int64_t sequence) const {
  PECAN_EXPECTS(sequence >= 0 && sequence < num_sequences_);
  return index_->load<std::int64_t>(start_offset(num_sequences_, sequence)) /
         static_cast<std::int64_t>(size_of(type_));
}

void IndexedDataset::read(std::int64_t first, std::span<std::int32_t> out) const {
  PECAN_EXPECTS(first >= 0 && first + static_cast<std::int64_t>(out.size()) <= num_tokens_);
  with_stored_type(type_,
                   [&](auto stored) { copy_tokens<decltype(stored)>(*tokens_, first, out); });
}

IndexedDatasetWriter::IndexedDatasetWriter(FileSystem& fs,
                                           const std::string& prefix,
                                           TokenType type)
    : fs_(fs),
      prefix_(prefix),
      type_(type),
      tokens_(std::make_unique<OutputFile>(fs, prefix + ".bin")) {}

IndexedDatasetWriter::~IndexedDatasetWriter() = default;

void IndexedDatasetWriter::add_sequence(std::span<const std::int32_t> tokens) {
  PECAN_VALIDATE(
      tokens.size() <= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()),
      DataError,
      "a document of {} tokens is longer than the format's limit of 2147483647; split it",
      tokens.size());
  with_stored_type(type_, [&](auto stored) { store_tokens<decltype(stored)>(tokens, buffer_); });
  tokens_->append(buffer_);
  lengths_.push_back(static_cast<std::int32_t>(tokens.size()));
}

void IndexedDatasetWriter::end_document() {
  document_ends_.push_back(static_cast<std::int64_t>(lengths_.size()));
}

void IndexedDatasetWriter::finish(const std::optional<DatasetInfo>& info) {
  OutputFile index(fs_, prefix_ + ".idx");
  const auto append = [&](const auto& value) { index.append(std::as_bytes(std::span(&value, 1))); };
  index.append(std::as_bytes(std::span(kMagic)));
  append(kVersion);
  append(static_cast<std::uint8_t>(type_));
  append(static_cast<std::uint64_t>(lengths_.size()));
  append(static_cast<std::uint64_t>(document_ends_.size()));
  index.append(std::as_bytes(std::span(lengths_)));
  std::int64_t start_bytes = 0;
  for (const std::int32_t tokens : lengths_) {
    append(start_bytes);
    start_bytes += static_cast<std::int64_t>(size_of(type_)) * tokens;
  }
  index.append(std::as_bytes(std::span(document_ends_)));
  tokens_->commit();
  index.commit();
  if (info) require(write_text_atomically(fs_, prefix_ + ".json", to_json(*info)));
}

}  // namespace pecan::data
