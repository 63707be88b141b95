#include <map>
#include <random>
#include <set>

#include <nlohmann/json.hpp>

#include <pecan/core/hash.hpp>

#include <pecan/data/prepare.hpp>
#include <pecan/data/tokenizer.hpp>

#include "data_support.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::data {
namespace {

using Texts = std::vector<std::string>;

Texts split(std::string_view text, DocumentSeparator separator) {
  const auto views = split_documents(text, separator);
  return {views.begin(), views.end()};
}

/// `count` different documents of a few lines.
Texts make_documents(int count) {
  std::mt19937 random(2);
  Texts documents;
  for (int d = 0; d < count; ++d) {
    std::string text = fmt::format("document number {}", d);
    for (int w = 0; w < 60; ++w) {
      static const std::vector<std::string> kWords{
          "light", "darkness", "waters", "heaven", "earth", "evening", "morning", "day"};
      text += (w % 15 == 14 ? "\n" : " ") + kWords[random() % kWords.size()];
    }
    documents.push_back(text);
  }
  return documents;
}

std::string join(const Texts& documents, const std::string& separator) {
  std::string text;
  for (const std::string& document : documents) text += document + separator;
  return text;
}

std::map<std::string, std::string> files_in(const std::string& folder) {
  std::map<std::string, std::string> files;
  const auto entries = make_posix_file_system()->list(folder);
  for (const DirEntry& entry : entries.value()) {
    if (!entry.is_directory) files[entry.name] = test::read_file(folder + "/" + entry.name);
  }
  return files;
}

Texts decoded(const std::string& prefix, const Tokenizer& tokenizer) {
  const IndexedDataset dataset(prefix);
  Texts texts;
  for (std::int64_t s = 0; s < dataset.num_sequences(); ++s) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(dataset.length(s)));
    dataset.read(dataset.start(s), ids);
    CHECK(ids.back() == tokenizer.end_of_document());
    ids.pop_back();
    texts.push_back(tokenizer.decode(ids));
  }
  return texts;
}

PrepareOptions options(const pecan::test::TempDir& dir, const std::string& output) {
  PrepareOptions result;
  result.inputs = {dir / "text"};
  result.output = dir / output;
  result.vocab_size = 340;
  result.held_out_percent = 20;
  return result;
}

TEST_CASE("text is cut into documents at the separator", "[data]") {
  const std::string text = "\n\none\ntwo\n\n \t\r\nthree\r\n\r\n  four\n\n\n";
  CHECK(split(text, DocumentSeparator::kBlankLine) == Texts{"one\ntwo", "three", "  four"});
  CHECK(split("a\n\fb\f\f\n \fc", DocumentSeparator::kFormFeed) == Texts{"a", "b", "c"});
  CHECK(split("a\n\f\nb\n", DocumentSeparator::kBlankLine) == Texts{"a", "b"});
  CHECK(split("\na\n\nb\n", DocumentSeparator::kFile) == Texts{"a\n\nb"});
  CHECK(split("last line", DocumentSeparator::kBlankLine) == Texts{"last line"});
  for (const auto separator :
       {DocumentSeparator::kBlankLine, DocumentSeparator::kFormFeed, DocumentSeparator::kFile}) {
    CHECK(split("", separator).empty());
    CHECK(split(" \n\t\n\f\n", separator).empty());
    CHECK(document_separator_from_name(name_of(separator)) == separator);
  }
  CHECK_THROWS_AS(document_separator_from_name("comma"), ConfigError);
}

TEST_CASE("held-out documents are chosen by their text alone", "[data]") {
  int held_out = 0;
  for (int i = 0; i < 4000; ++i) {
    const std::string document = fmt::format("text {}", i);
    held_out += is_held_out(document, 10) ? 1 : 0;
    if (is_held_out(document, 10)) CHECK(is_held_out(document, 11));
  }
  CHECK(held_out > 300);
  CHECK(held_out < 500);
}

