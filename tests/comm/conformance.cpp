#include "comm/conformance.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <thread>
#include <utility>

#include <pecan/core/hash.hpp>

#include <pecan/device/context.hpp>

namespace pecan::comm::test {
namespace {

using Index = std::int64_t;
using Counts = std::vector<Index>;
constexpr Tag kTag{Purpose::kTest, LayerId{3}};

/// Counter-based input: what `rank` holds at `index` of drawing `draw`. Floats differ by powers of
/// two, so that sums depend on their order; integers are small enough for exact sums.
template <typename T>
T value(int draw, int rank, Index index) {
  std::uint64_t x = std::uint64_t(index) * 0x9e3779b97f4a7c15ULL +
                    std::uint64_t(rank) * 0xd1b54a32d192ed03ULL +
                    std::uint64_t(draw) * 0x8cb92ba72f3d8dd7ULL;
  for (int round = 0; round < 2; ++round) {
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ULL;
  }
  x ^= x >> 32;
  if constexpr (std::is_floating_point_v<T>) {
    const double mantissa = double(x >> 11) * 0x1p-53 - 0.5;
    return T(std::ldexp(mantissa, int(x & 15) - 8));
  } else if constexpr (sizeof(T) == 1) {
    return T(x >> 56);
  } else {
    return T(Index(x >> 40) - (Index{1} << 23));
  }
}

template <typename T>
T combine(ReduceOp op, T a, T b) {
  switch (op) {
    case ReduceOp::kSum:
      return T(a + b);
    case ReduceOp::kMax:
      return std::max(a, b);
    case ReduceOp::kMin:
      return std::min(a, b);
  }
  return a;
}

/// Elements between guards, poisoned at first. On a device they are there from view() until
/// elements(), on a stream's order.
template <typename T>
class Guarded {
 public:
  Guarded(device::Stream& stream, Index count) : stream_(&stream) {
    memory_.resize(std::size_t(count) + 2 * kGuard);
    std::memset(static_cast<void*>(memory_.data()), kPoison, memory_.size() * sizeof(T));
  }
  [[nodiscard]] std::span<T> elements() {
    if (there_) {
      device::download(*stream_, whole_there(), view_of(std::span(memory_)));
      stream_->synchronize();
      there_ = false;
    }
    return std::span(memory_).subspan(kGuard, memory_.size() - 2 * kGuard);
  }
  [[nodiscard]] TensorView view() {
    const std::int64_t count = std::int64_t(memory_.size()) - 2 * kGuard;
    if (stream_->device().kind == device::DeviceKind::kCpu) {
      return view_of(std::span(memory_)).rows(kGuard, count);
    }
    if (buffer_.size() == 0) {
      buffer_ = device::Buffer(stream_->device(), memory_.size() * sizeof(T));
    }
    if (!there_) device::upload(*stream_, view_of(std::span(memory_)), whole_there());
    there_ = true;
    return whole_there().rows(kGuard, count);
  }
  [[nodiscard]] bool guards_intact() const {
    const auto intact = [&](const T& element) {
      unsigned char bytes[sizeof(T)];
      std::memcpy(bytes, &element, sizeof(T));
      return std::all_of(bytes, bytes + sizeof(T), [](unsigned char b) { return b == kPoison; });
    };
    return std::all_of(memory_.begin(), memory_.begin() + kGuard, intact) &&
           std::all_of(memory_.end() - kGuard, memory_.end(), intact);
  }

 private:
  static constexpr std::ptrdiff_t kGuard = 8;
  static constexpr unsigned char kPoison = 0xa5;
  [[nodiscard]] TensorView whole_there() const {
    return {buffer_.data(), kDTypeOf<T>, Shape{std::int64_t(memory_.size())}};
  }
  device::Stream* stream_;
  std::vector<T> memory_;
  device::Buffer buffer_;
  bool there_ = false;
};

class Checker {
 public:
  Checker(Group& group, ProfileTrack* profile, device::Device device)
      : group_(group), size_(group.size()), rank_(group.rank().value), stream_(device) {
    ctx_.profile = profile;
  }

  Conformance run() {
    check_type<float>();
    check_type<double>();
    check_type<std::int64_t>();
    check_type<std::int32_t>();
    check_type<std::uint8_t>();
    for (const Index count : {7, 5003}) check_bf16(count);
    check_that_order_shows();
    check_large_messages();
    check_messages();
    for (const Index count : {5, 3000}) check_many_at_once(count);
    check_splits();
    check_traffic();
    result_.digest = digest_.digest();
    return std::move(result_);
  }

