#pragma once
/// All collectives, written once over a Transport: whatever moves the bytes, sums are formed alike.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include <pecan/comm/group.hpp>

#include "comm/peer_operation.hpp"
#include "comm/transport.hpp"

namespace pecan::comm {

/// Group over any transport. A member's calls all come from one thread; abort() from any.
class PeerGroup final : public Group {
 public:
  /// The first group of a family: its ranks are those of the world.
  PeerGroup(std::unique_ptr<Transport> transport,
            std::shared_ptr<AbortFlag> abort_flag,
            GroupOptions options);

  /// Lets members of one node exchange through memory from now on, if the options ask for it; says
  /// why where it cannot be had. Collective over this group, before its first collective.
  void open_window();

  [[nodiscard]] int size() const override { return peers_.transport->size(); }
  [[nodiscard]] Rank rank() const override { return Rank{peers_.transport->rank()}; }
  [[nodiscard]] Pending all_reduce(Context& ctx, TensorView inout, ReduceOp op, Tag tag) override;
  [[nodiscard]] Pending reduce_scatter_v(Context& ctx,
                                         ConstTensorView input,
                                         std::span<const std::int64_t> counts,
                                         TensorView output,
                                         ReduceOp op,
                                         Tag tag) override;
  [[nodiscard]] Pending all_gather_v(Context& ctx,
                                     ConstTensorView input,
                                     std::span<const std::int64_t> counts,
                                     TensorView output,
                                     Tag tag) override;
  [[nodiscard]] Pending all_to_all_v(Context& ctx,
                                     ConstTensorView input,
                                     std::span<const std::int64_t> send_counts,
                                     TensorView output,
                                     std::span<const std::int64_t> receive_counts,
                                     Tag tag) override;
  [[nodiscard]] Pending broadcast(Context& ctx, TensorView inout, Rank root, Tag tag) override;
  [[nodiscard]] Pending send(Context& ctx, ConstTensorView input, Rank to, Tag tag) override;
  [[nodiscard]] Pending receive(Context& ctx, TensorView output, Rank from, Tag tag) override;
  [[nodiscard]] std::unique_ptr<Group> split(int color, int key) override;
  void abort(const std::string& reason) override { peers_.family->abort_flag->raise(reason); }
  void set_step(Step step) override { peers_.family->step = step; }
  [[nodiscard]] Traffic traffic(Purpose purpose) const override {
    return peers_.traffic[std::size_t(purpose)];
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return peers_.family->scratch_bytes();
  }

 private:
  explicit PeerGroup(Peers peers) : peers_(std::move(peers)) {}
  [[nodiscard]] std::unique_ptr<PeerOperation> begin_collective(std::string_view name, Tag tag);
  [[nodiscard]] std::unique_ptr<PeerOperation> begin_message(std::string name, Tag tag);

  Peers peers_;
  std::int64_t num_collectives_ = 0;
};

}  // namespace pecan::comm