TEST_CASE("prepare keeps every document once, on the side that its hash says", "[data]") {
  const pecan::test::TempDir dir;
  const Texts documents = make_documents(60);
  test::write_file(dir / "text", "\xEF\xBB\xBF" + join(documents, "\n\n"));
  const PrepareReport report = prepare(options(dir, "out/set"));
  const Tokenizer tokenizer = Tokenizer::load(dir / "out/set.tokenizer.model");
  Texts train;
  Texts valid;
  std::int64_t valid_bytes = 0;
  for (const std::string& document : documents) {
    (is_held_out(document, 20) ? valid : train).push_back(document);
    if (is_held_out(document, 20)) valid_bytes += static_cast<std::int64_t>(document.size());
  }
  CHECK(decoded(dir / "out/set_train", tokenizer) == train);
  CHECK(decoded(dir / "out/set_valid", tokenizer) == valid);
  const IndexedDataset set(dir / "out/set_valid");
  CHECK(set.token_type() == TokenType::kU16);
  CHECK(*set.info() == report.valid);
  CHECK(report.valid.bytes == valid_bytes);
  CHECK(report.valid.vocab_size == 340);
  CHECK(report.valid.tokenizer_xxh3 ==
        to_hex(xxh3(test::read_file(dir / "out/set.tokenizer.model"))));
  CHECK(report.train.documents + report.valid.documents == 60);
}

TEST_CASE("equal input gives equal bytes, and the tokenizer sees training documents only",
          "[data]") {
  const pecan::test::TempDir dir;
  Texts documents = make_documents(60);
  test::write_file(dir / "text", join(documents, "\n\n"));
  (void)prepare(options(dir, "a/x"));
  (void)prepare(options(dir, "b/x"));
  const auto files = files_in(dir / "a");
  CHECK(files == files_in(dir / "b"));
  CHECK(files.size() == 7);

  for (std::string& document : documents) {
    // Another held-out text: found by trying endings until the hash agrees.
    if (!is_held_out(document, 20)) continue;
    for (int i = 0; !is_held_out(document, 20) || document.find("zebra") == std::string::npos;
         ++i) {
      document = fmt::format("zebra quagga {}", i);
    }
  }
  test::write_file(dir / "text", join(documents, "\n\n"));
  (void)prepare(options(dir, "c/x"));
  auto changed = files_in(dir / "c");
  CHECK(changed["x.tokenizer.model"] == files.at("x.tokenizer.model"));
  CHECK(changed["x_train.bin"] == files.at("x_train.bin"));
  CHECK(changed["x_valid.bin"] != files.at("x_valid.bin"));
}

TEST_CASE("files may be the documents, and an existing tokenizer may be used", "[data]") {
  const pecan::test::TempDir dir;
  const Texts documents = make_documents(40);
  test::write_file(dir / "text", join(documents, "\n\n"));
  (void)prepare(options(dir, "first"));

  PrepareOptions by_file = options(dir, "second");
  by_file.inputs.clear();
  by_file.separator = DocumentSeparator::kFile;
  by_file.tokenizer = dir / "first.tokenizer.model";
  for (std::size_t i = 0; i < documents.size(); ++i) {
    by_file.inputs.push_back(dir / fmt::format("doc{:02}", i));
    test::write_file(by_file.inputs.back(), documents[i] + "\n");
  }
  (void)prepare(by_file);
  for (const char* name :
       {".tokenizer.model", "_train.bin", "_train.idx", "_valid.bin", "_valid.json"}) {
    CHECK(test::read_file(dir / "second" + name) == test::read_file(dir / "first" + name));
  }

  TokenizeOptions all{.inputs = by_file.inputs,
                      .separator = DocumentSeparator::kFile,
                      .output = dir / "all",
                      .tokenizer = dir / "first.tokenizer.model"};
  CHECK(tokenize(all).documents == 40);
  CHECK(decoded(dir / "all", Tokenizer::load(all.tokenizer)) == documents);
  CHECK_THROWS_WITH(tokenize(all), Catch::Contains("all.bin exists"));
}

