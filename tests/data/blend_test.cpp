#include <pecan/data/blend.hpp>
#include <pecan/data/documents.hpp>
#include <pecan/data/prepare.hpp>

#include "data/data_support.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::data {
namespace {

using test::counting_sequences;
using test::write_dataset;

// The samples themselves are compared with another implementation by reader_order.py.

TEST_CASE("splits cut at rounded running sums, half to even", "[data]") {
  struct Case {
    std::string shares;
    std::int64_t sequences;
    SequenceRange train, valid, test;
  };
  const std::vector<Case> cases{
      {"", 10, {0, 10}, {10, 0}, {10, 0}},
      {"99,1,0", 1000, {0, 990}, {990, 10}, {1000, 0}},
      {"1,1", 5, {0, 2}, {2, 3}, {5, 0}},  // 2.5 rounds to 2
      {"1,1", 7, {0, 4}, {4, 3}, {7, 0}},  // 3.5 rounds to 4
      {"0,0,3", 4, {0, 0}, {0, 0}, {0, 4}},
      {"8,1,1", 3, {0, 2}, {2, 1}, {3, 0}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.shares, c.sequences);
    CHECK(split_range(c.shares, Split::kTrain, c.sequences) == c.train);
    CHECK(split_range(c.shares, Split::kValid, c.sequences) == c.valid);
    CHECK(split_range(c.shares, Split::kTest, c.sequences) == c.test);
  }
  for (const char* bad : {"1,2,3,4", "x", "1,", ",1", "-1,2", "0,0", "1;2", "nan", "1e999"}) {
    CAPTURE(bad);
    CHECK_THROWS_WITH(split_range(bad, Split::kTrain, 10),
                      Catch::Contains("write one like 99,1,0"));
  }
  CHECK(split_from_name("valid") == Split::kValid);
  CHECK_THROWS_AS(split_from_name("dev"), ConfigError);
}

TEST_CASE("a blend is dealt so that no dataset ever lags a whole sample behind its weight",
          "[data]") {
  pecan::test::TempDir dir;
  const std::vector<config::WeightedDataset> parts{
      {5, dir / "a"}, {3, dir / "b"}, {0.5, dir / "c"}};
  int length = 40;
  for (const config::WeightedDataset& part : parts)
    write_dataset(part.prefix, counting_sequences({length++, 7, 30}));
  const BlendedDataset blend(parts, "", Split::kTrain, 4, 200, 1, 0);
  REQUIRE(blend.num_samples() == 200);
  std::vector<double> counts(3, 0);
  for (std::size_t t = 0; t < blend.order().size(); ++t) {
    const BlendedDataset::Source source = blend.order()[t];
    auto& count = counts[std::size_t(source.dataset)];
    CHECK(double(source.sample) == count);
    ++count;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      CHECK(std::abs(counts[i] - parts[i].weight / 8.5 * double(t + 1)) <= 1.5);
    }
  }
  CHECK(blend.order()[0] == BlendedDataset::Source{0, 0});
}

