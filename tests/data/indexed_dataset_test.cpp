#include <cstring>
#include <random>

#include <pecan/data/indexed_dataset.hpp>

#include "data_support.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::data {
namespace {

using test::read_file;
using test::write_dataset;
using test::write_file;

const test::Sequences kSequences{{5, 6, 7}, {}, {300}, {1, 2}};

/// The message that a dataset is refused with; empty if it is accepted.
std::string refusal(const std::string& prefix) {
  try {
    const IndexedDataset dataset(prefix);
    return "";
  } catch (const DataError& e) {
    return e.what();
  }
}

template <typename T>
std::string with_value(std::string content, std::size_t offset, T value) {
  std::memcpy(content.data() + offset, &value, sizeof value);
  return content;
}

TEST_CASE("the files have Megatron's bytes", "[data]") {
  const pecan::test::TempDir dir;
  write_dataset(dir / "d", kSequences);
  CHECK(read_file(dir / "d.bin") == std::string("\5\0\6\0\7\0\x2c\1\1\0\2\0", 12));
  const std::string expected =
      std::string("MMIDIDX\0\0", 9) + std::string("\1\0\0\0\0\0\0\0", 8) + "\x08" +
      std::string("\4\0\0\0\0\0\0\0", 8) + std::string("\5\0\0\0\0\0\0\0", 8) +
      std::string("\3\0\0\0\0\0\0\0\1\0\0\0\2\0\0\0", 16) +
      std::string("\0\0\0\0\0\0\0\0\6\0\0\0\0\0\0\0\6\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0", 32) +
      std::string("\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0", 24) +
      std::string("\3\0\0\0\0\0\0\0\4\0\0\0\0\0\0\0", 16);
  CHECK(read_file(dir / "d.idx") == expected);
}

TEST_CASE("what was written is read", "[data]") {
  const pecan::test::TempDir dir;
  for (const TokenType type :
       {TokenType::kU16, TokenType::kI16, TokenType::kI32, TokenType::kI64}) {
    const std::string prefix = dir / std::string(name_of(type));
    write_dataset(prefix, kSequences, type, 17);
    const IndexedDataset dataset(prefix);
    CHECK(dataset.token_type() == type);
    CHECK(dataset.num_sequences() == 4);
    CHECK(dataset.num_documents() == 4);
    CHECK(dataset.num_tokens() == 6);
    for (std::int64_t s = 0; s < 4; ++s) {
      std::vector<std::int32_t> tokens(static_cast<std::size_t>(dataset.length(s)));
      dataset.read(dataset.start(s), tokens);
      CHECK(tokens == kSequences[static_cast<std::size_t>(s)]);
    }
    CHECK(dataset.info()->bytes == 17);
    CHECK(dataset.info()->tokenizer_xxh3 == "0123456789abcdef");
  }
  const test::Sequences small{{0, 127}, {1}};
  for (const TokenType type : {TokenType::kU8, TokenType::kI8}) {
    write_dataset(dir / "small", small, type);
    std::vector<std::int32_t> tokens(3);
    IndexedDataset(dir / "small").read(0, tokens);
    CHECK(tokens == std::vector<std::int32_t>{0, 127, 1});
  }
}

TEST_CASE("the element type follows the vocabulary as in Megatron", "[data]") {
  CHECK(token_type_for(65499) == TokenType::kU16);
  CHECK(token_type_for(65500) == TokenType::kI32);
}

TEST_CASE("documents may have several sequences, and a dataset none", "[data]") {
  const pecan::test::TempDir dir;
  const auto fs = make_posix_file_system();
  {
    IndexedDatasetWriter writer(*fs, dir / "d", TokenType::kI32);
    const std::vector<std::int32_t> tokens{1, 2};
    writer.add_sequence(tokens);
    writer.add_sequence(tokens);
    writer.end_document();
    writer.finish(DatasetInfo{.documents = 1, .tokens = 4});
  }
  CHECK(IndexedDataset(dir / "d").num_sequences() == 2);
  CHECK(IndexedDataset(dir / "d").num_documents() == 1);
  write_dataset(dir / "none", {});
  CHECK(IndexedDataset(dir / "none").num_tokens() == 0);
}

TEST_CASE("a token that the element type cannot hold is refused", "[data]") {
  const pecan::test::TempDir dir;
  CHECK_THROWS_WITH(write_dataset(dir / "d", {{65536}}),
                    Catch::Contains("token id 65536 does not fit"));
  CHECK_THROWS_WITH(write_dataset(dir / "d", {{-1}}, TokenType::kI32),
                    Catch::Contains("token id -1"));
  CHECK(make_posix_file_system()->list(dir.path()).value().empty());
}

TEST_CASE("a stored value that is no token id is refused when read", "[data]") {
  const pecan::test::TempDir dir;
  write_dataset(dir / "d", {{1, 2}}, TokenType::kI64);
  write_file(dir / "d.bin", with_value(read_file(dir / "d.bin"), 8, std::int64_t{1} << 40));
  std::vector<std::int32_t> tokens(2);
  CHECK_THROWS_WITH(IndexedDataset(dir / "d").read(0, tokens),
                    Catch::Contains("token 1099511627776 at offset 8"));
}

TEST_CASE("every truncation and extension of either file is refused", "[data]") {
  const pecan::test::TempDir dir;
  write_dataset(dir / "d", kSequences);
  for (const char* extension : {".idx", ".bin"}) {
    const std::string path = dir / "d" + extension;
    const std::string whole = read_file(path);
    for (std::size_t size = 0; size < whole.size(); ++size) {
      write_file(path, whole.substr(0, size));
      const std::string message = refusal(dir / "d");
      INFO(extension << " cut to " << size);
      CHECK(message.find(path) != std::string::npos);
      CHECK(message.find("write the dataset again") != std::string::npos);
    }
    for (const std::size_t extra : {1, 2, 3, 4, 8, 12}) {
      write_file(path, whole + std::string(extra, '\0'));
      INFO(extension << " longer by " << extra);
      CHECK_FALSE(refusal(dir / "d").empty());
    }
    write_file(path, whole);
  }
  CHECK(refusal(dir / "d").empty());
}

TEST_CASE("every flipped bit of the index is refused", "[data]") {
  const pecan::test::TempDir dir;
  write_dataset(dir / "d", {{5, 6, 7}, {300}, {1, 2}});
  const std::string whole = read_file(dir / "d.idx");
  int accepted = 0;
  for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    write_file(dir / "d.idx", damaged);
    if (!refusal(dir / "d").empty()) continue;
    // What remains plausible: another element type of the same size, and another boundary between
    // documents.
    const bool type = bit / 8 == 17 && damaged[17] == 3;
    const bool boundary = bit / 8 >= 34 + 12 * 3 + 8;
    if (!type && !boundary) FAIL_CHECK("bit " << bit);
    ++accepted;
  }
  CHECK(accepted <= 4);
}

