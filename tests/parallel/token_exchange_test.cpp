#include <mutex>
#include <string>
#include <vector>

#include <pecan/parallel/token_exchange.hpp>

#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::parallel;

namespace {

constexpr int kWidth = 3;

/// How many rows `rank` sends to `expert`: uneven, with experts and ranks that have none.
std::int64_t rows_sent(int rank, int expert) {
  return (rank * 7 + expert * 5) % 4 == 3 ? 0 : (rank + 2 * expert) % 5;
}

/// A row's content says where it comes from.
double value_of(int rank, int expert, std::int64_t row, int column) {
  return rank * 1000 + expert * 100 + double(row) * 10 + column;
}

std::vector<std::string> exchange_body(comm::Group& group, int num_experts) {
  std::vector<std::string> failures;
  device::Stream stream{device::cpu()};
  device::Arena workspace;
  Context ctx{device::cpu(), stream, workspace, 1};
  const int me = group.rank().value;
  const int num_local = num_experts / group.size();

  std::vector<std::int64_t> counts;
  std::vector<double> sent;
  for (int e = 0; e < num_experts; ++e) {
    counts.push_back(rows_sent(me, e));
    for (std::int64_t row = 0; row < counts.back(); ++row) {
      for (int c = 0; c < kWidth; ++c) sent.push_back(value_of(me, e, row, c));
    }
  }
  TokenExchange exchange(group, num_experts, LayerId{3});
  exchange.plan(ctx, counts);

  // The oracle: by local expert, then source rank, then order at the source.
  std::vector<double> expected;
  for (int e = me * num_local; e < (me + 1) * num_local; ++e) {
    for (int source = 0; source < group.size(); ++source) {
      for (std::int64_t row = 0; row < rows_sent(source, e); ++row) {
        for (int c = 0; c < kWidth; ++c) expected.push_back(value_of(source, e, row, c));
      }
    }
  }
  const std::int64_t received_rows = exchange.num_received();
  if (received_rows * kWidth != std::int64_t(expected.size()))
    failures.push_back("number of received rows");
  std::vector<double> received(expected.size()), staging(expected.size()), back(sent.size(), -1);
  const auto rows = [](std::vector<double>& values) {
    return view_of(std::span(values)).reshaped(Shape{std::int64_t(values.size()) / kWidth, kWidth});
  };
  exchange.to_experts(ctx, rows(sent), rows(received), rows(staging), comm::Purpose::kTest);
  if (received != expected) failures.push_back("received rows of rank " + std::to_string(me));
  exchange.from_experts(ctx, rows(received), rows(back), rows(staging), comm::Purpose::kTest);
  if (back != sent) failures.push_back("returned rows of rank " + std::to_string(me));
  return failures;
}

}  // namespace

TEST_CASE("rows reach their experts in global order and come back to their places", "[parallel]") {
  for (const int size : {1, 2, 4}) {
    for (const int experts : {4, 8}) {
      std::mutex mutex;
      std::vector<std::string> failures;
      comm::run_thread_group(size, [&](comm::Group& group) {
        const auto mine = exchange_body(group, experts);
        const std::lock_guard lock(mutex);
        failures.insert(failures.end(), mine.begin(), mine.end());
      });
      CAPTURE(size, experts);
      CHECK(failures == std::vector<std::string>{});
    }
  }
}