TEST_CASE("blends that cannot be read are refused", "[data]") {
  pecan::test::TempDir dir;
  write_dataset(dir / "a", counting_sequences({9, 9, 9}));
  const std::vector<config::WeightedDataset> one{{1, dir / "a"}};
  CHECK_THROWS_WITH(BlendedDataset({}, "", Split::kTrain, 4, 1, 0, 0),
                    Catch::Contains("set data.data_path"));
  CHECK_THROWS_WITH(BlendedDataset(one, "1,0", Split::kValid, 4, 1, 0, 0),
                    Catch::Contains("the valid share of data.split=1,0 holds none of its 3"));
  const std::vector<config::WeightedDataset> absent{{1, dir / "a"}, {1, dir / "b"}};
  CHECK_THROWS_WITH(BlendedDataset(absent, "", Split::kTrain, 4, 1, 0, 0),
                    Catch::Contains(dir / "b"));
  const std::vector<config::WeightedDataset> many(40'000, one[0]);
  CHECK_THROWS_WITH(BlendedDataset(many, "", Split::kTrain, 4, 1, 0, 0),
                    Catch::Contains("more than 32767"));
}

TEST_CASE("an id outside the vocabulary is found when it is read, with its place", "[data]") {
  pecan::test::TempDir dir;
  write_dataset(dir / "a", {{0, 1, 2, 3, 4, 5, 6, 99, 1}});
  const std::vector<config::WeightedDataset> one{{1, dir / "a"}};
  std::vector<std::int32_t> tokens(4), labels(4);
  const BlendedDataset bounded(one, "", Split::kTrain, 4, 2, 0, 50);
  int refused = 0;
  for (std::int64_t i = 0; i < 2; ++i) {
    try {
      bounded.sample(i, tokens, labels);
    } catch (const DataError& e) {
      ++refused;
      CHECK_THAT(
          e.what(),
          Catch::Contains(dir / "a") &&
              Catch::Contains(
                  "holds token 99 at position 3, but the vocabulary has 50 entries (0 to 49)"));
    }
  }
  CHECK(refused == 1);
  CHECK_NOTHROW(check_ids(std::vector<std::int32_t>{0, 49}, 50, "x"));
  CHECK_THROWS_AS(check_ids(std::vector<std::int32_t>{-1}, 50, "x"), DataError);
}

TEST_CASE("documents end with their end-of-document token", "[data]") {
  const std::vector<std::int32_t> tokens{5, 2, 7, 8, 2, 2, 9};
  std::vector<std::int32_t> positions(7), starts(7);
  std::vector<float> mask(7);
  mark_documents(tokens, 2, positions, starts, mask);
  CHECK(positions == std::vector<std::int32_t>{0, 1, 0, 1, 2, 0, 0});
  CHECK(starts == std::vector<std::int32_t>{0, 0, 2, 2, 2, 5, 6});
  CHECK(mask == std::vector<float>{1, 0, 1, 1, 0, 0, 1});
  mark_documents(tokens, 2, {}, {}, mask);
  mark_documents({}, 2, {}, {}, {});
}

TEST_CASE("a merged dataset holds the documents of all, sequence by sequence", "[data]") {
  pecan::test::TempDir dir;
  const auto fs = make_posix_file_system();
  {
    IndexedDatasetWriter writer(*fs, dir / "a", TokenType::kU16);
    for (const std::vector<std::int32_t>& tokens :
         {std::vector<std::int32_t>{1, 2}, std::vector<std::int32_t>{3}}) {
      writer.add_sequence(tokens);
    }
    writer.end_document();
    writer.end_document();
    writer.finish(DatasetInfo{7, 2, 3, "0123456789abcdef", 100});
  }
  write_dataset(dir / "b", {{4, 5, 6}, {7}}, TokenType::kU16, 11);
  const DatasetInfo sums = merge({dir / "a", dir / "b"}, dir / "all");
  CHECK(sums == DatasetInfo{18, 4, 7, "0123456789abcdef", 100});
  const IndexedDataset all(dir / "all");
  CHECK(all.info() == sums);
  std::vector<std::int64_t> firsts;
  for (std::int64_t d = 0; d <= all.num_documents(); ++d) firsts.push_back(all.first_sequence(d));
  CHECK(firsts == std::vector<std::int64_t>{0, 2, 2, 3, 4});
  std::vector<std::int32_t> tokens(7);
  all.read(0, tokens);
  CHECK(tokens == std::vector<std::int32_t>{1, 2, 3, 4, 5, 6, 7});
  CHECK(all.length(2) == 3);

  write_dataset(dir / "wide", {{4}}, TokenType::kI32);
  CHECK_THROWS_WITH(merge({dir / "a", dir / "wide"}, dir / "never"),
                    Catch::Contains("holds tokens of type i32") && Catch::Contains("u16"));
  CHECK_THROWS_AS(merge({dir / "a"}, dir / "all"), DataError);
  CHECK_FALSE(fs->exists(dir / "never.bin"));
}

}  // namespace
}  // namespace pecan::data
