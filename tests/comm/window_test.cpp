#include "comm/window.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <sys/resource.h>

#include <pecan/core/error.hpp>

#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

#include "comm/conformance.hpp"
#include "comm/peer_group.hpp"
#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::comm {
namespace {

using namespace std::chrono_literals;
using Values = std::vector<std::int64_t>;

std::vector<test::Conformance> conform(int size, GroupOptions options) {
  std::vector<test::Conformance> results(static_cast<std::size_t>(size));
  options.timeout = 60s;
  run_thread_group(
      size,
      [&](Group& group) {
        results[std::size_t(group.rank().value)] = test::check_conformance(group);
      },
      options);
  return results;
}

TEST_CASE("groups that share memory conform, with the bits of those that do not", "[comm]") {
  for (int size = 1; size <= 8; ++size) {
    CAPTURE(size);
    // Pieces so small that most collectives take many; with the usual ones see comm_mpi_test.
    const auto shared = conform(size, {.shared_memory = true, .piece_bytes = 4096});
    for (const auto& result : shared) CHECK(result.failures == std::vector<std::string>{});
    if (size != 3 && size != 4) continue;
    const auto by_messages = conform(size, {});
    for (std::size_t rank = 0; rank < shared.size(); ++rank) {
      CHECK(shared[rank].digest == by_messages[rank].digest);
    }
  }
}

/// Members as threads, on memory that a race detector sees.
class Members {
 public:
  Members(int size, std::size_t slot_bytes) : size_(size), slot_bytes_(slot_bytes) {
    num_bytes_ = Window::memory_bytes(size, slot_bytes);
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, num_bytes_)));
    std::fill_n(memory_.get(), num_bytes_, std::byte{0});
  }
  /// Runs body(window) on each member; the errors' texts, by rank.
  std::vector<std::string> run(const std::function<void(Window&)>& body) {
    std::vector<std::string> errors(static_cast<std::size_t>(size_));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size_; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          Window window({memory_.get(), num_bytes_}, size_, rank, slot_bytes_);
          body(window);
        } catch (const std::exception& error) {
          errors[std::size_t(rank)] = error.what();
          failed_ = true;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return errors;
  }
  /// Whether a member ended with an error, so that others may wait for it in vain.
  [[nodiscard]] bool failed() const { return failed_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  int size_;
  std::size_t slot_bytes_, num_bytes_;
  std::unique_ptr<std::byte, Free> memory_;
  std::atomic<bool> failed_ = false;
};

std::int64_t value(int round, int from, int to, std::size_t index) {
  return ((std::int64_t(round) * 16 + from) * 16 + to) * 1'000'000 + std::int64_t(index);
}

std::span<std::byte> bytes_of(Values& values) {
  return std::as_writable_bytes(std::span(values));
}