TEST_CASE("each damaged field is named with offset, value and remedy", "[data]") {
  struct Case {
    std::string content;
    std::string message;
  };
  const pecan::test::TempDir dir;
  write_dataset(dir / "d", {{5, 6, 7}, {300}});  // lengths at 34, starts at 42, boundaries at 58
  const std::string good = read_file(dir / "d.idx");
  const std::vector<Case> cases{
      {with_value(good, 0, 'X'), "the magic number at offset 0 is wrong"},
      {with_value(good, 9, std::uint64_t{2}), "version 2 at offset 9, but only 1 is known"},
      {with_value(good, 17, std::uint8_t{6}), "element type 6 at offset 17 is floating point"},
      {with_value(good, 17, std::uint8_t{7}), "element type 7 at offset 17 is floating point"},
      {with_value(good, 17, std::uint8_t{0}), "element type 0 at offset 17 is not one of 1 to 8"},
      {with_value(good, 17, std::uint8_t{9}), "element type 9 at offset 17"},
      {with_value(good, 17, std::uint8_t{4}),
       "sequence 1 starts at byte 6 (offset 50), but the one before ends at byte 12"},
      {with_value(good, 18, ~std::uint64_t{0}), "18446744073709551615 sequences (offset 18)"},
      {with_value(good, 18, std::uint64_t{1}),
       "82 bytes, but 1 sequences and 3 document boundaries need 70"},
      {with_value(good, 26, ~std::uint64_t{0}),
       "18446744073709551615 document boundaries (offset 26)"},
      {with_value(good, 26, std::uint64_t{0}), "2 sequences and 0 document boundaries need"},
      {with_value(good, 26, std::uint64_t{2}),
       "82 bytes, but 2 sequences and 2 document boundaries need 74"},
      {with_value(good, 34, std::int32_t{-1}), "length -1 of sequence 0 at offset 34 is negative"},
      {with_value(good, 34, std::int32_t{2}),
       "sequence 1 starts at byte 6 (offset 50), but the one before ends at byte 4"},
      {with_value(good, 38, std::int32_t{9}), "d.bin: 8 bytes, but the sequences of"},
      {with_value(good, 42, std::int64_t{2}), "sequence 0 starts at byte 2 (offset 42)"},
      {with_value(good, 50, std::int64_t{-6}), "sequence 1 starts at byte -6 (offset 50)"},
      {with_value(good, 58, std::int64_t{1}), "document boundary 0 at offset 58 is 1"},
      {with_value(good, 66, std::int64_t{-1}), "document boundary 1 at offset 66 is -1"},
      {with_value(good, 66, std::int64_t{3}), "document boundary 1 at offset 66 is 3"},
      {with_value(good, 74, std::int64_t{1}),
       "document boundary 2 at offset 74 is 1, but boundaries rise from 0 to the 2 sequences"},
      {good + std::string(2, '\0'), "as in a multimodal dataset"},
  };
  for (const Case& c : cases) {
    write_file(dir / "d.idx", c.content);
    CHECK_THAT(refusal(dir / "d"), Catch::Contains(c.message) && Catch::Contains("; "));
  }
}

