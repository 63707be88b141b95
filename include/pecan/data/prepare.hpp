#pragma once
/// Text files to datasets: what pecan-data does.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/data/indexed_dataset.hpp>

namespace pecan::data {

/// How an input file is cut into documents. Line breaks at both ends of a document, and empty
/// documents, are dropped.
enum class DocumentSeparator : std::uint8_t {
  kBlankLine,  ///< a line that holds nothing but white space
  kFormFeed,   ///< the character U+000C
  kFile,       ///< each file is one document
};
[[nodiscard]] std::string_view name_of(DocumentSeparator separator);
/// "blank-line", "form-feed" or "file"; ConfigError otherwise.
[[nodiscard]] DocumentSeparator document_separator_from_name(std::string_view name);

/// Cuts a text into documents, which are views of it.
[[nodiscard]] std::vector<std::string_view> split_documents(std::string_view text,
                                                            DocumentSeparator separator);
/// Whether a document belongs to the held-out set: by the hash of its text, so neither order nor
/// other documents matter, and equal documents stay together.
[[nodiscard]] bool is_held_out(std::string_view document, double percent);

struct PrepareOptions {
  std::vector<std::string> inputs;  ///< UTF-8 text files
  DocumentSeparator separator = DocumentSeparator::kBlankLine;
  std::string output;           ///< prefix of the files to write
  int vocab_size = 4096;        ///< of the tokenizer to train
  double held_out_percent = 5;  ///< of documents; above 0, below 100
  std::string tokenizer;        ///< existing model file; empty: train one on the training documents
  std::int64_t tokenizer_train_bytes = 100'000'000;  ///< at most so much text is used to train it
};
struct PrepareReport {
  DatasetInfo train;
  DatasetInfo valid;
};
/// Writes OUTPUT.tokenizer.model and OUTPUT_train, OUTPUT_valid .bin/.idx/.json. One sequence a
/// document, each ended by
/// </s>. Deterministic: equal input gives equal bytes. DataError: an input that cannot be read, is
/// not UTF-8 text or holds no document, an empty side of the split, output that exists, write
/// errors. On error nothing is left behind.
PrepareReport prepare(const PrepareOptions& options);

struct TokenizeOptions {
  std::vector<std::string> inputs;
  DocumentSeparator separator = DocumentSeparator::kBlankLine;
  std::string output;
  std::string tokenizer;
};
/// Writes all documents as one dataset with an existing tokenizer.
DatasetInfo tokenize(const TokenizeOptions& options);

/// Writes the sequences and documents of `inputs`, one dataset after the other, as one; its facts
/// are their sums where all have them and agree on the tokenizer, else only what the index tells.
/// DataError: element types that differ, output that exists, write errors.
DatasetInfo merge(const std::vector<std::string>& inputs, const std::string& output);

/// Facts about the dataset PREFIX, or about PREFIX_train and PREFIX_valid with the unigram
/// baseline, as JSON; with a tokenizer file also the beginning of the text.
[[nodiscard]] std::string inspect(const std::string& prefix, const std::string& tokenizer);

}  // namespace pecan::data
