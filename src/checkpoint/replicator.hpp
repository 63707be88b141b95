#pragma once
/// Copies of snapshots in the memory of other nodes.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <pecan/comm/group.hpp>

#include <pecan/checkpoint/checkpointer.hpp>

#include "checkpoint/nodes.hpp"
#include "checkpoint/segment.hpp"

namespace pecan::checkpoint {

/// Sends each sealed snapshot of this rank to its keepers, and keeps those of others. Everything
/// moves in begin(), offer() and progress(), on the main thread, by sends and receives that do not
/// block and of which few are under way at a time; a thread of its own compares checksums.
///
/// The copy of a buffer lies in a buffer of the same number, so that a copy lives as long as what
/// it is of: a snapshot counts as whole only when its copies are.
/// Source: Gemini (SOSP 2023). Differs from the paper: sent between steps instead of in gaps that a
/// profile found.
class Replicator {
 public:
  /// `replication.factor` - 1 copies of each snapshot; `memory` by rank. Buffers that an earlier
  /// start has left are taken over with what they hold. ConfigError if there are fewer nodes than
  /// the factor; CheckpointError where memory is short. Collective.
  Replicator(const Replication& replication,
             const Nodes& nodes,
             const std::string& directory,
             const std::string& host,
             const std::string& run_id,
             const std::vector<SnapshotMemory>& memory);
  ~Replicator();
  Replicator(const Replicator&) = delete;
  Replicator& operator=(const Replicator&) = delete;

  /// What is kept of `buffer` must not be used again.
  void invalidate(int buffer);
  /// A snapshot begins in `buffer` on all ranks: what is kept of it is given up, and the next
  /// awaited.
  void begin(int buffer);
  /// This rank's part is sealed in `segment`, which stays as it is until done(); null: it failed.
  void offer(const Segment* segment);
  /// Moves on.
  void progress();
  /// Whether an offer is still owed for the snapshot that begin() has announced.
  [[nodiscard]] bool expects_offer() const { return expects_offer_; }
  /// All that this rank sends is received, and all that it keeps is whole, or has failed.
  [[nodiscard]] bool done() const;
  /// How the last snapshot went, once done().
  [[nodiscard]] Status status() const;
  /// Bytes sent since the start.
  [[nodiscard]] std::int64_t sent_bytes() const { return sent_bytes_; }
  /// Removes the copies, at the end of the run.
  void remove();

 private:
  struct Outgoing;
  struct Incoming;
  struct Checks;
  Context& ctx_;
  std::unique_ptr<comm::Group> group_;
  std::vector<std::unique_ptr<Outgoing>> outgoing_;
  std::vector<std::unique_ptr<Incoming>> incoming_;
  bool expects_offer_ = false;
  std::int64_t sent_bytes_ = 0;
  std::unique_ptr<Checks> checks_;  ///< last: its thread uses the others
};

/// Whether the copy `name` on `host` is one that a rank of this node keeps. Pure.
[[nodiscard]] bool keeps_copy(
    const SegmentName& name, const Nodes& nodes, int node, int num_copies, int num_buffers);

}  // namespace pecan::checkpoint
