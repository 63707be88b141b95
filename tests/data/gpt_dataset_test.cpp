#include <algorithm>
#include <random>

#include <pecan/data/gpt_dataset.hpp>

#include "data_support.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::data {
namespace {

using Start = GptDataset::Start;

template <typename T>
std::vector<T> list(std::span<const T> values) {
  return {values.begin(), values.end()};
}

/// NumPy's shuffle written out a second time: swaps from the end, index by rejection under a mask.
template <typename T>
void shuffle(std::vector<T>& values, std::size_t begin, std::size_t end, std::mt19937& random) {
  for (std::size_t i = end - begin; i > 1; --i) {
    std::uint32_t mask = 1;
    while (mask < i - 1) mask = 2 * mask + 1;
    std::uint32_t j = 0;
    do {
      j = static_cast<std::uint32_t>(random()) & mask;
    } while (j > i - 1);
    std::swap(values[begin + i - 1], values[begin + j]);
  }
}

/// Sample i is tokens [r L, r L + L] of the joined epochs, r = order[i].
struct Expected {
  std::vector<std::int32_t> stream;
  std::vector<std::size_t> order;
};

Expected brute_force(const test::Sequences& sequences,
                     std::size_t L,
                     std::size_t N,
                     std::uint32_t seed) {
  std::size_t T = 0;
  for (const auto& sequence : sequences) T += sequence.size();
  std::size_t n = 1;
  while (n * T < N * L + 1) ++n;
  const std::size_t before_last = n == 1 ? 0 : ((n - 1) * T - 1) / L;
  const bool separate =
      n > 1 && N - before_last < static_cast<std::size_t>(0.80 * static_cast<double>((T - 1) / L));
  std::mt19937 random(seed);
  std::vector<std::size_t> documents;
  for (std::size_t epoch = 0; epoch < n; ++epoch) {
    for (std::size_t s = 0; s < sequences.size(); ++s) documents.push_back(s);
  }
  const std::size_t first_documents =
      separate ? documents.size() - sequences.size() : documents.size();
  shuffle(documents, 0, first_documents, random);
  shuffle(documents, first_documents, documents.size(), random);
  Expected expected;
  for (const std::size_t d : documents) {
    expected.stream.insert(expected.stream.end(), sequences[d].begin(), sequences[d].end());
  }
  const std::size_t M = (n * T - 1) / L;
  for (std::size_t i = 0; i < M; ++i) expected.order.push_back(i);
  const std::size_t first_samples = separate ? before_last : M;
  shuffle(expected.order, 0, first_samples, random);
  shuffle(expected.order, first_samples, M, random);
  return expected;
}

TEST_CASE("one epoch by hand", "[data]") {
  // Ten sequences of 1, 2, ..., 10 tokens: T = 55. L = 6, N = 8: 49 tokens are needed, so one
  // epoch; M = 54 / 6 = 9. Order of documents: the published shuffle of 0..9 with seed 0, hence
  // lengths 3 9 5 10 2 7 8 4 1 6. Samples start at tokens 0, 6, 12, ... of their concatenation,
  // whose sequences start at 0 3 12 17 27 29 36 44 48 49: token 6 = (1, 3), 12 = (2, 0), 18 = (3,
  // 1), 24 = (3, 7), 30 = (5, 1), 36 = (6, 0), 42 = (6, 6), 48 = (8, 0), 54 = (9, 5).
  const pecan::test::TempDir dir;
  const auto sequences = test::counting_sequences({1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  test::write_dataset(dir / "d", sequences);
  const IndexedDataset dataset(dir / "d");
  const GptDataset samples(dataset, all_sequences(dataset), 6, 8, 0);
  CHECK(samples.num_epochs() == 1);
  CHECK(samples.num_samples() == 9);
  CHECK(list(samples.document_index()) == std::vector<std::int32_t>{2, 8, 4, 9, 1, 6, 7, 3, 0, 5});
  CHECK(list(samples.sample_index()) ==
        std::vector<Start>{
            {0, 0}, {1, 3}, {2, 0}, {3, 1}, {3, 7}, {5, 1}, {6, 0}, {6, 6}, {8, 0}, {9, 5}});
  // From NumPy: RandomState(0) shuffles 0..9, then 0..8.
  CHECK(list(samples.shuffle_index()) == std::vector<std::uint32_t>{3, 1, 2, 8, 5, 0, 6, 7, 4});

  // Sample 0 is row 3: from token 1 of the sequence of ten (45..54), seven tokens.
  std::vector<std::int32_t> tokens(6);
  std::vector<std::int32_t> labels(6);
  samples.sample(0, tokens, labels);
  CHECK(tokens == std::vector<std::int32_t>{46, 47, 48, 49, 50, 51});
  CHECK(labels == std::vector<std::int32_t>{47, 48, 49, 50, 51, 52});
  // Sample 1 is row 1: tokens 3..8 of the sequence of nine (36..44), and the first of the sequence
  // of five (10..14).
  samples.sample(1, tokens, labels);
  CHECK(tokens == std::vector<std::int32_t>{39, 40, 41, 42, 43, 44});
  CHECK(labels == std::vector<std::int32_t>{40, 41, 42, 43, 44, 10});
}

TEST_CASE("a last epoch that is needed only in part is shuffled alone", "[data]") {
  // Lengths 4 3 5: T = 12. L = 2, N = 14: 29 tokens, 3 epochs. The first two hold a = 23 / 2 = 11
  // samples, so 3 come from the last, of c = 11 / 2 = 5: 3 < floor(0.8 * 5) = 4, so it is separate.
  // M = 35 / 2 = 17. Shuffles from NumPy, seed 1234.
  const pecan::test::TempDir dir;
  test::write_dataset(dir / "d", test::counting_sequences({4, 3, 5}));
  const IndexedDataset dataset(dir / "d");
  const GptDataset samples(dataset, all_sequences(dataset), 2, 14, 1234);
  CHECK(samples.num_epochs() == 3);
  CHECK(list(samples.document_index()) == std::vector<std::int32_t>{2, 1, 2, 0, 1, 0, 0, 2, 1});
  CHECK(list(samples.sample_index()) == std::vector<Start>{{0, 0},
                                                           {0, 2},
                                                           {0, 4},
                                                           {1, 1},
                                                           {2, 0},
                                                           {2, 2},
                                                           {2, 4},
                                                           {3, 1},
                                                           {3, 3},
                                                           {4, 1},
                                                           {5, 0},
                                                           {5, 2},
                                                           {6, 0},
                                                           {6, 2},
                                                           {7, 0},
                                                           {7, 2},
                                                           {7, 4},
                                                           {8, 1}});
  CHECK(list(samples.shuffle_index()) ==
        std::vector<std::uint32_t>{3, 10, 2, 1, 7, 5, 4, 0, 8, 6, 9, 16, 12, 15, 14, 11, 13});
}

TEST_CASE("a last epoch that is needed for the most part is shuffled with the others", "[data]") {
  // Lengths 4 3 5, L = 2, N = 10: 21 tokens, 2 epochs; a = 11 / 2 = 5, so 5 from the last, not
  // below 4. Seed 42.
  const pecan::test::TempDir dir;
  test::write_dataset(dir / "d", test::counting_sequences({4, 3, 5}));
  const IndexedDataset dataset(dir / "d");
  const GptDataset samples(dataset, all_sequences(dataset), 2, 10, 42);
  CHECK(list(samples.document_index()) == std::vector<std::int32_t>{0, 1, 2, 2, 1, 0});
  CHECK(list(samples.shuffle_index()) ==
        std::vector<std::uint32_t>{0, 1, 5, 3, 10, 7, 8, 9, 2, 6, 4});
}

TEST_CASE("samples equal those cut from the joined epochs, over many shapes", "[data]") {
  const pecan::test::TempDir dir;
  std::mt19937 random(1);
  const auto below = [&](int bound) {
    return static_cast<int>(random() % static_cast<unsigned>(bound));
  };
  int several_epochs = 0;
  for (int set = 0; set < 15; ++set) {
    std::vector<int> lengths;
    for (int s = 1 + below(12); s > 0; --s) lengths.push_back(below(4) == 0 ? below(3) : below(40));
    lengths.push_back(1 + below(3));
    const auto sequences = test::counting_sequences(lengths);
    test::write_dataset(dir / "d", sequences);
    const IndexedDataset dataset(dir / "d");
    for (int round = 0; round < 10; ++round) {
      const auto L = static_cast<std::size_t>(1 + below(20));
      const auto N = static_cast<std::size_t>(1 + below(60));
      const auto seed = static_cast<std::uint32_t>(random());
      const Expected expected = brute_force(sequences, L, N, seed);
      const GptDataset samples(
          dataset, all_sequences(dataset), static_cast<int>(L), static_cast<std::int64_t>(N), seed);
      CHECK(samples.num_samples() == static_cast<std::int64_t>(expected.order.size()));
      CHECK(samples.num_samples() >= static_cast<std::int64_t>(N));
      std::vector<std::int32_t> tokens(L);
      std::vector<std::int32_t> labels(L);
      bool equal = true;
      for (std::size_t i = 0; i < expected.order.size(); ++i) {
        samples.sample(static_cast<std::int64_t>(i), tokens, labels);
        const auto first =
            expected.stream.begin() + static_cast<std::ptrdiff_t>(expected.order[i] * L);
        equal = equal && std::equal(tokens.begin(), tokens.end(), first) &&
                std::equal(labels.begin(), labels.end(), first + 1);
      }
      INFO("set " << set << ", L " << L << ", N " << N << ", seed " << seed);
      CHECK(equal);
      several_epochs += samples.num_epochs() > 1 ? 1 : 0;
    }
  }
  CHECK(several_epochs > 20);
}

TEST_CASE("plans that cannot be made are refused", "[data]") {
  const pecan::test::TempDir dir;
  test::write_dataset(dir / "none", {{}, {}});
  const IndexedDataset none(dir / "none");
  CHECK_THROWS_WITH(GptDataset(none, all_sequences(none), 4, 1, 0),
                    Catch::Contains("hold no tokens"));
  test::write_dataset(dir / "d", {{1, 2, 3}});
  const IndexedDataset dataset(dir / "d");
  CHECK_THROWS_AS(GptDataset(dataset, all_sequences(dataset), 4, 0, 0), DataError);
  CHECK_THROWS_AS(GptDataset(dataset, all_sequences(dataset), 0, 1, 0), DataError);
  CHECK_THROWS_WITH(GptDataset(dataset, all_sequences(dataset), 4, 1, std::uint64_t{1} << 32),
                    Catch::Contains("seed 4294967296"));
}

}  // namespace
}  // namespace pecan::data
