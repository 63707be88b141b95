#pragma once
/// The snapshots in the memory of the job's nodes that a recovery may read.

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/checkpoint/manifest.hpp>
#include <pecan/checkpoint/plan.hpp>
#include <pecan/checkpoint/recovery.hpp>

#include "checkpoint/exchange.hpp"
#include "checkpoint/nodes.hpp"
#include "checkpoint/segment.hpp"

namespace pecan::checkpoint {

/// A block of a segment on some node.
struct MemoryPiece {
  std::size_t segment = 0;  ///< in MemorySources
  std::size_t block = 0;    ///< in the segment's index
  auto operator<=>(const MemoryPiece&) const = default;
};

/// One block's bytes that a rank reads on its node for one of another node.
struct Transfer {
  MemoryPiece piece;
  Rank from;
  Rank to;
  std::size_t num_bytes = 0;
};

/// All whole snapshots of a run in memory, equal on all ranks; the bytes of each are read on its
/// own node.
class MemorySources {
 public:
  MemorySources() = default;
  /// Reads the descriptions of the run's segments in `directory` that are of `host` and of the
  /// model, and shares them with all ranks; what is wrong with the others is a sentence of
  /// `damages`. Segments that hold no snapshot are passed over. Collective.
  MemorySources(const std::string& directory,
                const std::string& host,
                const std::string& run_id,
                std::uint64_t model_fingerprint,
                const Nodes& nodes,
                Exchange& exchange,
                std::vector<std::string>& damages);
  /// Versions of which some segment holds a part, with the description of the first.
  [[nodiscard]] const std::map<Version, Manifest>& headers() const { return headers_; }
  /// Whether all elements of `item` are in memory at `version`.
  [[nodiscard]] bool covers(Version version, const StateItem& item) const;
  /// For each distinct stored block of the item: the piece that a rank of `node` reads, on its own
  /// node where there is one, else on the lowest.
  [[nodiscard]] std::vector<MemoryPiece> pieces(Version version,
                                                const std::string& item_path,
                                                int node) const;
  [[nodiscard]] const ShardBlock& block(MemoryPiece piece) const;
  [[nodiscard]] int node_of(MemoryPiece piece) const;
  /// For messages: the node's name and the file.
  [[nodiscard]] std::string describe(MemoryPiece piece) const;
  /// Reads a piece of this rank's node, verified.
  Status read(MemoryPiece piece, std::span<std::byte> destination) const;
  /// Leaves a damaged piece out from now on; whether it was not out already.
  bool exclude(MemoryPiece piece) { return excluded_.insert(piece).second; }
  /// By buffer of `rank`, the version in it; copies for others do not count.
  [[nodiscard]] std::map<int, Version> buffers_of(Rank rank, int node) const;

 private:
  struct Shared {
    int node = 0;
    SegmentName name;
    Manifest header;
    RankIndex index;
  };
  std::vector<Shared> segments_;
  std::map<std::size_t, StoredSegment> here_;  ///< those of this node
  std::map<Version, Manifest> headers_;
  std::map<Version, std::map<std::string, std::vector<MemoryPiece>>> pieces_;
  std::set<MemoryPiece> excluded_;
};

/// What ranks need of other nodes' memory for one group of `items` at `version`, in an order that
/// all ranks share; a node's ranks share out the reading. Pure.
[[nodiscard]] std::vector<Transfer> plan_transfers(const std::vector<const StateItem*>& items,
                                                   Version version,
                                                   const MemorySources& memory,
                                                   const Nodes& nodes);

/// Bytes that reached this rank from other nodes, and what could not be read there.
struct Received {
  std::map<MemoryPiece, std::vector<std::byte>> bytes;
  std::map<MemoryPiece, std::string> failed;
};
/// Reads and sends what `transfers` say. Each rank sends and receives at most `round_bytes` at a
/// time, or one block. Collective.
[[nodiscard]] Received exchange_pieces(const std::vector<Transfer>& transfers,
                                       const MemorySources& memory,
                                       std::size_t round_bytes,
                                       Exchange& exchange);

/// The part of two blocks of one shape that they share; extent 0 where none.
[[nodiscard]] Block intersection(const Block& a, const Block& b);

}  // namespace pecan::checkpoint