TEST_CASE("the text that trains the tokenizer can be limited", "[data]") {
  const pecan::test::TempDir dir;
  test::write_file(dir / "text", join(make_documents(60), "\n\n"));
  PrepareOptions limited = options(dir, "limited");
  limited.tokenizer_train_bytes = 4000;
  limited.vocab_size = 300;
  CHECK(prepare(limited).train.vocab_size == 300);
}

TEST_CASE("inspect shows both sides and the baseline", "[data]") {
  const pecan::test::TempDir dir;
  test::write_file(dir / "text", join(make_documents(60), "\n\n"));
  const PrepareReport report = prepare(options(dir, "set"));
  const auto json = nlohmann::json::parse(inspect(dir / "set", dir / "set.tokenizer.model"));
  CHECK(json.at("datasets").size() == 2);
  CHECK(json.at("datasets")[0].at("tokens") == report.train.tokens);
  CHECK(json.at("datasets")[1].at("documents") == report.valid.documents);
  CHECK(json.at("datasets")[0].at("dtype") == "u16");
  CHECK(json.at("datasets")[0].at("first_text").get<std::string>().starts_with("document number"));
  CHECK(json.at("unigram").at("nll_per_token").get<double>() > 1);
  CHECK(json.at("unigram").at("bits_per_byte").get<double>() < 8);
  const auto single = nlohmann::json::parse(inspect(dir / "set_train", ""));
  CHECK(single.at("datasets").size() == 1);
  CHECK_THROWS_WITH(inspect(dir / "absent", ""), Catch::Contains("absent.idx"));
}

TEST_CASE("unusable input and output are refused, and nothing is left behind", "[data]") {
  const pecan::test::TempDir dir;
  const std::string good = join(make_documents(60), "\n\n");
  const auto refusal = [&](const std::string& content, const PrepareOptions& with) {
    test::write_file(dir / "text", content);
    try {
      (void)prepare(with);
      return std::string();
    } catch (const Error& e) {
      return std::string(e.what());
    }
  };
  PrepareOptions base = options(dir, "set");
  CHECK_THAT(
      refusal(good + "\xC3(", base),
      Catch::Contains("byte 0xc3 at offset " + std::to_string(good.size()) + " is not UTF-8"));
  CHECK_THAT(refusal("", base), Catch::Contains("text is empty"));
  CHECK_THAT(refusal(" \n\n\t\n", base),
             Catch::Contains("hold no document (separator: blank-line)"));
  CHECK_THAT(refusal(std::string("a\0b", 3), base), Catch::Contains("a NUL character at offset 1"));
  PrepareOptions few = base;
  few.held_out_percent = 0.0001;
  CHECK_THAT(refusal(good, few), Catch::Contains("none of the 60 documents"));
  few.held_out_percent = 99.9999;
  CHECK_THAT(refusal(good, few), Catch::Contains("all of the 60 documents"));
  for (const double percent : {0.0, 100.0, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
    few.held_out_percent = percent;
    CHECK_THAT(refusal(good, few), Catch::Contains("cannot be held out"));
  }
  PrepareOptions large = base;
  large.vocab_size = 50'000;
  CHECK_THAT(refusal(good, large),
             Catch::Contains("a tokenizer of 50000 entries cannot be trained"));
  PrepareOptions absent = base;
  absent.inputs = {dir / "absent"};
  CHECK_THAT(refusal(good, absent), Catch::Contains("cannot open"));
  absent.inputs = {};
  CHECK_THAT(refusal(good, absent), Catch::Contains("no input files"));
  PrepareOptions no_model = base;
  no_model.tokenizer = dir / "text";
  CHECK_THAT(refusal(good, no_model), Catch::Contains("is not a SentencePiece model"));
  CHECK(files_in(dir.path()).size() == 1);

  CHECK(refusal(good, base).empty());
  CHECK_THAT(refusal(good, base), Catch::Contains("set.tokenizer.model exists"));
  for (const char* name : {"set.tokenizer.model", "set_train.bin", "set_train.idx"}) {
    std::remove((dir / name).c_str());
  }
  CHECK_THAT(refusal(good, base), Catch::Contains("set_train.json exists"));
}

}  // namespace
}  // namespace pecan::data
