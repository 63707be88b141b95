#include <pecan/data/held_out.hpp>

#include "data_support.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::data {
namespace {

TEST_CASE("every token but the first is predicted once, from the token before it", "[data]") {
  const pecan::test::TempDir dir;
  for (const std::vector<int>& lengths :
       std::vector<std::vector<int>>{{2}, {1, 1}, {5}, {4, 0, 5}, {3, 7, 6}, {17}}) {
    test::write_dataset(dir / "d", test::counting_sequences(lengths));  // token = position
    const IndexedDataset dataset(dir / "d");
    for (const int length : {1, 2, 3, 4, 8, 16, 40}) {
      const HeldOutSet set(dataset, all_sequences(dataset), length);
      for (const int ranks : {1, 2, 3, 5}) {
        std::vector<int> predicted(static_cast<std::size_t>(dataset.num_tokens()));
        const auto size = static_cast<std::size_t>(length);
        std::vector<std::int32_t> tokens(size);
        std::vector<std::int32_t> labels(size);
        std::vector<float> mask(size);
        bool sound = true;
        for (int rank = 0; rank < ranks; ++rank) {
          for (std::int64_t i = 0; i < set.windows_per_rank(ranks); ++i) {
            set.read(HeldOutSet::window_of(i, rank, ranks), tokens, labels, mask);
            for (std::size_t k = 0; k < size; ++k) {
              if (mask[k] == 1.0f) {
                sound = sound && labels[k] == tokens[k] + 1;
                ++predicted[static_cast<std::size_t>(labels[k])];
              } else {
                sound = sound && mask[k] == 0.0f && tokens[k] == 0 && labels[k] == 0;
              }
            }
          }
        }
        INFO("window " << length << ", ranks " << ranks << ", tokens " << dataset.num_tokens());
        CHECK(sound);
        CHECK(predicted[0] == 0);
        CHECK(std::count(predicted.begin(), predicted.end(), 1) == set.num_predicted_tokens());
        CHECK(set.num_predicted_tokens() == dataset.num_tokens() - 1);
        CHECK(set.windows_per_rank(ranks) * ranks - set.num_windows() < ranks);
      }
    }
  }
}

TEST_CASE("windows by hand", "[data]") {
  const pecan::test::TempDir dir;
  test::write_dataset(dir / "d", {{10, 11, 12}, {13, 14, 15}});
  const IndexedDataset dataset(dir / "d");
  const HeldOutSet set(dataset, all_sequences(dataset), 4);
  CHECK(set.num_windows() == 2);
  std::vector<std::int32_t> tokens(4);
  std::vector<std::int32_t> labels(4);
  std::vector<float> mask(4);
  set.read(0, tokens, labels, mask);
  CHECK(tokens == std::vector<std::int32_t>{10, 11, 12, 13});
  CHECK(labels == std::vector<std::int32_t>{11, 12, 13, 14});
  CHECK(mask == std::vector<float>{1, 1, 1, 1});
  set.read(1, tokens, labels, mask);
  CHECK(tokens == std::vector<std::int32_t>{14, 0, 0, 0});
  CHECK(labels == std::vector<std::int32_t>{15, 0, 0, 0});
  CHECK(mask == std::vector<float>{1, 0, 0, 0});
}

TEST_CASE("a set with nothing to predict is refused", "[data]") {
  const pecan::test::TempDir dir;
  test::write_dataset(dir / "d", {{1}});
  const IndexedDataset dataset(dir / "d");
  CHECK_THROWS_WITH(HeldOutSet(dataset, all_sequences(dataset), 4),
                    Catch::Contains("1 held-out tokens are too few"));
}

}  // namespace
}  // namespace pecan::data
