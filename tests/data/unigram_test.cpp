#include <cmath>

#include <pecan/data/unigram.hpp>

#include "data_support.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::data {
namespace {

TEST_CASE("the baseline by hand", "[data]") {
  const pecan::test::TempDir dir;
  test::write_dataset(dir / "train", {{0, 0, 0}, {1}});
  test::write_dataset(dir / "valid", {{2, 0}, {1, 3}}, TokenType::kU16, 9);
  const UnigramBaseline baseline =
      unigram_baseline(IndexedDataset(dir / "train"), IndexedDataset(dir / "valid"), 4);
  // p = (3 + 1, 1 + 1, 0 + 1, 0 + 1) / (4 + 4); predicted: 0, 1, 3 (the first token of all is not).
  const double nll = std::log(8.0 / 4) + std::log(8.0 / 2) + std::log(8.0 / 1);
  CHECK(baseline.nll_per_token == Approx(nll / 3).epsilon(1e-12));
  CHECK(baseline.bits_per_byte.value() == Approx((1 + 2 + 3) / 9.0).epsilon(1e-12));
}

TEST_CASE("ids outside the vocabulary, and sets with nothing to predict, are refused", "[data]") {
  const pecan::test::TempDir dir;
  test::write_dataset(dir / "train", {{0, 7}});
  test::write_dataset(dir / "one", {{0}});
  const IndexedDataset train(dir / "train");
  CHECK_THROWS_WITH(unigram_baseline(train, train, 7),
                    Catch::Contains("token id 7 is outside the vocabulary of 7"));
  CHECK_THROWS_AS(unigram_baseline(train, IndexedDataset(dir / "one"), 8), DataError);
}

}  // namespace
}  // namespace pecan::data
