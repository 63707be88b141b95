#include <algorithm>
#include <deque>

#include <nlohmann/json.hpp>

#include <pecan/core/file_system.hpp>
#include <pecan/core/hash.hpp>
#include <pecan/core/text.hpp>

#include <pecan/data/prepare.hpp>
#include <pecan/data/tokenizer.hpp>
#include <pecan/data/unigram.hpp>

#include "data/mapped_file.hpp"
#include "data/output_file.hpp"

namespace pecan::data {
namespace {

/// Input files and the documents in them, in order.
struct Corpus {
  std::deque<MappedFile> files;
  std::vector<std::string_view> documents;
};

Corpus read_corpus(const std::vector<std::string>& inputs, DocumentSeparator separator) {
  Corpus corpus;
  PECAN_VALIDATE(!inputs.empty(), DataError, "no input files; name at least one UTF-8 text file");
  for (const std::string& input : inputs) {
    std::string_view text = corpus.files.emplace_back(input).text();
    PECAN_VALIDATE(!text.empty(), DataError, "{} is empty; give a file with text", input);
    const std::optional<std::size_t> invalid = find_invalid_utf8(text);
    PECAN_VALIDATE(!invalid,
                   DataError,
                   "{}: byte 0x{:02x} at offset {} is not UTF-8; convert the file, for example "
                   "with iconv -t UTF-8",
                   input,
                   static_cast<unsigned char>(text[*invalid]),
                   *invalid);
    const std::size_t zero = text.find('\0');
    PECAN_VALIDATE(zero == std::string_view::npos,
                   DataError,
                   "{}: a NUL character at offset {}: not a text file; give UTF-8 text",
                   input,
                   zero);
    if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // a byte order mark is not text
    const std::vector<std::string_view> documents = split_documents(text, separator);
    corpus.documents.insert(corpus.documents.end(), documents.begin(), documents.end());
  }
  PECAN_VALIDATE(
      !corpus.documents.empty(),
      DataError,
      "the {} input files hold no document (separator: {}), only white space; give files with text",
      inputs.size(),
      name_of(separator));
  return corpus;
}

void require_absent(FileSystem& fs,
                    const std::vector<std::string>& prefixes,
                    const std::vector<std::string>& files) {
  const auto check = [&](const std::string& path) {
    PECAN_VALIDATE(!fs.exists(path),
                   DataError,
                   "{} exists and would be overwritten; remove it or choose another output",
                   path);
  };
  for (const std::string& path : files) check(path);
  for (const std::string& prefix : prefixes) {
    for (const char* extension : {".bin", ".idx", ".json"}) check(prefix + extension);
  }
}

/// A dataset under construction, with the counts that describe it.
class DatasetBuilder {
 public:
  DatasetBuilder(FileSystem& fs, const std::string& prefix, const Tokenizer& tokenizer)
      : tokenizer_(tokenizer), writer_(fs, prefix, token_type_for(tokenizer.vocab_size())) {
    info_.tokenizer_xxh3 = tokenizer.xxh3();
    info_.vocab_size = tokenizer.vocab_size();
  }
  void add(std::string_view document) {
    std::vector<std::int32_t> ids = tokenizer_.encode(document);
    ids.push_back(tokenizer_.end_of_document());
    writer_.add_sequence(ids);
    writer_.end_document();
    info_.bytes += static_cast<std::int64_t>(document.size());
    info_.tokens += static_cast<std::int64_t>(ids.size());
    ++info_.documents;
  }
  const DatasetInfo& finish() {
    writer_.finish(info_);
    return info_;
  }

