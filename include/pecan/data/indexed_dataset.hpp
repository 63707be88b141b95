#pragma once
/// Megatron's indexed dataset: token ids in PREFIX.bin, their index in PREFIX.idx
/// (docs/formats/dataset.md).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/error.hpp>

namespace pecan {
class FileSystem;
}

namespace pecan::data {

class MappedFile;
class OutputFile;

/// Element type of the .bin file.
enum class TokenType : std::uint8_t {  // on-disk: never renumber
  kU8 = 1,
  kI8 = 2,
  kI16 = 3,
  kI32 = 4,
  kI64 = 5,
  kU16 = 8,
};
[[nodiscard]] std::string_view name_of(TokenType type);
[[nodiscard]] std::size_t size_of(TokenType type);
/// The type that Megatron's writers choose: u16 below 65500 entries, else i32.
[[nodiscard]] TokenType token_type_for(int vocab_size);

/// What is known of a dataset beside its tokens; PREFIX.json.
struct DatasetInfo {
  std::int64_t bytes = 0;  ///< UTF-8 bytes of the documents, without separators
  std::int64_t documents = 0;
  std::int64_t tokens = 0;     ///< end-of-document tokens included
  std::string tokenizer_xxh3;  ///< XXH3 of the tokenizer's file, 16 hexadecimal digits
  int vocab_size = 0;
  bool operator==(const DatasetInfo&) const = default;
};

/// Read-only view of a dataset, memory-mapped. Safe to read from several threads.
class IndexedDataset {
 public:
  /// Maps PREFIX.bin and PREFIX.idx and checks every field of the index, and PREFIX.json if there
  /// is one. DataError names the file, the offset and the value that is wrong. Cost: one pass over
  /// the index, none over the tokens.
  explicit IndexedDataset(const std::string& prefix);
  ~IndexedDataset();
  IndexedDataset(IndexedDataset&&) noexcept;
  IndexedDataset& operator=(IndexedDataset&&) noexcept;
  IndexedDataset(const IndexedDataset&) = delete;
  IndexedDataset& operator=(const IndexedDataset&) = delete;

  [[nodiscard]] const std::string& prefix() const { return prefix_; }
  [[nodiscard]] TokenType token_type() const { return type_; }
  [[nodiscard]] std::int64_t num_sequences() const { return num_sequences_; }
  [[nodiscard]] std::int64_t num_documents() const { return num_documents_; }
  [[nodiscard]] std::int64_t num_tokens() const { return num_tokens_; }
  /// First sequence of a document; that of num_documents() is num_sequences().
  [[nodiscard]] std::int64_t first_sequence(std::int64_t document) const;
  /// Tokens of a sequence; may be 0.
  [[nodiscard]] std::int32_t length(std::int64_t sequence) const;
  /// Tokens of all sequences before this one.
  [[nodiscard]] std::int64_t start(std::int64_t sequence) const;
  /// Copies out.size() tokens of the concatenation of all sequences, from token `first` on.
  /// DataError for a stored value that no i32 token id can be.
  void read(std::int64_t first, std::span<std::int32_t> out) const;
  /// Absent where another program wrote the dataset.
  [[nodiscard]] const std::optional<DatasetInfo>& info() const { return info_; }

 private:
  void check_header();
  void check_arrays() const;

  std::string prefix_;
  std::unique_ptr<MappedFile> index_;
  std::unique_ptr<MappedFile> tokens_;
  TokenType type_ = TokenType::kI32;
  std::int64_t num_sequences_ = 0;
  std::int64_t num_documents_ = 0;
  std::int64_t num_tokens_ = 0;
  std::optional<DatasetInfo> info_;
};

/// Writes a dataset. Nothing is visible under the final names before finish(); without it nothing
/// stays.
class IndexedDatasetWriter {
 public:
  IndexedDatasetWriter(FileSystem& fs, const std::string& prefix, TokenType type);
  ~IndexedDatasetWriter();
  IndexedDatasetWriter(const IndexedDatasetWriter&) = delete;
  IndexedDatasetWriter& operator=(const IndexedDatasetWriter&) = delete;
  /// Appends a sequence; DataError for ids that the element type cannot hold, and on write errors.
  void add_sequence(std::span<const std::int32_t> tokens);
  /// Ends a document after the sequences added so far.
  void end_document();
  /// Makes the files durable and gives them their names: .bin, then .idx, then .json where the
  /// facts are known.
  void finish(const std::optional<DatasetInfo>& info);

 private:
  FileSystem& fs_;
  std::string prefix_;
  TokenType type_;
  std::unique_ptr<OutputFile> tokens_;
  std::vector<std::int32_t> lengths_;
  std::vector<std::int64_t> document_ends_{0};
  std::vector<std::byte> buffer_;
};

}  // namespace pecan::data
