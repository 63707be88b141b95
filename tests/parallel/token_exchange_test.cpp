#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include <pecan/parallel/token_exchange.hpp>

#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::parallel;

namespace {

constexpr int kWidth = 3;
constexpr int kTokens = 12;
constexpr int kTopk = 2;

struct Case {
  ExpertGrid grid;
  std::int64_t max_rows;
  bool one_expert;  ///< all choose expert 0 first, as a collapsed router does
};

/// Expert of a slot, -1 where it is dropped; uneven, with experts and ranks that get none.
std::int32_t expert_of(const Case& what, int rank, std::int64_t token, int slot) {
  const auto mixed = std::int32_t((rank * 7 + token * 5 + slot * 3 + token * token) % 23);
  if (mixed == 11) return -1;
  if (what.one_expert) return slot == 0 ? 0 : 1;
  return (mixed * mixed + slot) % std::max(1, what.grid.num_experts - 1);
}

/// A row's content says where it comes from.
double value_of(int rank, std::int64_t token, int slot, int column) {
  return rank * 10000 + double(token) * 100 + slot * 10 + column;
}

/// Appends the rows of one source that go to `expert`, in the order of its slots.
void append_rows(
    const Case& what, int source, int expert, const TokenRange& tokens, std::vector<double>& rows) {
  for (std::int64_t token = tokens.first; token < tokens.first + tokens.count; ++token) {
    for (int slot = 0; slot < kTopk; ++slot) {
      if (expert_of(what, source, token, slot) != expert) continue;
      for (int c = 0; c < kWidth; ++c) rows.push_back(value_of(source, token, slot, c));
    }
  }
}

TensorView rows_of(std::vector<double>& values) {
  return view_of(std::span(values)).reshaped(Shape{std::int64_t(values.size()) / kWidth, kWidth});
}

int exchange_body(comm::Group& group, const Case& what, std::vector<std::string>& failures) {
  device::Stream stream{device::cpu()};
  device::Arena workspace;
  Context ctx{device::cpu(), stream, workspace, 1};
  const int me = group.rank().value;
  const int my_ep = me / what.grid.etp;

  std::vector<std::int32_t> ids;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    for (int slot = 0; slot < kTopk; ++slot) ids.push_back(expert_of(what, me, token, slot));
  }
  TokenExchange exchange(group, what.grid, LayerId{3});
  const auto count = [&](TokenRange tokens, std::span<std::int64_t> counts_E) {
    std::ranges::fill(counts_E, 0);
    for (std::int64_t slot = tokens.first * kTopk; slot < (tokens.first + tokens.count) * kTopk;
         ++slot) {
      if (ids[std::size_t(slot)] >= 0) ++counts_E[std::size_t(ids[std::size_t(slot)])];
    }
  };
  exchange.plan(ctx, kTokens, what.max_rows, count);
  for (int e = 0; e < what.grid.num_experts; ++e) {
    if (exchange.sent_counts()[std::size_t(e)] != std::ranges::count(ids, e))
      failures.push_back("slots of an expert");
  }

  std::int64_t next_token = 0;
  for (int chunk = 0; chunk < exchange.num_chunks(); ++chunk) {
    const TokenRange tokens = exchange.tokens_of(chunk);
    if (tokens.first != next_token) failures.push_back("chunks leave out or repeat tokens");
    next_token += tokens.count;
    std::vector<double> sent, expected;
    for (int e = 0; e < what.grid.num_experts; ++e) append_rows(what, me, e, tokens, sent);
    // The oracle: by local expert, then source rank, then order at the source.
    for (int e = my_ep * what.grid.num_local(); e < (my_ep + 1) * what.grid.num_local(); ++e) {
      const std::size_t before = expected.size();
      for (int source = 0; source < group.size(); ++source)
        append_rows(what, source, e, tokens, expected);
      const auto local = std::size_t(e - my_ep * what.grid.num_local());
      if (exchange.received_counts(chunk)[local] * kWidth != std::int64_t(expected.size() - before))
        failures.push_back("rows of an expert");
    }
    if (exchange.num_received(chunk) > what.max_rows)
      failures.push_back("more rows than memory is planned for");
    if (exchange.num_received(chunk) * kWidth != std::int64_t(expected.size()) ||
        exchange.num_sent(chunk) * kWidth != std::int64_t(sent.size())) {
      failures.push_back("number of rows");
      break;
    }
    std::vector<double> received(expected.size()), staging(expected.size());
    std::vector<double> back(sent.size(), -1);
    std::vector<double> copies(sent.size() * std::size_t(what.grid.etp));
    exchange.to_experts(ctx,
                        chunk,
                        rows_of(sent),
                        rows_of(received),
                        rows_of(staging),
                        rows_of(copies),
                        comm::Purpose::kTest);
    if (received != expected) failures.push_back("received rows of rank " + std::to_string(me));
    // Ranks that share an expert return parts of a sum.
    const int part = me % what.grid.etp + 1;
    for (double& value : received) value *= part;
    exchange.from_experts(ctx,
                          chunk,
                          rows_of(received),
                          rows_of(back),
                          rows_of(staging),
                          rows_of(copies),
                          comm::Purpose::kTest);
    const int parts = what.grid.etp * (what.grid.etp + 1) / 2;
    for (double& value : sent) value *= parts;
    if (back != sent) failures.push_back("returned rows of rank " + std::to_string(me));
  }
  if (next_token != kTokens) failures.push_back("chunks end early");
  return exchange.num_chunks();
}

/// Chunks, alike on all ranks.
int check_exchange(const Case& what) {
  const int size = what.grid.ep * what.grid.etp;
  std::mutex mutex;
  std::vector<std::string> failures;
  std::vector<int> chunks;
  comm::run_thread_group(size, [&](comm::Group& group) {
    std::vector<std::string> mine;
    const int num_chunks = exchange_body(group, what, mine);
    const std::lock_guard lock(mutex);
    failures.insert(failures.end(), mine.begin(), mine.end());
    chunks.push_back(num_chunks);
  });
  CAPTURE(size, what.grid.etp, what.grid.num_experts, what.max_rows);
  CHECK(failures == std::vector<std::string>{});
  CHECK(chunks == std::vector<int>(std::size_t(size), chunks.front()));
  return chunks.front();
}

constexpr std::int64_t kUnbounded = 1 << 20;

}  // namespace

TEST_CASE("rows reach their experts in global order and come back to their places", "[parallel]") {
  for (const int ep : {1, 2, 4}) {
    for (const int etp : {1, 2}) {
      for (const int experts : {4, 8}) {
        CHECK(check_exchange({{ep, etp, experts}, kUnbounded, false}) == 1);
      }
    }
  }
}

TEST_CASE("a bound on received rows cuts the micro-batch into chunks", "[parallel]") {
  for (const int ep : {1, 2, 4}) {
    for (const int etp : {1, 2}) {
      const std::int64_t sources = ep * etp;
      const ExpertGrid grid{ep, etp, 4};
      CHECK(check_exchange({grid, sources * kTopk, false}) > 1);
      // All slots go to one rank.
      CHECK(check_exchange({grid, sources * kTopk, true}) >= 8);
      CHECK(check_exchange({grid, sources * kTopk * kTokens, true}) == 1);
    }
  }
}