 private:
  void expect(bool condition, const std::string& what) {
    if (!condition) {
      result_.failures.push_back(fmt::format("rank {} of {}: {}", rank_, size_, what));
    }
  }

  /// Bit for bit.
  template <typename T>
  void expect_equal(Guarded<T>& actual, const std::vector<T>& expected, const std::string& what) {
    const std::span<const T> elements = actual.elements();
    digest_.update(std::as_bytes(elements));
    expect(actual.guards_intact(), what + " wrote outside of its output");
    expect(elements.size() == expected.size() &&
               (expected.empty() ||
                std::memcmp(elements.data(), expected.data(), expected.size() * sizeof(T)) == 0),
           what + " differs from the oracle");
  }

  template <typename T>
  std::vector<T> drawn(int draw, int rank, Index count) const {
    std::vector<T> values;
    for (Index i = 0; i < count; ++i) values.push_back(value<T>(draw, rank, i));
    return values;
  }

  template <typename T>
  Guarded<T> input(int draw, int rank, Index count) {
    Guarded<T> values(stream_, count);
    std::ranges::copy(drawn<T>(draw, rank, count), values.elements().begin());
    return values;
  }

  /// Combined over ranks 0, 1, ... in this order.
  template <typename T>
  std::vector<T> reduced(int draw, Index count, ReduceOp op) const {
    std::vector<T> values = drawn<T>(draw, 0, count);
    for (int rank = 1; rank < size_; ++rank) {
      for (Index i = 0; i < count; ++i) {
        T& element = values[std::size_t(i)];
        element = combine(op, element, value<T>(draw, rank, i));
      }
    }
    return values;
  }

  /// Uneven, partly empty, on one member alone, and empty pieces.
  [[nodiscard]] std::vector<Counts> count_patterns() const {
    std::vector<Counts> patterns(5, Counts(std::size_t(size_), 0));
    for (int rank = 0; rank < size_; ++rank) {
      const auto r = std::size_t(rank);
      patterns[0][r] = 5;
      patterns[1][r] = (rank * 3 + 2) % 5;
      patterns[2][r] = rank % 2 == 0 ? 1031 + rank : 0;
      patterns[3][r] = rank == size_ - 1 ? 13 : 0;
    }
    return patterns;
  }
  static Index sum(const Counts& counts) {
    return std::accumulate(counts.begin(), counts.end(), Index{0});
  }
  static Index before(const Counts& counts, int rank) {
    return std::accumulate(counts.begin(), counts.begin() + rank, Index{0});
  }

  /// Lets members come at different times.
  void stagger() {
    std::this_thread::sleep_for(std::chrono::microseconds((rank_ * 7 + draw_ * 3) % 5 * 40));
  }

  template <typename T>
  void check_type() {
    std::vector<ReduceOp> ops = {ReduceOp::kMax, ReduceOp::kMin};
    if (sizeof(T) > 1) ops.push_back(ReduceOp::kSum);
    for (const ReduceOp op : ops) {
      for (const Index count : {Index{0},
                                Index{1},
                                Index{size_ - 1},
                                Index{size_ + 1},
                                Index{1023},
                                Index{1024},
                                Index{1025},
                                Index{5003}}) {
        check_all_reduce<T>(count, op);
      }
      for (const Counts& counts : count_patterns()) check_reduce_scatter<T>(counts, op);
    }
    stagger();
    for (const Counts& counts : count_patterns()) check_all_gather<T>(counts);
    for (const Index count : {0, 1, 3, 700}) check_all_to_all<T>(count);
    for (int root = 0; root < size_; ++root) check_broadcast<T>(root, 17 * root);
  }

  template <typename T>
  void check_all_reduce(Index count, ReduceOp op) {
    const int draw = ++draw_;
    Guarded<T> values = input<T>(draw, rank_, count);
    group_.all_reduce(ctx_, values.view(), op, kTag).wait();
    expect_equal(values,
                 reduced<T>(draw, count, op),
                 fmt::format("all_reduce {} of {} {}", int(op), count, name_of(kDTypeOf<T>)));
  }

