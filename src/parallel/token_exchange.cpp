#include <algorithm>
#include <functional>
#include <numeric>

#include <pecan/device/copy.hpp>
#include <pecan/device/host_context.hpp>

#include <pecan/ops/elementwise.hpp>

#include <pecan/parallel/token_exchange.hpp>

namespace pecan::parallel {
namespace {

std::int64_t width_of(const ConstTensorView& rows) {
  return rows.shape[1];
}

std::vector<std::int64_t> scaled(std::span<const std::int64_t> rows, std::int64_t width) {
  std::vector<std::int64_t> elements(rows.begin(), rows.end());
  for (std::int64_t& count : elements) count *= width;
  return elements;
}

TokenRange cut(std::int64_t num_tokens, int num_chunks, int chunk) {
  const std::int64_t first = num_tokens * chunk / num_chunks;
  return {first, num_tokens * (chunk + 1) / num_chunks - first};
}

}  // namespace

TokenExchange::TokenExchange(comm::Group& dispatch, ExpertGrid grid, LayerId layer)
    : dispatch_(dispatch), grid_(grid), layer_(layer) {
  PECAN_EXPECTS(dispatch.size() == grid.ep * grid.etp && grid.num_experts % grid.ep == 0);
}

TokenRange TokenExchange::tokens_of(int chunk) const {
  PECAN_EXPECTS(chunk >= 0 && chunk < num_chunks_);
  return cut(num_tokens_, num_chunks_, chunk);
}

void TokenExchange::plan(Context& ctx,
                         std::int64_t num_tokens,
                         std::int64_t max_rows,
                         const CountSlots& count) {
  const std::int64_t num_experts = grid_.num_experts;
  num_tokens_ = num_tokens;
  device::HostContext host(ctx);
  num_chunks_ = 1;
  while (true) {
    std::vector<std::int64_t> counts_CE(std::size_t(num_chunks_ * num_experts));
    for (int c = 0; c < num_chunks_; ++c) {
      count(cut(num_tokens_, num_chunks_, c),
            std::span(counts_CE).subspan(std::size_t(c * num_experts), std::size_t(num_experts)));
    }
    std::vector<std::int64_t> counts_GCE(counts_CE.size() * std::size_t(dispatch_.size()));
    const std::vector<std::int64_t> all_alike(std::size_t(dispatch_.size()),
                                              std::int64_t(counts_CE.size()));
    dispatch_
        .all_gather_v(host.get(),
                      const_view_of(std::span<const std::int64_t>(counts_CE)),
                      all_alike,
                      view_of(std::span(counts_GCE)),
                      {comm::Purpose::kDispatchPlan, layer_})
        .wait();
    if (most_received(counts_GCE) <= max_rows) return fill_chunks(counts_GCE);
    PECAN_VALIDATE(num_chunks_ < num_tokens_,
                   InternalError,
                   "one token of each of {} ranks sends more than {} rows to one of them",
                   dispatch_.size(),
                   max_rows);
    num_chunks_ = int(std::min<std::int64_t>(num_tokens_, 2 * num_chunks_));
  }
}

std::int64_t TokenExchange::most_received(std::span<const std::int64_t> counts_GCE) const {
  const int num_local = grid_.num_local();
  std::int64_t most = 0;
  for (int c = 0; c < num_chunks_; ++c) {
    for (int ep = 0; ep < grid_.ep; ++ep) {
      std::int64_t received = 0;
      for (int source = 0; source < dispatch_.size(); ++source) {
        const auto first = counts_GCE.begin() +
                           (std::int64_t(source) * num_chunks_ + c) * grid_.num_experts +
                           ep * num_local;
        received += std::accumulate(first, first + num_local, std::int64_t{0});
      }
      most = std::max(most, received);
    }
  }
  return most;
}

void TokenExchange::fill_chunks(std::span<const std::int64_t> counts_GCE) {
  const int num_local = grid_.num_local();
  const int own = dispatch_.rank().value;
  const int own_ep = own / grid_.etp;
  chunks_.assign(std::size_t(num_chunks_), {});
  sent_E_.assign(std::size_t(grid_.num_experts), 0);
  loads_.assign(std::size_t(grid_.ep), 0);
  for (int c = 0; c < num_chunks_; ++c) {
    Chunk& chunk = chunks_[std::size_t(c)];
    chunk.received_e.assign(std::size_t(num_local), 0);
    for (int source = 0; source < dispatch_.size(); ++source) {
      const auto counts_E = counts_GCE.subspan(
          std::size_t((std::int64_t(source) * num_chunks_ + c) * grid_.num_experts),
          std::size_t(grid_.num_experts));
      std::int64_t received = 0;
      for (int e = 0; e < grid_.num_experts; ++e) {
        const std::int64_t rows = counts_E[std::size_t(e)];
        loads_[std::size_t(e / num_local)] += rows;
        if (e / num_local != own_ep) continue;
        chunk.received_re.push_back(rows);
        chunk.received_e[std::size_t(e % num_local)] += rows;
        received += rows;
      }
      chunk.received_by_rank.push_back(received);
      chunk.num_received += received;
      if (source != own) continue;
      std::ranges::transform(sent_E_, counts_E, sent_E_.begin(), std::plus<>());
      for (int ep = 0; ep < grid_.ep; ++ep) {
        const auto first = counts_E.begin() + std::int64_t(ep) * num_local;
        const std::int64_t rows = std::accumulate(first, first + num_local, std::int64_t{0});
        chunk.sent_by_ep.push_back(rows);
        chunk.sent_by_rank.insert(chunk.sent_by_rank.end(), std::size_t(grid_.etp), rows);
        chunk.num_sent += rows;
      }
    }
  }
}

void TokenExchange::to_experts(Context& ctx,
                               int chunk_index,
                               ConstTensorView sent_SH,
                               TensorView received_RH,
                               TensorView staging_RH,
                               TensorView copies_CH,
                               comm::Purpose purpose) const {
  const Chunk& chunk = chunk_at(chunk_index);
  PECAN_EXPECTS(sent_SH.shape[0] == chunk.num_sent && received_RH.shape[0] == chunk.num_received);
  const std::int64_t width = width_of(sent_SH);
  ConstTensorView sent = sent_SH;
  if (grid_.etp > 1) {
    std::int64_t from = 0, to = 0;
    for (const std::int64_t rows : chunk.sent_by_ep) {
      for (int copy = 0; copy < grid_.etp; ++copy, to += rows) {
        ops::copy(ctx, sent_SH.rows(from, rows), copies_CH.rows(to, rows));
      }
      from += rows;
    }
    sent = copies_CH.rows(0, to);
  }
  dispatch_
      .all_to_all_v(ctx,
                    sent,
                    scaled(chunk.sent_by_rank, width),
                    staging_RH,
                    scaled(chunk.received_by_rank, width),
                    {purpose, layer_})
      .wait();
  reorder(ctx, chunk, staging_RH, received_RH, Direction::kByExpert);
}

void TokenExchange::from_experts(Context& ctx,
                                 int chunk_index,
                                 ConstTensorView received_RH,
                                 TensorView sent_SH,
                                 TensorView staging_RH,
                                 TensorView copies_CH,
                                 comm::Purpose purpose) const {
  const Chunk& chunk = chunk_at(chunk_index);
  PECAN_EXPECTS(sent_SH.shape[0] == chunk.num_sent && received_RH.shape[0] == chunk.num_received);
  const std::int64_t width = width_of(received_RH);
  reorder(ctx, chunk, received_RH, staging_RH, Direction::kBySource);
  const TensorView returned =
      grid_.etp > 1 ? copies_CH.rows(0, chunk.num_sent * grid_.etp) : sent_SH;
  dispatch_
      .all_to_all_v(ctx,
                    staging_RH,
                    scaled(chunk.received_by_rank, width),
                    returned,
                    scaled(chunk.sent_by_rank, width),
                    {purpose, layer_})
      .wait();
  if (grid_.etp == 1) return;
  std::int64_t from = 0, to = 0;
  for (const std::int64_t rows : chunk.sent_by_ep) {
    const TensorView sum = sent_SH.rows(to, rows);
    ops::add(ctx, returned.rows(from, rows), returned.rows(from + rows, rows), sum);
    for (int copy = 2; copy < grid_.etp; ++copy) {
      ops::add(ctx, sum, returned.rows(from + copy * rows, rows), sum);
    }
    from += rows * grid_.etp;
    to += rows;
  }
}

void TokenExchange::reorder(
    Context& ctx, const Chunk& chunk, ConstTensorView from, TensorView to, Direction to_order) {
  const std::size_t num_local = chunk.received_e.size();
  std::vector<std::int64_t> first_of_expert(num_local);
  std::exclusive_scan(
      chunk.received_e.begin(), chunk.received_e.end(), first_of_expert.begin(), std::int64_t{0});
  // Neighbours that stay neighbours are copied at once.
  std::int64_t source = 0, destination = 0, count = 0;
  const auto copy_run = [&] {
    if (count > 0) device::copy(ctx.stream, from.rows(source, count), to.rows(destination, count));
  };
  std::int64_t by_source = 0;
  for (std::size_t rank = 0; rank < chunk.received_by_rank.size(); ++rank) {
    for (std::size_t e = 0; e < num_local; ++e) {
      const std::int64_t rows = chunk.received_re[rank * num_local + e];
      const std::int64_t by_expert = first_of_expert[e];
      const bool to_expert_order = to_order == Direction::kByExpert;
      const std::int64_t first = to_expert_order ? by_source : by_expert;
      const std::int64_t place = to_expert_order ? by_expert : by_source;
      if (first != source + count || place != destination + count) {
        copy_run();
        source = first;
        destination = place;
        count = 0;
      }
      count += rows;
      by_source += rows;
      first_of_expert[e] += rows;
    }
  }
  copy_run();
}

}  // namespace pecan::parallel
