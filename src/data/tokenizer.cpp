#include <algorithm>
#include <string>
#include <unordered_map>

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <pecan/core/file_system.hpp>
#include <pecan/core/hash.hpp>
#include <pecan/core/text.hpp>

#include <pecan/data/tokenizer.hpp>

#include "data/output_file.hpp"

namespace pecan::data {
namespace {

/// SentencePiece's stand-in for a space, U+2581.
constexpr std::string_view kSpace = "\xE2\x96\x81";
/// The trainer silently skips sentences above 4192 bytes.
constexpr std::size_t kTrainingChunkBytes = 4000;
constexpr std::size_t kEncodingChunkBytes = 4096;
/// What SentencePiece is given at once: it takes about two hundred bytes of memory for each.
constexpr std::size_t kMaxEncodingBytes = 8'000'000;
/// Bytes in words longer than a chunk that the trainer is given: it keeps suffixes of them all.
constexpr std::size_t kMaxLongWordBytes = 8'000'000;

/// Position of the first space at or after `from` that follows another character and does not end
/// the text.
std::size_t find_cut(std::string_view text, std::size_t from) {
  for (std::size_t i = std::max<std::size_t>(from, 1); i + 1 < text.size(); ++i) {
    if (text[i] == ' ' && text[i - 1] != ' ') return i;
  }
  return std::string_view::npos;
}

/// Feeds documents to the trainer in chunks of a line or less. No token spans lines: byte fallback
/// encodes line breaks.
class ChunkIterator : public sentencepiece::SentenceIterator {
 public:
  explicit ChunkIterator(std::span<const std::string_view> documents) : documents_(documents) {
    Next();
  }
  bool done() const override { return done_; }
  const std::string& value() const override { return value_; }
  sentencepiece::util::Status status() const override { return {}; }
  void Next() override {
    value_.clear();
    while (value_.empty()) {
      PECAN_VALIDATE(long_word_bytes_ <= kMaxLongWordBytes,
                     DataError,
                     "more than {} bytes of the text stand in words of over {} bytes, which the "
                     "tokenizer's training keeps in memory whole; give a tokenizer with "
                     "--tokenizer, train on less text with --tokenizer-train-bytes, or break long "
                     "lines at spaces",
                     kMaxLongWordBytes,
                     kTrainingChunkBytes);
      if (rest_.empty()) {
        if (next_document_ == documents_.size()) {
          done_ = true;
          return;
        }
        rest_ = documents_[next_document_++];
        continue;
      }
      const std::size_t line_end = std::min(rest_.find('\n'), rest_.size());
      const std::size_t chunk_end = end_of_chunk(rest_.substr(0, line_end));
      value_ = rest_.substr(0, chunk_end);
      rest_.remove_prefix(std::min(
          chunk_end + (chunk_end == line_end || rest_[chunk_end] == ' ' ? 1 : 0), rest_.size()));
    }
  }

 private:
  /// At a space (which the next chunk gets back as the usual leading space) if there is one, else
  /// between two characters.
  std::size_t end_of_chunk(std::string_view line) {
    if (line.size() <= kTrainingChunkBytes) return line.size();
    const std::size_t space = line.substr(0, kTrainingChunkBytes).rfind(' ');
    if (space != std::string_view::npos && space > 0) return space;
    std::size_t end = kTrainingChunkBytes;
    while (!starts_character(line[end])) --end;
    long_word_bytes_ += end;
    return end;
  }

  std::span<const std::string_view> documents_;
  std::size_t next_document_ = 0;
  std::string_view rest_;
  std::string value_;
  std::size_t long_word_bytes_ = 0;
  bool done_ = false;
};

}  // namespace

struct Tokenizer::Model {
  sentencepiece::SentencePieceProcessor processor;
  std::string bytes;
  bool splits_at_spaces =
      false;  ///< encoding the parts between cuts gives the encoding of the whole

  void encode(std::string_view text, std::vector<std::int32_t>& ids) const {
    std::vector<int> part;
    const auto status = processor.Encode(text, &part);
    PECAN_VALIDATE(status.ok(),
                   DataError,
                   "the tokenizer cannot encode a text of {} bytes: {}; check that it is UTF-8",
                   text.size(),
                   status.ToString());
    ids.insert(ids.end(), part.begin(), part.end());
  }

