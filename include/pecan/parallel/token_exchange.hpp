#pragma once
/// Sends token rows to the ranks of their experts and results back (all-to-all-v over the ranks
/// that together hold all experts).

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <pecan/core/tensor.hpp>

#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::parallel {

/// Where rows go: the position in the group of ep * etp ranks is ep position * etp + etp position.
struct ExpertGrid {
  int ep = 1;
  int etp = 1;
  int num_experts = 1;
  [[nodiscard]] int num_local() const { return num_experts / ep; }
};

/// Tokens of a micro-batch in a row.
struct TokenRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

/// One layer's exchange of one micro-batch, in one or several chunks of tokens. Legend, of one
/// chunk: S slots sent, R slots received, H hidden; E experts. Rows of an expert go to each of the
/// etp ranks that share it, and their results, which are parts of a sum, are added in the order of
/// these ranks. Received rows stand by (local expert, source rank, position at the source): global
/// token order inside an expert for every layout. Every member enters every call, with or without
/// tokens.
class TokenExchange {
 public:
  /// `dispatch` has grid.ep * grid.etp ranks and outlives the object; ep divides num_experts.
  TokenExchange(comm::Group& dispatch, ExpertGrid grid, LayerId layer);
  /// Writes how many slots of a range of tokens go to each expert.
  using CountSlots = std::function<void(TokenRange tokens, std::span<std::int64_t> counts_E)>;
  /// Learns how many rows go where and cuts the micro-batch of `num_tokens` into as few chunks, a
  /// power of two or one token each, as keep the rows that any rank receives of a chunk within
  /// `max_rows`, which covers one token of every rank. `count` is called for the chunks of each
  /// division that is tried, of the one that stands last. Collective over the group, whose members
  /// all have as many tokens and the same max_rows.
  void plan(Context& ctx, std::int64_t num_tokens, std::int64_t max_rows, const CountSlots& count);
  [[nodiscard]] int num_chunks() const { return num_chunks_; }
  [[nodiscard]] TokenRange tokens_of(int chunk) const;
  [[nodiscard]] std::int64_t num_sent(int chunk) const { return chunk_at(chunk).num_sent; }
  [[nodiscard]] std::int64_t num_received(int chunk) const { return chunk_at(chunk).num_received; }
  /// Rows for each local expert, in order.
  [[nodiscard]] std::span<const std::int64_t> received_counts(int chunk) const {
    return chunk_at(chunk).received_e;
  }
  /// Slots of this rank's micro-batch, by expert.
  [[nodiscard]] std::span<const std::int64_t> sent_counts() const { return sent_E_; }
  /// Rows of the whole micro-batch by expert-parallel position.
  [[nodiscard]] std::span<const std::int64_t> loads() const { return loads_; }
  /// sent_SH (sorted by expert) -> received_RH; scratch: staging_RH of equal size and, with etp >
  /// 1, copies_CH of etp * S rows. Collective over the group.
  void to_experts(Context& ctx,
                  int chunk,
                  ConstTensorView sent_SH,
                  TensorView received_RH,
                  TensorView staging_RH,
                  TensorView copies_CH,
                  comm::Purpose purpose) const;
  /// The way back: received_RH -> sent_SH. Collective over the group.
  void from_experts(Context& ctx,
                    int chunk,
                    ConstTensorView received_RH,
                    TensorView sent_SH,
                    TensorView staging_RH,
                    TensorView copies_CH,
                    comm::Purpose purpose) const;

 private:
  struct Chunk {
    std::vector<std::int64_t> sent_by_ep;    ///< rows by expert-parallel position
    std::vector<std::int64_t> sent_by_rank;  ///< the same for each rank of the group
    std::vector<std::int64_t> received_by_rank;
    std::vector<std::int64_t> received_re;  ///< [source rank, local expert]
    std::vector<std::int64_t> received_e;
    std::int64_t num_sent = 0;
    std::int64_t num_received = 0;
  };
  enum class Direction : std::uint8_t { kBySource, kByExpert };
  [[nodiscard]] const Chunk& chunk_at(int chunk) const { return chunks_.at(std::size_t(chunk)); }
  /// counts_GCE: of every rank, chunk and expert.
  [[nodiscard]] std::int64_t most_received(std::span<const std::int64_t> counts_GCE) const;
  void fill_chunks(std::span<const std::int64_t> counts_GCE);
  /// Copies rows between the orders (source, expert) and (expert, source).
  static void reorder(
      Context& ctx, const Chunk& chunk, ConstTensorView from, TensorView to, Direction to_order);

  comm::Group& dispatch_;
  ExpertGrid grid_;
  LayerId layer_;
  std::int64_t num_tokens_ = 0;
  int num_chunks_ = 1;
  std::vector<Chunk> chunks_;
  std::vector<std::int64_t> sent_E_;
  std::vector<std::int64_t> loads_;
};

}  // namespace pecan::parallel
