#pragma once
/// Text to token ids and back: SentencePiece.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/error.hpp>

namespace pecan::data {

/// A SentencePiece model. Move-only; const members are thread-safe.
class Tokenizer {
 public:
  /// Reads a model file; DataError if it cannot be read or is not a model.
  [[nodiscard]] static Tokenizer load(const std::string& path);
  /// From the bytes of a model file; `name` stands for it in errors.
  [[nodiscard]] static Tokenizer from_bytes(std::string bytes, const std::string& name);
  /// Trains byte-pair encoding with byte fallback on documents of valid UTF-8. decode(encode(x)) ==
  /// x for every text that has no U+2581. Deterministic: the same documents give the same bytes.
  /// DataError: too little text for `vocab_size`.
  [[nodiscard]] static Tokenizer train(std::span<const std::string_view> documents, int vocab_size);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  [[nodiscard]] int vocab_size() const;
  /// Id that ends a document: </s>.
  [[nodiscard]] std::int32_t end_of_document() const;
  /// Ids of a text, without end_of_document. Long texts are encoded in pieces (linear time) with
  /// the same result.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const;
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids) const;
  /// The model file.
  [[nodiscard]] const std::string& bytes() const;
  /// XXH3 of bytes(), 16 hexadecimal digits.
  [[nodiscard]] std::string xxh3() const;

 private:
  struct Model;
  explicit Tokenizer(std::unique_ptr<Model> model);
  std::unique_ptr<Model> model_;
};

}  // namespace pecan::data
