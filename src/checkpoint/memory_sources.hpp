#pragma once
/// The snapshots in this node's memory that a recovery may read.

#include <map>
#include <string>
#include <utility>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/checkpoint/manifest.hpp>
#include <pecan/checkpoint/plan.hpp>

#include "checkpoint/segment.hpp"

namespace pecan::checkpoint {

/// A block in storage (a file of a checkpoint) or in memory (a segment).
struct StoredBlock {
  const ShardBlock* block = nullptr;
  std::string file;                        ///< path of the shard; empty in memory
  const StoredSegment* segment = nullptr;  ///< in memory
  std::size_t index = 0;                   ///< of the block in it
};

/// All whole snapshots of a run on this node.
class MemorySources {
 public:
  MemorySources() = default;
  /// Reads the descriptions of the run's segments in `directory` that are of this node and of the
  /// model; what is wrong with the others is a sentence of `damages`. Segments that hold no
  /// snapshot are passed over.
  MemorySources(const std::string& directory,
                const std::string& run_id,
                std::uint64_t model_fingerprint,
                std::vector<std::string>& damages);
  /// Versions of which some segment holds a part, with the description of the first.
  [[nodiscard]] const std::map<Version, Manifest>& headers() const { return headers_; }
  [[nodiscard]] const std::vector<StoredBlock>& blocks(Version version,
                                                       const std::string& item_path) const;
  /// By buffer of `rank`, the version in it.
  [[nodiscard]] std::map<int, Version> buffers_of(Rank rank) const;
  /// Whether all elements of all blocks of `item` that `rank` holds are here at `version`.
  [[nodiscard]] bool covers(Version version, const StateItem& item, Rank rank) const;

 private:
  std::vector<StoredSegment> segments_;
  std::map<Version, Manifest> headers_;
  std::map<Version, std::map<std::string, std::vector<StoredBlock>>> blocks_;
};

/// The part of two blocks of one shape that they share; extent 0 where none.
[[nodiscard]] Block intersection(const Block& a, const Block& b);

}  // namespace pecan::checkpoint