  /// No piece goes on over a space, and a text gets a leading space of its own.
  [[nodiscard]] bool check_splits_at_spaces() const {
    for (int id = 0; id < processor.GetPieceSize(); ++id) {
      std::string_view piece = processor.IdToPiece(id);
      while (piece.starts_with(kSpace)) piece.remove_prefix(kSpace.size());
      if (piece.find(kSpace) != std::string_view::npos) return false;
    }
    std::vector<std::int32_t> whole;
    std::vector<std::int32_t> parts;
    encode("a  b c", whole);
    for (const char* part : {"a", " b", "c"}) encode(part, parts);
    return whole == parts;
  }
};

Tokenizer::Tokenizer(std::unique_ptr<Model> model) : model_(std::move(model)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::load(const std::string& path) {
  Result<std::string> bytes = read_text(*make_posix_file_system(), path);
  require(bytes.status());
  return from_bytes(std::move(bytes).value(), path);
}

Tokenizer Tokenizer::from_bytes(std::string bytes, const std::string& name) {
  auto model = std::make_unique<Model>();
  const auto status = model->processor.LoadFromSerializedProto(bytes);
  PECAN_VALIDATE(status.ok() && model->processor.GetPieceSize() > 0,
                 DataError,
                 "{} ({} bytes) is not a SentencePiece model: {}; give a tokenizer.model file",
                 name,
                 bytes.size(),
                 status.ToString());
  PECAN_VALIDATE(model->processor.eos_id() >= 0,
                 DataError,
                 "{}: the tokenizer has no </s>, which ends documents; train it with an eos id",
                 name);
  model->bytes = std::move(bytes);
  model->splits_at_spaces = model->check_splits_at_spaces();
  return Tokenizer(std::move(model));
}

Tokenizer Tokenizer::train(std::span<const std::string_view> documents, int vocab_size) {
  ChunkIterator chunks(documents);
  PECAN_VALIDATE(!chunks.done(),
                 DataError,
                 "there is no text to train a tokenizer on; give documents with text");
  const std::unordered_map<std::string, std::string> settings{
      {"vocab_size", std::to_string(vocab_size)},
      {"model_type", "bpe"},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"split_digits", "true"},
      {"character_coverage", "0.9999"},
      {"num_threads", "1"},
      {"minloglevel", "2"},
  };
  std::string bytes;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &chunks, &bytes);
  PECAN_VALIDATE(status.ok(),
                 DataError,
                 "a tokenizer of {} entries cannot be trained on this text: {}; use a vocabulary "
                 "that is larger than its "
                 "alphabet plus 259 and smaller than its words allow, or more text",
                 vocab_size,
                 status.ToString());
  return from_bytes(std::move(bytes), "the trained tokenizer");
}

int Tokenizer::vocab_size() const {
  return model_->processor.GetPieceSize();
}

std::int32_t Tokenizer::end_of_document() const {
  return model_->processor.eos_id();
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  const std::size_t size = text.size();
  const auto encode_at_once = [&](std::string_view stretch) {
    PECAN_VALIDATE(stretch.size() <= kMaxEncodingBytes,
                   DataError,
                   "{} bytes from byte {} of a document have no space at which they could be cut, "
                   "and the tokenizer takes at most {} bytes at once; break long lines, or leave "
                   "out what is not text",
                   stretch.size(),
                   size - text.size(),
                   kMaxEncodingBytes);
    model_->encode(stretch, ids);
  };
  while (model_->splits_at_spaces && text.size() > kEncodingChunkBytes) {
    const std::size_t cut = find_cut(text, kEncodingChunkBytes);
    if (cut == std::string_view::npos) break;
    encode_at_once(text.substr(0, cut));
    text.remove_prefix(cut + 1);  // encoding adds the space again
  }
  encode_at_once(text);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  for (const std::int32_t id : ids) {
    PECAN_VALIDATE(id >= 0 && id < vocab_size(),
                   DataError,
                   "token id {} is outside the tokenizer's vocabulary of {}; use the tokenizer "
                   "that the text was encoded with",
                   id,
                   vocab_size());
  }
  std::string text;
  const auto status = model_->processor.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
  PECAN_VALIDATE(status.ok(),
                 DataError,
                 "the tokenizer cannot decode {} ids: {}; check that the ids are its own",
                 ids.size(),
                 status.ToString());
  return text;
}

const std::string& Tokenizer::bytes() const {
  return model_->bytes;
}

std::string Tokenizer::xxh3() const {
  return to_hex(pecan::xxh3(std::string_view(model_->bytes)));
}

}  // namespace pecan::data
