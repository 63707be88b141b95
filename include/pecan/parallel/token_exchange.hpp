#pragma once
/// Sends token rows to the ranks of their experts and results back (all-to-all-v over the
/// expert-parallel group).

#include <cstdint>
#include <span>
#include <vector>

#include <pecan/core/tensor.hpp>

#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::parallel {

/// One layer's exchange of one micro-batch. Legend: S slots sent, R slots received, H hidden, E
/// experts, e local experts. Received rows stand by (local expert, source rank, position at the
/// source): global token order inside an expert for every layout. Every member enters every call,
/// with or without tokens.
class TokenExchange {
 public:
  /// `ep` outlives the object; num_experts is divisible by its size.
  TokenExchange(comm::Group& ep, int num_experts, LayerId layer);
  /// Exchanges how many rows go where: counts_E[i] rows of this rank belong to expert i. Collective
  /// over ep.
  void plan(Context& ctx, std::span<const std::int64_t> counts_E);
  [[nodiscard]] int num_ranks() const { return ep_.size(); }
  [[nodiscard]] std::int64_t num_received() const { return num_received_; }
  /// Rows for each local expert, in order.
  [[nodiscard]] std::span<const std::int64_t> received_counts() const { return received_e_; }
  /// sent_SH (sorted by expert) -> received_RH; staging_RH is scratch of equal size. Collective
  /// over ep.
  void to_experts(Context& ctx,
                  ConstTensorView sent_SH,
                  TensorView received_RH,
                  TensorView staging_RH,
                  comm::Purpose purpose) const;
  /// The way back: received_RH -> sent_SH. Collective over ep.
  void from_experts(Context& ctx,
                    ConstTensorView received_RH,
                    TensorView sent_SH,
                    TensorView staging_RH,
                    comm::Purpose purpose) const;

 private:
  enum class Direction : std::uint8_t { kBySource, kByExpert };
  /// Copies rows between the orders (source, expert) and (expert, source).
  void reorder(ConstTensorView from, TensorView to, Direction to_order) const;
  [[nodiscard]] std::vector<std::int64_t> scaled(std::span<const std::int64_t> rows,
                                                 std::int64_t width) const;

  comm::Group& ep_;
  int num_local_;
  LayerId layer_;
  std::vector<std::int64_t> sent_by_rank_;
  std::vector<std::int64_t> received_by_rank_;
  std::vector<std::int64_t> received_re_;  ///< [source rank, local expert]
  std::vector<std::int64_t> received_e_;
  std::int64_t num_sent_ = 0;
  std::int64_t num_received_ = 0;
};

}  // namespace pecan::parallel