/// One member's part of a collective whose kind and sizes all members draw alike.
class Round {
 public:
  Round(Window& window, int round, std::mt19937& random) : me_(window.rank()), round_(round) {
    const int size = window.size();
    const auto members = std::size_t(size);
    const auto draw = [&](std::size_t most) { return std::size_t(random() % (most + 1)); };
    const std::size_t most = draw(1) == 0 ? 3 : 150;
    ExchangeParts parts;
    given_.resize(members);
    taken_.resize(members);
    expected_.resize(members);
    switch (draw(2)) {
      case 0: {  // all to all
        for (int from = 0; from < size; ++from) {
          for (int to = 0; to < size; ++to) {
            const std::size_t count = draw(most);
            if (from == to) continue;
            if (from == me_) given_[std::size_t(to)] = drawn(from, to, count);
            if (to == me_) expected_[std::size_t(from)] = drawn(from, to, count);
          }
        }
        for (Values& values : given_) parts.personal.push_back(bytes_of(values));
        parts.gathered_chunks = ExchangeParts::Chunks::kPersonal;
        break;
      }
      case 1: {  // to all
        for (int from = 0; from < size; ++from) {
          const std::size_t count = draw(most);
          if (from == me_) given_[0] = drawn(from, 0, count);
          if (from != me_) expected_[std::size_t(from)] = drawn(from, 0, count);
        }
        parts.common = bytes_of(given_[0]);
        break;
      }
      default: {  // all reduce
        for (int to = 0; to < size; ++to) {
          const std::size_t count = draw(most);
          given_[std::size_t(to)] = drawn(me_, to, count);
          Values& sum = to == me_ ? expected_sum_ : expected_[std::size_t(to)];
          sum = drawn(0, to, count);
          for (int from = 1; from < size; ++from) {
            for (std::size_t i = 0; i < count; ++i) sum[i] += value(round_, from, to, i);
          }
        }
        Values& own = given_[std::size_t(me_)];
        sum_.resize(own.size());
        for (Values& values : given_) parts.personal.push_back(bytes_of(values));
        parts.reduction = {bytes_of(own),
                           bytes_of(sum_).data(),
                           DType::kI64,
                           ReduceOp::kSum,
                           ExchangeParts::Chunks::kPersonal};
        parts.common = bytes_of(sum_);
        parts.common_is_reduced = true;
        parts.common_chunks = parts.gathered_chunks = ExchangeParts::Chunks::kPersonal;
      }
    }
    for (std::size_t from = 0; from < members; ++from) taken_[from].resize(expected_[from].size());
    for (Values& values : taken_) parts.gathered.push_back(bytes_of(values));
    exchange_ = std::make_unique<Exchange>(window, std::move(parts));
  }
  bool advance() { return exchange_->advance(); }
  [[nodiscard]] bool done() const { return exchange_->done(); }
  [[nodiscard]] bool correct() const { return taken_ == expected_ && sum_ == expected_sum_; }

 private:
  [[nodiscard]] Values drawn(int from, int to, std::size_t count) const {
    Values values;
    for (std::size_t i = 0; i < count; ++i) values.push_back(value(round_, from, to, i));
    return values;
  }
  int me_, round_;
  std::vector<Values> given_, taken_, expected_;
  Values sum_, expected_sum_;
  std::unique_ptr<Exchange> exchange_;
};

TEST_CASE("what passes through few small slots is whole, whoever is fast", "[comm]") {
  for (const int size : {2, 3, 5}) {
    CAPTURE(size);
    constexpr int kRounds = 600;
    Members members(size, 128);
    const auto errors = members.run([&](Window& window) {
      std::mt19937 random(7);                                 // alike
      std::mt19937 own(unsigned(window.rank() + 1) * 1000U);  // each his own
      std::vector<std::unique_ptr<Round>> under_way;
      for (int round = 0; (round < kRounds || !under_way.empty()) && !members.failed();) {
        if (round < kRounds && under_way.size() < 1 + own() % 4) {
          under_way.push_back(std::make_unique<Round>(window, round++, random));
        }
        bool moved = false;
        for (auto& one : under_way) moved |= one->advance();
        std::erase_if(under_way, [&](const auto& one) {
          PECAN_VALIDATE(!one->done() || one->correct(), InternalError, "round is wrong");
          return one->done();
        });
        if (!moved) std::this_thread::yield();
        if (own() % 64 == 0) std::this_thread::sleep_for(20us);
      }
    });
    CHECK(errors == std::vector<std::string>(std::size_t(size)));
  }
}

TEST_CASE("counts that differ between members that share memory are found", "[comm]") {
  Members members(2, 1024);
  const auto errors = members.run([&](Window& window) {
    Values values(window.rank() == 0 ? 5 : 4), received(4);
    ExchangeParts parts;
    parts.common = bytes_of(values);
    parts.gathered = {bytes_of(received), bytes_of(received)};
    Exchange exchange(window, parts);
    while (!exchange.done()) {
      if (!exchange.advance()) std::this_thread::yield();
    }
  });
  CHECK(errors[1].find("member 0 sent 40 bytes in collective 0 of the group where member 1 expects "
                       "32") != std::string::npos);
}