  template <typename T>
  void check_reduce_scatter(const Counts& counts, ReduceOp op) {
    const int draw = ++draw_;
    Guarded<T> values = input<T>(draw, rank_, sum(counts));
    const Index own = counts[std::size_t(rank_)];
    Guarded<T> output(stream_, own);
    group_.reduce_scatter_v(ctx_, values.view(), counts, output.view(), op, kTag).wait();
    const std::vector<T> whole = reduced<T>(draw, sum(counts), op);
    const auto begin = whole.begin() + before(counts, rank_);
    const std::string what =
        fmt::format("reduce_scatter_v {} of {} {}", int(op), sum(counts), name_of(kDTypeOf<T>));
    expect_equal(output, std::vector<T>(begin, begin + own), what);
    expect_equal(values, drawn<T>(draw, rank_, sum(counts)), what + " (its input)");

    // With an all_gather_v it makes an all_reduce, however the pieces are cut.
    Guarded<T> gathered(stream_, sum(counts));
    group_.all_gather_v(ctx_, output.view(), counts, gathered.view(), kTag).wait();
    group_.all_reduce(ctx_, values.view(), op, kTag).wait();
    const auto all = values.elements();
    expect_equal(gathered, std::vector<T>(all.begin(), all.end()), what + " against all_reduce");
  }

  template <typename T>
  void check_all_gather(const Counts& counts) {
    const int draw = ++draw_;
    std::vector<T> expected;
    for (int rank = 0; rank < size_; ++rank) {
      std::ranges::copy(drawn<T>(draw, rank, counts[std::size_t(rank)]),
                        std::back_inserter(expected));
    }
    const Index own = counts[std::size_t(rank_)];
    Guarded<T> values = input<T>(draw, rank_, own);
    Guarded<T> output(stream_, sum(counts)), in_place(stream_, sum(counts));
    std::ranges::copy(values.elements(), in_place.elements().begin() + before(counts, rank_));
    const TensorView place = in_place.view().rows(before(counts, rank_), own);
    group_.all_gather_v(ctx_, values.view(), counts, output.view(), kTag).wait();
    group_.all_gather_v(ctx_, place, counts, in_place.view(), kTag).wait();
    const std::string what = fmt::format("all_gather_v of {}", sum(counts));
    expect_equal(output, expected, what);
    expect_equal(in_place, expected, what + " in place");
  }

  /// Elements from `from` to `to`; zero for some pairs.
  static Index pair_count(int from, int to, Index count) {
    return (from * 5 + to * 3) % 4 == 0 ? 0 : count + (from * 2 + to) % 3;
  }

  template <typename T>
  void check_all_to_all(Index count) {
    const int draw = ++draw_;
    Counts sends, receives;
    std::vector<T> expected;
    for (int peer = 0; peer < size_; ++peer) {
      sends.push_back(pair_count(rank_, peer, count));
      receives.push_back(pair_count(peer, rank_, count));
      Index skipped = 0;  // what the peer sends to lower ranks
      for (int other = 0; other < rank_; ++other) skipped += pair_count(peer, other, count);
      for (Index i = 0; i < receives.back(); ++i) {
        expected.push_back(value<T>(draw, peer, skipped + i));
      }
    }
    Guarded<T> values = input<T>(draw, rank_, sum(sends));
    Guarded<T> output(stream_, sum(receives));
    group_.all_to_all_v(ctx_, values.view(), sends, output.view(), receives, kTag).wait();
    expect_equal(output, expected, fmt::format("all_to_all_v around {}", count));
  }

  template <typename T>
  void check_broadcast(int root, Index count) {
    const int draw = ++draw_;
    Guarded<T> values = input<T>(draw, rank_, count);
    group_.broadcast(ctx_, values.view(), Rank{root}, kTag).wait();
    expect_equal(values, drawn<T>(draw, root, count), fmt::format("broadcast from {}", root));
  }

  /// Summed in float and rounded once.
  void check_bf16(Index count) {
    const int draw = ++draw_;
    const auto given = [&](int rank, Index i) { return BFloat16(value<float>(draw, rank, i)); };
    Guarded<BFloat16> values(stream_, count);
    std::vector<BFloat16> expected;
    for (Index i = 0; i < count; ++i) {
      values.elements()[std::size_t(i)] = given(rank_, i);
      float sum = float(given(0, i));
      for (int rank = 1; rank < size_; ++rank) sum += float(given(rank, i));
      expected.emplace_back(sum);
    }
    group_.all_reduce(ctx_, values.view(), ReduceOp::kSum, kTag).wait();
    expect_equal(values, expected, fmt::format("all_reduce of {} bf16", count));
  }

  /// The inputs must be able to tell an ascending sum from any other.
  void check_that_order_shows() {
    if (size_ < 3) return;
    const int draw = ++draw_;
    const std::vector<float> ascending = reduced<float>(draw, 100, ReduceOp::kSum);
    int different = 0;
    for (Index i = 0; i < 100; ++i) {
      float descending = value<float>(draw, size_ - 1, i);
      for (int rank = size_ - 2; rank >= 0; --rank) descending += value<float>(draw, rank, i);
      different += descending != ascending[std::size_t(i)];
    }
    expect(different > 10, "sums of the test's inputs do not depend on their order");
  }