 private:
  const Tokenizer& tokenizer_;
  IndexedDatasetWriter writer_;
  DatasetInfo info_;
};

/// At most `bytes` of `text`, of which no character is cut.
std::string_view first_bytes(std::string_view text, std::size_t bytes) {
  if (text.size() <= bytes) return text;
  while (bytes > 0 && !starts_character(text[bytes])) --bytes;
  return text.substr(0, bytes);
}

/// Documents of `bytes` in all, spread over the whole text by their hash, the last one cut; all if
/// they are fewer.
std::vector<std::string_view> sample_documents(const std::vector<std::string_view>& documents,
                                               std::int64_t bytes) {
  std::vector<std::pair<std::uint64_t, std::size_t>> by_hash;
  for (std::size_t i = 0; i < documents.size(); ++i) by_hash.emplace_back(xxh3(documents[i]), i);
  std::sort(by_hash.begin(), by_hash.end());
  std::vector<std::pair<std::size_t, std::string_view>> chosen;
  for (const auto& [hash, i] : by_hash) {
    if (bytes <= 0) break;
    const std::string_view document = first_bytes(documents[i], static_cast<std::size_t>(bytes));
    chosen.emplace_back(i, document);
    bytes -= static_cast<std::int64_t>(documents[i].size());
  }
  std::sort(chosen.begin(), chosen.end());
  std::vector<std::string_view> sample;
  for (const auto& [i, document] : chosen) sample.push_back(document);
  return sample;
}

nlohmann::ordered_json describe(const IndexedDataset& dataset, const Tokenizer* tokenizer) {
  nlohmann::ordered_json json{{"prefix", dataset.prefix()},
                              {"documents", dataset.num_documents()},
                              {"sequences", dataset.num_sequences()},
                              {"tokens", dataset.num_tokens()},
                              {"dtype", name_of(dataset.token_type())}};
  if (dataset.info()) {
    json["bytes"] = dataset.info()->bytes;
    json["vocab_size"] = dataset.info()->vocab_size;
    json["tokenizer_xxh3"] = dataset.info()->tokenizer_xxh3;
  }
  std::vector<std::int32_t> first(
      static_cast<std::size_t>(std::min<std::int64_t>(dataset.num_tokens(), 32)));
  dataset.read(0, first);
  json["first_tokens"] = first;
  if (tokenizer != nullptr) json["first_text"] = tokenizer->decode(first);
  return json;
}

}  // namespace

std::string_view name_of(DocumentSeparator separator) {
  switch (separator) {
    case DocumentSeparator::kBlankLine:
      return "blank-line";
    case DocumentSeparator::kFormFeed:
      return "form-feed";
    case DocumentSeparator::kFile:
      return "file";
  }
  throw InternalError(fmt::format("document separator {}", static_cast<int>(separator)));
}

DocumentSeparator document_separator_from_name(std::string_view name) {
  for (const auto separator :
       {DocumentSeparator::kBlankLine, DocumentSeparator::kFormFeed, DocumentSeparator::kFile}) {
    if (name == name_of(separator)) return separator;
  }
  throw ConfigError(fmt::format(
      "document separator \"{}\" is not known; use blank-line, form-feed or file", name));
}

std::vector<std::string_view> split_documents(std::string_view text, DocumentSeparator separator) {
  std::vector<std::string_view> documents;
  const auto add = [&](std::size_t begin, std::size_t end) {
    std::string_view document = text.substr(begin, end - begin);
    if (document.find_first_not_of(" \t\r\n\f") == std::string_view::npos) return;
    document.remove_prefix(document.find_first_not_of("\r\n"));
    documents.push_back(document.substr(0, document.find_last_not_of("\r\n") + 1));
  };
  std::size_t begin = 0;
  if (separator == DocumentSeparator::kFormFeed) {
    for (std::size_t end; (end = text.find('\f', begin)) != std::string_view::npos; begin = end + 1)
      add(begin, end);
  } else if (separator == DocumentSeparator::kBlankLine) {
    for (std::size_t line = 0; line < text.size();) {
      const std::size_t line_end = std::min(text.find('\n', line), text.size());
      if (text.substr(line, line_end - line).find_first_not_of(" \t\r\f") ==
          std::string_view::npos) {
        add(begin, line);
        begin = line_end;
      }
      line = line_end + 1;
    }
  }
  add(begin, text.size());
  return documents;
}

bool is_held_out(std::string_view document, double percent) {
  constexpr std::uint64_t kBuckets = 1'000'000;
  return static_cast<double>(xxh3(document) % kBuckets) <
         percent / 100 * static_cast<double>(kBuckets);
}

PrepareReport prepare(const PrepareOptions& options) {
  PECAN_VALIDATE(
      options.held_out_percent > 0 && options.held_out_percent < 100,
      ConfigError,
      "{} percent of the documents cannot be held out; use a number above 0 and below 100",
      options.held_out_percent);
  PECAN_VALIDATE(options.tokenizer_train_bytes > 0,
                 ConfigError,
                 "a tokenizer cannot be trained on {} bytes; use a number above 0",
                 options.tokenizer_train_bytes);
  const std::unique_ptr<FileSystem> fs = make_posix_file_system();
  const std::string model_path = options.output + ".tokenizer.model";
  const std::string train_prefix = options.output + "_train";
  const std::string valid_prefix = options.output + "_valid";
  require_absent(*fs, {train_prefix, valid_prefix}, {model_path});

  const Corpus corpus = read_corpus(options.inputs, options.separator);
  std::vector<std::string_view> train_documents;
  for (const std::string_view document : corpus.documents) {
    if (!is_held_out(document, options.held_out_percent)) train_documents.push_back(document);
  }
  PECAN_VALIDATE(train_documents.size() < corpus.documents.size(),
                 DataError,
                 "none of the {} documents (separator: {}) fell into the held-out {} percent; "
                 "raise --held-out, or cut the "
                 "text into more documents",
                 corpus.documents.size(),
                 name_of(options.separator),
                 options.held_out_percent);
  PECAN_VALIDATE(!train_documents.empty(),
                 DataError,
                 "all of the {} documents (separator: {}) fell into the held-out {} percent; lower "
                 "--held-out, or cut the "
                 "text into more documents",
                 corpus.documents.size(),
                 name_of(options.separator),
                 options.held_out_percent);

  const Tokenizer tokenizer =
      options.tokenizer.empty()
          ? Tokenizer::train(sample_documents(train_documents, options.tokenizer_train_bytes),
                             options.vocab_size)
          : Tokenizer::load(options.tokenizer);
  require(fs->create_directories(folder_of(options.output)));
  OutputFile model(*fs, model_path);
  model.append(std::as_bytes(std::span(tokenizer.bytes())));
  DatasetBuilder train(*fs, train_prefix, tokenizer);
  DatasetBuilder valid(*fs, valid_prefix, tokenizer);
  for (const std::string_view document : corpus.documents) {
    (is_held_out(document, options.held_out_percent) ? valid : train).add(document);
  }
  model.commit();
  return {train.finish(), valid.finish()};
}

DatasetInfo merge(const std::vector<std::string>& inputs, const std::string& output) {
  const std::unique_ptr<FileSystem> fs = make_posix_file_system();
  require_absent(*fs, {output}, {});
  PECAN_VALIDATE(!inputs.empty(), ConfigError, "there is nothing to merge; name datasets");
  std::vector<IndexedDataset> datasets;
  for (const std::string& input : inputs) {
    const IndexedDataset& dataset = datasets.emplace_back(input);
    PECAN_VALIDATE(dataset.token_type() == datasets[0].token_type(),
                   DataError,
                   "{} holds tokens of type {}, but {} of {}: one file has one type; tokenize the "
                   "text again with one tokenizer",
                   input,
                   name_of(dataset.token_type()),
                   inputs[0],
                   name_of(datasets[0].token_type()));
  }
  require(fs->create_directories(folder_of(output)));
  IndexedDatasetWriter writer(*fs, output, datasets[0].token_type());
  DatasetInfo sums;
  bool known = true;
  for (const IndexedDataset& dataset : datasets) {
    for (std::int64_t d = 0; d < dataset.num_documents(); ++d) {
      for (std::int64_t s = dataset.first_sequence(d); s < dataset.first_sequence(d + 1); ++s) {
        std::vector<std::int32_t> tokens(static_cast<std::size_t>(dataset.length(s)));
        dataset.read(dataset.start(s), tokens);
        writer.add_sequence(tokens);
      }
      writer.end_document();
    }
    sums.documents += dataset.num_documents();
    sums.tokens += dataset.num_tokens();
    const std::optional<DatasetInfo>& info = dataset.info();
    known = known && info && datasets[0].info() &&
            info->tokenizer_xxh3 == datasets[0].info()->tokenizer_xxh3 &&
            info->vocab_size == datasets[0].info()->vocab_size;
    if (info) sums.bytes += info->bytes;
  }
  if (known) {
    sums.tokenizer_xxh3 = datasets[0].info()->tokenizer_xxh3;
    sums.vocab_size = datasets[0].info()->vocab_size;
  } else {
    sums.bytes = 0;
  }
  writer.finish(known ? std::optional(sums) : std::nullopt);
  return sums;
}

DatasetInfo tokenize(const TokenizeOptions& options) {
  const std::unique_ptr<FileSystem> fs = make_posix_file_system();
  require_absent(*fs, {options.output}, {});
  const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
  const Corpus corpus = read_corpus(options.inputs, options.separator);
  require(fs->create_directories(folder_of(options.output)));
  DatasetBuilder builder(*fs, options.output, tokenizer);
  for (const std::string_view document : corpus.documents) builder.add(document);
  return builder.finish();
}

std::string inspect(const std::string& prefix, const std::string& tokenizer_path) {
  const std::unique_ptr<FileSystem> fs = make_posix_file_system();
  std::optional<Tokenizer> tokenizer;
  if (!tokenizer_path.empty()) tokenizer = Tokenizer::load(tokenizer_path);
  const Tokenizer* decoder = tokenizer ? &*tokenizer : nullptr;
  nlohmann::ordered_json json;
  if (fs->exists(prefix + ".idx") || !fs->exists(prefix + "_train.idx")) {
    json["datasets"] = {describe(IndexedDataset(prefix), decoder)};
  } else {
    const IndexedDataset train(prefix + "_train");
    const IndexedDataset valid(prefix + "_valid");
    json["datasets"] = {describe(train, decoder), describe(valid, decoder)};
    if (train.info()) {
      const UnigramBaseline unigram = unigram_baseline(train, valid, train.info()->vocab_size);
      json["unigram"]["nll_per_token"] = unigram.nll_per_token;
      if (unigram.bits_per_byte) json["unigram"]["bits_per_byte"] = *unigram.bits_per_byte;
    }
  }
  // A token may be part of a character, which JSON cannot hold.
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace pecan::data
