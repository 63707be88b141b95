#include <numeric>

#include <pecan/comm/traffic.hpp>

#include "comm/arguments.hpp"

namespace pecan::comm {

std::int64_t SentBytes::total() const {
  return std::accumulate(bytes_.begin(), bytes_.end(), std::int64_t{0});
}

SentBytes& SentBytes::operator+=(const SentBytes& other) {
  for (std::size_t i = 0; i < bytes_.size(); ++i) bytes_[i] += other.bytes_[i];
  return *this;
}

SentBytes SentBytes::times(std::int64_t count) const {
  SentBytes product = *this;
  for (std::int64_t& bytes : product.bytes_) bytes *= count;
  return product;
}

std::int64_t plan_all_reduce_sent(std::int64_t num_elements,
                                  DType dtype,
                                  int group_size,
                                  int position) {
  PECAN_EXPECTS(position >= 0 && position < group_size && num_elements >= 0);
  const auto whole = num_elements * std::int64_t(size_of(dtype));
  if (std::size_t(whole) < kSmallAllReduceBytes) return whole * (group_size - 1);
  const std::vector<std::int64_t> counts = all_reduce_counts(num_elements, group_size);
  return plan_reduce_scatter_sent(counts, dtype, position) +
         plan_all_gather_sent(counts, dtype, position);
}

std::int64_t plan_reduce_scatter_sent(std::span<const std::int64_t> counts,
                                      DType dtype,
                                      int position) {
  const std::int64_t all = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  return (all - counts[std::size_t(position)]) * std::int64_t(size_of(dtype));
}

std::int64_t plan_all_gather_sent(std::span<const std::int64_t> counts, DType dtype, int position) {
  return counts[std::size_t(position)] * std::int64_t(counts.size() - 1) *
         std::int64_t(size_of(dtype));
}

}  // namespace pecan::comm