  /// Beyond the size at which messages are cut.
  void check_large_messages() {
    const int draw = ++draw_;
    const int last = size_ - 1;
    constexpr Index kCount = (Index{9} << 20) + 5;
    Counts sends(std::size_t(size_), 0), receives(std::size_t(size_), 0);
    if (rank_ == 0) sends[std::size_t(last)] = kCount;
    if (rank_ == last) receives[0] = kCount;
    Guarded<std::uint8_t> values = input<std::uint8_t>(draw, rank_, sum(sends));
    Guarded<std::uint8_t> output(stream_, sum(receives));
    group_.all_to_all_v(ctx_, values.view(), sends, output.view(), receives, kTag).wait();
    expect_equal(output, drawn<std::uint8_t>(draw, 0, sum(receives)), "a large all_to_all_v");

    constexpr Index kReduced = (Index{1} << 18) + 3;
    check_all_reduce<double>(kReduced, ReduceOp::kSum);

    // On one member nearly alone.
    Counts uneven(std::size_t(size_), 3);
    uneven[0] = (Index{1} << 16) + 5;
    check_reduce_scatter<float>(uneven, ReduceOp::kSum);
    check_all_gather<float>(uneven);
    check_broadcast<double>(last, (Index{1} << 15) + 7);
  }

  /// Messages round a ring arrive in the order in which they were sent, in spite of different
  /// sizes.
  void check_messages() {
    const int draw = ++draw_;
    const int next = (rank_ + 1) % size_, previous = (rank_ + size_ - 1) % size_;
    constexpr int kMessages = 5;
    std::vector<Guarded<float>> sent, received;
    std::vector<Pending> pending;
    for (int i = 0; i < kMessages; ++i) {
      const Index count = i % 2 == 0 ? 3 : 40'000;
      sent.push_back(input<float>(draw + i, rank_, count));
      received.emplace_back(stream_, count);
    }
    for (int i = 0; i < kMessages; ++i) {
      const auto m = std::size_t(i);
      pending.push_back(group_.send(ctx_, sent[m].view(), Rank{next}, kTag));
      pending.push_back(group_.receive(ctx_, received[m].view(), Rank{previous}, kTag));
    }
    while (!pending.empty()) pending.pop_back();  // a destructor waits
    for (int i = 0; i < kMessages; ++i) {
      auto& message = received[std::size_t(i)];
      const auto count = Index(message.elements().size());
      expect_equal(message, drawn<float>(draw + i, previous, count), fmt::format("message {}", i));
    }
    draw_ += kMessages;
  }

  /// Many collectives under way, waited for in an order of each member's own.
  void check_many_at_once(Index count) {
    const int draw = ++draw_;
    constexpr int kRounds = 6;
    const Counts counts(std::size_t(size_), count);
    std::vector<Guarded<float>> reduced_values, scattered, gathered, broadcasted;
    std::vector<Guarded<float>> own_values, all_values;
    std::vector<Pending> pending;
    for (int i = 0; i < kRounds; ++i) {
      reduced_values.push_back(input<float>(draw + i, rank_, count));
      own_values.push_back(input<float>(draw + i, rank_, count));
      all_values.push_back(input<float>(draw + i, rank_, count * size_));
      broadcasted.push_back(input<float>(draw + i, rank_, count));
      scattered.emplace_back(stream_, count);
      gathered.emplace_back(stream_, count * size_);
    }
    stagger();
    for (int i = 0; i < kRounds; ++i) {
      const auto n = std::size_t(i);
      pending.push_back(group_.all_reduce(ctx_, reduced_values[n].view(), ReduceOp::kSum, kTag));
      pending.push_back(
          group_.all_gather_v(ctx_, own_values[n].view(), counts, gathered[n].view(), kTag));
      pending.push_back(group_.broadcast(ctx_, broadcasted[n].view(), Rank{i % size_}, kTag));
      pending.push_back(group_.reduce_scatter_v(
          ctx_, all_values[n].view(), counts, scattered[n].view(), ReduceOp::kSum, kTag));
    }
    if (rank_ % 3 == 1) std::ranges::reverse(pending);
    if (rank_ % 3 == 2) std::rotate(pending.begin(), pending.begin() + 7, pending.end());
    if (rank_ % 2 == 1) {
      while (!pending.back().test()) std::this_thread::yield();
    }
    for (Pending& one : pending) one.wait();
    for (int i = 0; i < kRounds; ++i) {
      const auto n = std::size_t(i);
      const int d = draw + i;
      expect_equal(
          reduced_values[n], reduced<float>(d, count, ReduceOp::kSum), "all_reduce among others");
      expect_equal(broadcasted[n], drawn<float>(d, i % size_, count), "broadcast among others");
      std::vector<float> all;
      for (int rank = 0; rank < size_; ++rank) {
        std::ranges::copy(drawn<float>(d, rank, count), std::back_inserter(all));
      }
      expect_equal(gathered[n], all, "all_gather_v among others");
      const std::vector<float> whole = reduced<float>(d, count * size_, ReduceOp::kSum);
      const auto begin = whole.begin() + rank_ * count;
      expect_equal(
          scattered[n], std::vector<float>(begin, begin + count), "reduce_scatter_v among others");
    }
    draw_ += kRounds;
  }

