#pragma once
/// Bytes that collectives send, known before they are called: what Group::traffic will count.

#include <array>
#include <cstdint>
#include <span>

#include <pecan/core/tensor.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::comm {

/// Bytes that one rank sends to others, by purpose.
class SentBytes {
 public:
  [[nodiscard]] std::int64_t operator[](Purpose purpose) const {
    return bytes_[std::size_t(purpose)];
  }
  [[nodiscard]] std::int64_t& operator[](Purpose purpose) { return bytes_[std::size_t(purpose)]; }
  [[nodiscard]] std::int64_t total() const;
  SentBytes& operator+=(const SentBytes& other);
  /// All of it `count` times.
  [[nodiscard]] SentBytes times(std::int64_t count) const;
  bool operator==(const SentBytes&) const = default;

 private:
  std::array<std::int64_t, std::size_t(Purpose::kCount)> bytes_{};
};

/// What the member at `position` of a group of `group_size` sends in one collective. Pure.
[[nodiscard]] std::int64_t plan_all_reduce_sent(std::int64_t num_elements,
                                                DType dtype,
                                                int group_size,
                                                int position);
[[nodiscard]] std::int64_t plan_reduce_scatter_sent(std::span<const std::int64_t> counts,
                                                    DType dtype,
                                                    int position);
[[nodiscard]] std::int64_t plan_all_gather_sent(std::span<const std::int64_t> counts,
                                                DType dtype,
                                                int position);

}  // namespace pecan::comm