TEST_CASE("document boundaries that fall back are refused", "[data]") {
  const pecan::test::TempDir dir;
  write_dataset(dir / "d", {{1}, {2}, {3}});  // boundaries 0 1 2 3 at 70
  write_file(dir / "d.idx", with_value(read_file(dir / "d.idx"), 78, std::int64_t{3}));
  CHECK_THAT(refusal(dir / "d"), Catch::Contains("document boundary 2 at offset 86 is 2"));
}

TEST_CASE("a description that does not fit the dataset is refused", "[data]") {
  const pecan::test::TempDir dir;
  write_dataset(dir / "d", kSequences);
  write_file(dir / "d.json",
             R"({"bytes": 1, "documents": 4, "tokens": 5, "tokenizer_xxh3": "", "vocab_size": 9})");
  CHECK_THAT(refusal(dir / "d"), Catch::Contains("describes 4 documents and 5 tokens"));
  write_file(dir / "d.json", R"({"bytes": 1})");
  CHECK_THAT(refusal(dir / "d"), Catch::Contains("not the description of a dataset"));
  // What a conversion would round, wrap or make undefined.
  for (const char* number : {"2.5", "-1", "1e300", "4294967298", "true", "null", "[[1]]"}) {
    CAPTURE(number);
    write_file(dir / "d.json",
               fmt::format(R"({{"bytes": 1, "documents": 4, "tokens": 5, "tokenizer_xxh3": "", )"
                           R"("vocab_size": {}}})",
                           number));
    CHECK_THAT(refusal(dir / "d"),
               Catch::Contains("\"vocab_size\" is ") &&
                   Catch::Contains("not an integer from 0 to 2147483647; "));
  }
  write_file(dir / "d.json", std::string(1'000'000, '['));
  CHECK_THAT(refusal(dir / "d"), Catch::Contains("nested more than 8 levels deep"));
  write_file(dir / "d.json", "{");
  CHECK_THAT(refusal(dir / "d"), Catch::Contains("d.json"));
  std::remove((dir / "d.json").c_str());
  CHECK_FALSE(IndexedDataset(dir / "d").info());
}

}  // namespace
}  // namespace pecan::data