  /// World ranks of a group's members, gathered by the group itself.
  std::vector<std::int32_t> members_of(Group& group) {
    Guarded<std::int32_t> own(stream_, 1), all(stream_, group.size());
    own.elements()[0] = rank_;
    const Counts counts(std::size_t(group.size()), 1);
    group.all_gather_v(ctx_, own.view(), counts, all.view(), kTag).wait();
    const auto elements = all.elements();
    digest_.update(std::as_bytes(elements));
    expect(elements[std::size_t(group.rank().value)] == rank_, "a split's rank is not its place");
    return {elements.begin(), elements.end()};
  }

  void check_splits() {
    // Odd and even ranks, in descending order.
    const auto halves = group_.split(rank_ % 2, -rank_);
    std::vector<std::int32_t> expected;
    for (int rank = size_ - 1; rank >= 0; --rank) {
      if (rank % 2 == rank_ % 2) expected.push_back(rank);
    }
    expect(members_of(*halves) == expected, "a split by parity has other members");
    // Equal keys keep the parent's order; a split of a split.
    const auto quarters = halves->split(halves->rank().value / 2, 7);
    const auto first = std::size_t(halves->rank().value / 2 * 2);
    const std::vector<std::int32_t> pair(
        expected.begin() + std::ptrdiff_t(first),
        expected.begin() + std::ptrdiff_t(std::min(first + 2, expected.size())));
    expect(members_of(*quarters) == pair, "a split of a split has other members");
    const auto alone = group_.split(rank_, 0);
    expect(members_of(*alone) == std::vector<std::int32_t>{rank_},
           "a group of one has other members");

    // Under way on parent and child at once, and waited for in different orders.
    constexpr Index kCount = 2000;
    const int draw = ++draw_;
    Guarded<double> in_child = input<double>(draw, rank_, kCount);
    Guarded<double> in_parent = input<double>(draw, rank_, kCount);
    Pending child = halves->all_reduce(ctx_, in_child.view(), ReduceOp::kSum, kTag);
    Pending parent = group_.all_reduce(ctx_, in_parent.view(), ReduceOp::kSum, kTag);
    if (rank_ % 3 == 0) std::swap(child, parent);
    child.wait();
    parent.wait();
    std::vector<double> sums = drawn<double>(draw, expected.front(), kCount);
    for (std::size_t member = 1; member < expected.size(); ++member) {
      for (Index i = 0; i < kCount; ++i) {
        sums[std::size_t(i)] += value<double>(draw, expected[member], i);
      }
    }
    expect_equal(in_child, sums, "all_reduce of a split");
    expect_equal(
        in_parent, reduced<double>(draw, kCount, ReduceOp::kSum), "all_reduce beside a split's");
  }

  void check_traffic() {
    const Traffic start = group_.traffic(Purpose::kEvaluation);
    const Traffic other = group_.traffic(Purpose::kTest);
    Guarded<float> values = input<float>(++draw_, rank_, 10);
    group_.broadcast(ctx_, values.view(), Rank{0}, {Purpose::kEvaluation, kNoLayer}).wait();
    const Traffic end = group_.traffic(Purpose::kEvaluation);
    expect(end.calls == start.calls + 1, "a call was not counted");
    expect(end.sent_bytes - start.sent_bytes == (rank_ == 0 ? 40 * (size_ - 1) : 0),
           "sent bytes were miscounted");
    expect(end.seconds > start.seconds, "no time was counted");
    expect(group_.traffic(Purpose::kTest).calls == other.calls, "another purpose was charged");
  }

  Group& group_;
  const int size_;
  const int rank_;
  int draw_ = 0;
  device::Stream stream_;
  device::Arena workspace_;
  Context ctx_{stream_.device(), stream_, workspace_};
  Xxh3Stream digest_;
  Conformance result_;
};

}  // namespace

Conformance check_conformance(Group& group, ProfileTrack* profile, device::Device device) {
  return Checker(group, profile, device).run();
}

}  // namespace pecan::comm::test