TEST_CASE("progress is bounded by the slots, so that computing goes on between", "[comm]") {
  Members members(2, 1024);
  std::mutex mutex;
  std::size_t most = 0;
  const auto errors = members.run([&](Window& window) {
    if (window.rank() != 0) return;
    Values values(100'000);
    ExchangeParts parts;
    parts.common = bytes_of(values);
    Exchange exchange(window, parts);
    std::size_t calls = 0;
    while (exchange.advance()) ++calls;
    const std::lock_guard lock(mutex);
    most = calls;
    PECAN_VALIDATE(exchange.not_taken() == std::vector<int>{1}, InternalError, "not taken by 1");
  });
  CHECK(errors == std::vector<std::string>(2));
  CHECK(most == 1);
}

struct Member {
  device::Stream stream{device::cpu()};
  device::Arena arena;
  Context ctx{device::cpu(), stream, arena};
};

TEST_CASE("who does not take what is sent through memory is named", "[comm]") {
  std::string said;
  run_thread_group(
      2,
      [&](Group& group) {
        Member member;
        std::vector<float> values(1 << 20);
        try {
          if (group.rank().value == 1) {
            std::this_thread::sleep_for(1s);
          } else {
            group.broadcast(member.ctx, view_of(std::span(values)), Rank{0}, {Purpose::kDispatch})
                .wait();
          }
        } catch (const CommError& error) {
          said = error.what();
        }
      },
      {.timeout = 200ms, .shared_memory = true});
  CAPTURE(said);
  CHECK(said.find("rank 0 waited 0.2 s in broadcast #2 (dispatch") != std::string::npos);
  CHECK(said.find("): data was not taken by rank 1;") != std::string::npos);
}

std::size_t num_descriptors() {
  const auto all = std::filesystem::directory_iterator("/proc/self/fd");
  return std::size_t(std::distance(begin(all), end(all)));
}

TEST_CASE("shared memory has no name, is counted as planned and is given back", "[comm]") {
  const std::size_t before = num_descriptors();
  std::mutex mutex;
  std::vector<std::size_t> bytes, descriptors;
  run_thread_group(4,
                   [&](Group& group) {
                     const auto half = group.split(group.rank().value / 2, 0);
                     const auto alone = group.split(group.rank().value, 0);
                     const std::lock_guard lock(mutex);
                     bytes.push_back(group.scratch_bytes());
                     descriptors.push_back(num_descriptors());
                   },
                   {.shared_memory = true});
  for (const std::size_t count : descriptors) CHECK(count <= before);
  // The votes at the start went by messages.
  for (const std::size_t count : bytes) {
    const std::size_t votes = count - plan_window_bytes(4) - plan_window_bytes(2);
    CHECK(votes <= 2 * plan_all_reduce_scratch(1, DType::kI32, 4));
  }
  CHECK(plan_window_bytes(1) == 0);
  CHECK(plan_window_bytes(2) >= Window::kSlots * kPieceBytes);
}

/// Lets files, and so the memory that is shared, grow to `num_bytes` at most.
class FileLimit {
 public:
  explicit FileLimit(std::size_t num_bytes) : former_handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &former_);
    const rlimit limit{num_bytes, former_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileLimit() {
    setrlimit(RLIMIT_FSIZE, &former_);
    std::signal(SIGXFSZ, former_handler_);
  }
  FileLimit(const FileLimit&) = delete;
  FileLimit& operator=(const FileLimit&) = delete;

 private:
  rlimit former_{};
  void (*former_handler_)(int);
};

TEST_CASE("where memory cannot be shared messages are used, and it is said once", "[comm]") {
  const FileLimit limit(100'000);
  pecan::test::ExpectLog expected;
  std::vector<std::int32_t> sums(3);
  run_thread_group(
      3,
      [&](Group& group) {
        Member member;
        std::int32_t sum = group.rank().value + 1;
        group.all_reduce(member.ctx, view_of(std::span(&sum, 1)), ReduceOp::kSum, {}).wait();
        sums[std::size_t(group.rank().value)] = sum;
      },
      {.timeout = 30s, .shared_memory = true});
  CHECK(sums == std::vector<std::int32_t>{6, 6, 6});
  REQUIRE(expected.records().size() == 1);
  CHECK(expected.contains("comm.shared_memory: false"));
}

}  // namespace
}  // namespace pecan::comm
