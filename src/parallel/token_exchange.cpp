#include <algorithm>
#include <cstring>
#include <numeric>

#include <pecan/parallel/token_exchange.hpp>

namespace pecan::parallel {
namespace {

std::int64_t width_of(const ConstTensorView& rows) {
  return rows.shape[1];
}

}  // namespace

TokenExchange::TokenExchange(comm::Group& ep, int num_experts, LayerId layer)
    : ep_(ep),
      num_local_(num_experts / ep.size()),
      layer_(layer),
      sent_by_rank_(std::size_t(ep.size())),
      received_by_rank_(std::size_t(ep.size())),
      received_re_(std::size_t(num_experts)),
      received_e_(std::size_t(num_local_)) {
  PECAN_EXPECTS(num_experts % ep.size() == 0);
}

void TokenExchange::plan(Context& ctx, std::span<const std::int64_t> counts_E) {
  PECAN_EXPECTS(counts_E.size() == received_re_.size());
  const std::vector<std::int64_t> one_each(sent_by_rank_.size(), num_local_);
  ep_.all_to_all_v(ctx,
                   const_view_of(counts_E),
                   one_each,
                   view_of(std::span(received_re_)),
                   one_each,
                   {comm::Purpose::kDispatch, layer_})
      .wait();
  std::ranges::fill(received_e_, 0);
  for (std::size_t rank = 0; rank < sent_by_rank_.size(); ++rank) {
    const std::size_t first = rank * std::size_t(num_local_);
    sent_by_rank_[rank] = received_by_rank_[rank] = 0;
    for (std::size_t e = 0; e < std::size_t(num_local_); ++e) {
      sent_by_rank_[rank] += counts_E[first + e];
      received_by_rank_[rank] += received_re_[first + e];
      received_e_[e] += received_re_[first + e];
    }
  }
  num_sent_ = std::accumulate(sent_by_rank_.begin(), sent_by_rank_.end(), std::int64_t{0});
  num_received_ =
      std::accumulate(received_by_rank_.begin(), received_by_rank_.end(), std::int64_t{0});
}

std::vector<std::int64_t> TokenExchange::scaled(std::span<const std::int64_t> rows,
                                                std::int64_t width) const {
  std::vector<std::int64_t> elements(rows.begin(), rows.end());
  for (std::int64_t& count : elements) count *= width;
  return elements;
}

void TokenExchange::to_experts(Context& ctx,
                               ConstTensorView sent_SH,
                               TensorView received_RH,
                               TensorView staging_RH,
                               comm::Purpose purpose) const {
  PECAN_EXPECTS(sent_SH.shape[0] == num_sent_ && received_RH.shape[0] == num_received_);
  const std::int64_t width = width_of(sent_SH);
  ep_.all_to_all_v(ctx,
                   sent_SH,
                   scaled(sent_by_rank_, width),
                   staging_RH,
                   scaled(received_by_rank_, width),
                   {purpose, layer_})
      .wait();
  reorder(staging_RH, received_RH, Direction::kByExpert);
}

void TokenExchange::from_experts(Context& ctx,
                                 ConstTensorView received_RH,
                                 TensorView sent_SH,
                                 TensorView staging_RH,
                                 comm::Purpose purpose) const {
  PECAN_EXPECTS(sent_SH.shape[0] == num_sent_ && received_RH.shape[0] == num_received_);
  const std::int64_t width = width_of(received_RH);
  reorder(received_RH, staging_RH, Direction::kBySource);
  ep_.all_to_all_v(ctx,
                   staging_RH,
                   scaled(received_by_rank_, width),
                   sent_SH,
                   scaled(sent_by_rank_, width),
                   {purpose, layer_})
      .wait();
}

void TokenExchange::reorder(ConstTensorView from, TensorView to, Direction to_order) const {
  const std::size_t row_bytes = std::size_t(width_of(from)) * size_of(from.dtype);
  std::vector<std::int64_t> first_of_expert(received_e_.size());
  std::exclusive_scan(
      received_e_.begin(), received_e_.end(), first_of_expert.begin(), std::int64_t{0});
  std::int64_t by_source = 0;
  for (std::size_t rank = 0; rank < sent_by_rank_.size(); ++rank) {
    for (std::size_t e = 0; e < received_e_.size(); ++e) {
      const std::int64_t rows = received_re_[rank * received_e_.size() + e];
      const std::int64_t by_expert = first_of_expert[e];
      const bool to_expert_order = to_order == Direction::kByExpert;
      const std::int64_t source = to_expert_order ? by_source : by_expert;
      const std::int64_t destination = to_expert_order ? by_expert : by_source;
      if (rows > 0) {
        std::memcpy(to.data + std::size_t(destination) * row_bytes,
                    from.data + std::size_t(source) * row_bytes,
                    std::size_t(rows) * row_bytes);
      }
      by_source += rows;
      first_of_expert[e] += rows;
    }
  }
}

}  // namespace pecan::parallel
