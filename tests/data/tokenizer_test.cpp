#include <random>

#include <pecan/data/tokenizer.hpp>

#include "data_support.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::data {
namespace {

/// English-like text: words of a small lexicon with Zipf's frequencies, so that merges are learnt.
std::string make_text(std::size_t bytes, unsigned seed) {
  static const std::vector<std::string> kWords{"the",
                                               "and",
                                               "of",
                                               "that",
                                               "unto",
                                               "house",
                                               "king",
                                               "children",
                                               "said",
                                               "Israel,",
                                               "land.",
                                               "mountain",
                                               "river",
                                               "bread",
                                               "people",
                                               "seven",
                                               "1234",
                                               "caf\xC3\xA9"};
  std::mt19937 random(seed);
  std::string text;
  while (text.size() < bytes) {
    const std::size_t bound = 1 + random() % kWords.size();
    text += kWords[random() % bound];
    text += random() % 12 == 0 ? '\n' : ' ';
  }
  text.pop_back();
  return text;
}

Tokenizer trained(int vocab_size = 400) {
  const std::string text = make_text(40'000, 3);
  const std::vector<std::string_view> documents{text};
  return Tokenizer::train(documents, vocab_size);
}

TEST_CASE("decoding gives the text back, whatever it holds", "[data]") {
  const Tokenizer tokenizer = trained();
  CHECK(tokenizer.vocab_size() == 400);
  CHECK(tokenizer.end_of_document() == 2);
  for (const std::string& text : std::vector<std::string>{
           "",
           "a",
           " ",
           "  ",
           " leading",
           "trailing ",
           "two  spaces   three",
           "tab\there",
           "\nline\n\nbreaks\n",
           "\r\n",
           "caf\xC3\xA9 \xE2\x80\x94 \xF0\x9F\x98\x80 \xE6\xBC\xA2\xE5\xAD\x97",
           "</s> <unk> <0x41>",
           "the and of unto"}) {
    INFO(text);
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  }
}

TEST_CASE("merges were learnt", "[data]") {
  const Tokenizer tokenizer = trained();
  CHECK(tokenizer.encode("the children said unto the king").size() <= 8);
}

TEST_CASE("a long text is encoded in pieces with the same ids as in one", "[data]") {
  const Tokenizer tokenizer = trained();
  // A line break is no place to cut, a text without a space has none: encode parts by hand at the
  // spaces that the pieces may not use (all of them), which must give the same ids again.
  std::string text = make_text(30'000, 9);
  text.insert(9'000, "   ");
  text += " ";
  std::vector<std::int32_t> by_word;
  std::size_t begin = 0;
  for (std::size_t i = 1; i <= text.size(); ++i) {
    const bool cut =
        i == text.size() || (text[i] == ' ' && text[i - 1] != ' ' && i + 1 < text.size());
    if (!cut) continue;
    const auto ids = tokenizer.encode(std::string_view(text).substr(begin, i - begin));
    by_word.insert(by_word.end(), ids.begin(), ids.end());
    begin = i + 1;
  }
  CHECK(tokenizer.encode(text) == by_word);
  CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  const std::string unbroken(20'000, 'x');
  CHECK(tokenizer.decode(tokenizer.encode(unbroken)) == unbroken);
}

TEST_CASE("one very long line trains a tokenizer", "[data]") {
  std::string line = make_text(60'000, 4);
  std::replace(line.begin(), line.end(), '\n', ' ');
  const std::vector<std::string_view> documents{line};
  const Tokenizer tokenizer = Tokenizer::train(documents, 400);
  CHECK(tokenizer.encode("the children said").size() <= 4);
  // A line without any space, of characters of several bytes, is cut between characters.
  std::string characters;
  while (characters.size() < 50'000) characters += "\xE6\xBC\xA2\xE5\xAD\x97\xE6\x96\x87";
  const std::vector<std::string_view> unbroken{characters};
  const Tokenizer other = Tokenizer::train(unbroken, 266);
  CHECK(other.decode(other.encode(characters)) == characters);
  CHECK(other.encode(characters).size() < characters.size() / 3 + 10);
  CHECK(other.encode("\xEF\xBF\xBD").size() >=
        3);  // U+FFFD, which halves of characters would become
}

TEST_CASE("lines with tabs take part in training", "[data]") {
  std::string text = make_text(40'000, 5);
  std::replace(text.begin(), text.end(), '\n', '\t');
  const std::vector<std::string_view> documents{text};
  CHECK(Tokenizer::train(documents, 400).encode("the children said").size() <= 4);
}

TEST_CASE("training is deterministic, and a file gives the same tokenizer", "[data]") {
  const pecan::test::TempDir dir;
  const Tokenizer first = trained();
  const Tokenizer second = trained();
  CHECK(first.bytes() == second.bytes());
  test::write_file(dir / "t.model", first.bytes());
  const Tokenizer loaded = Tokenizer::load(dir / "t.model");
  CHECK(loaded.xxh3() == first.xxh3());
  CHECK(loaded.xxh3().size() == 16);
  CHECK(loaded.encode("the house of Israel") == first.encode("the house of Israel"));
}

TEST_CASE("what cannot be a tokenizer is refused", "[data]") {
  const pecan::test::TempDir dir;
  CHECK_THROWS_WITH(Tokenizer::load(dir / "absent"), Catch::Contains("absent"));
  test::write_file(dir / "text", "no model");
  CHECK_THROWS_WITH(Tokenizer::load(dir / "text"), Catch::Contains("is not a SentencePiece model"));
  test::write_file(dir / "empty", "");
  CHECK_THROWS_AS(Tokenizer::load(dir / "empty"), DataError);
  const std::string whole = trained().bytes();
  test::write_file(dir / "cut", whole.substr(0, whole.size() / 2));
  CHECK_THROWS_AS(Tokenizer::load(dir / "cut"), DataError);
  CHECK_THROWS_WITH(Tokenizer::train({}, 400), Catch::Contains("no text"));
  const std::vector<std::string_view> tiny{"a b c"};
  CHECK_THROWS_WITH(Tokenizer::train(tiny, 4000), Catch::Contains("cannot be trained"));
  CHECK_THROWS_WITH(Tokenizer::train(tiny, 10), Catch::Contains("cannot be trained"));
  const Tokenizer tokenizer = trained();
  const std::vector<std::int32_t> foreign{1, 400};
  CHECK_THROWS_WITH(tokenizer.decode(foreign), Catch::Contains("token id 400 is outside"));
}

}  // namespace
}  // namespace pecan::data
