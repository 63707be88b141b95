#include "checkpoint/memory_sources.hpp"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include <pecan/core/hash.hpp>

namespace pecan::checkpoint {
namespace {

/// Paths of the segments of a run that are of this host, sorted.
std::vector<std::string> segments_of(const std::string& directory,
                                     const std::string& host,
                                     const std::string& run_id) {
  std::vector<std::string> paths;
  std::error_code none;  // no such directory: no snapshots
  for (const auto& entry : std::filesystem::directory_iterator(directory, none)) {
    const auto name = SegmentName::parse(entry.path().filename().string());
    if (name && name->run_id == run_id && name->host == host)
      paths.push_back(entry.path().string());
  }
  std::ranges::sort(paths);
  return paths;
}

/// The run's snapshots on this node, by file name.
std::map<std::string, StoredSegment> read_segments(const std::string& directory,
                                                   const std::string& host,
                                                   const std::string& run_id,
                                                   std::uint64_t model_fingerprint,
                                                   std::vector<std::string>& damages) {
  const std::unique_ptr<FileSystem> fs = make_posix_file_system();
  std::map<std::string, StoredSegment> segments;
  for (const std::string& path : segments_of(directory, host, run_id)) {
    Result<StoredSegment> segment = read_segment(*fs, path);
    if (!segment.ok()) {
      if (segment.status().code != StatusCode::kNotFound)
        damages.push_back(fmt::format("a snapshot in memory: {}", segment.status().message));
      continue;
    }
    if (segment.value().header.model_fingerprint != model_fingerprint) {
      damages.push_back(fmt::format("{} is of another model (fingerprint {}, this one's is {})",
                                    path,
                                    to_hex(segment.value().header.model_fingerprint),
                                    to_hex(model_fingerprint)));
      continue;
    }
    const std::string name = segment.value().name.file_name();
    segments.emplace(name, std::move(segment).value());
  }
  return segments;
}

std::size_t bytes_of(const ShardBlock& block) {
  return std::size_t(block.block.extent.num_elements()) * size_of(block.dtype);
}

bool overlap(const Block& a, const Block& b) {
  return intersection(a, b).extent.num_elements() > 0;
}

bool is_held_by(const StateBlock& part, Rank rank) {
  return std::ranges::binary_search(part.holders, rank);
}

}  // namespace

Block intersection(const Block& a, const Block& b) {
  Block common = a;
  for (int dim = 0; dim < a.offset.num_dims(); ++dim) {
    const std::int64_t begin = std::max(a.offset[dim], b.offset[dim]);
    const std::int64_t end = std::min(a.offset[dim] + a.extent[dim], b.offset[dim] + b.extent[dim]);
    common.offset[dim] = begin;
    common.extent[dim] = std::max<std::int64_t>(0, end - begin);
  }
  return common;
}

MemorySources::MemorySources(const std::string& directory,
                             const std::string& host,
                             const std::string& run_id,
                             std::uint64_t model_fingerprint,
                             const Nodes& nodes,
                             Exchange& exchange,
                             std::vector<std::string>& damages) {
  std::vector<std::string> mine;
  std::map<std::string, StoredSegment> here =
      read_segments(directory, host, run_id, model_fingerprint, mine);
  // One rank of each node speaks for it.
  std::vector<std::string> fields;
  if (nodes.is_first_of_node(exchange.rank())) {
    fields.push_back(pack(mine));
    for (const auto& [name, segment] : here)
      fields.push_back(pack({name,
                             to_hex(segment.description_hash),
                             to_json(segment.header),
                             to_json(segment.index)}));
  }
  const std::vector<std::string> texts = exchange.gather(pack(fields));
  for (std::size_t r = 0; r < texts.size(); ++r) {
    const std::vector<std::string> of_rank = unpack(texts[r]);
    if (of_rank.empty()) continue;
    for (std::string& damage : unpack(of_rank[0])) damages.push_back(std::move(damage));
    for (std::size_t i = 1; i < of_rank.size(); ++i) {
      const std::vector<std::string> parts = unpack(of_rank[i]);
      const int node = nodes.of(Rank{std::int32_t(r)});
      if (node == nodes.of(exchange.rank())) {
        // Read here already, unless the file has become another one since.
        const auto stored = here.find(parts[0]);
        if (stored != here.end() && to_hex(stored->second.description_hash) == parts[1]) {
          const StoredSegment& own = stored->second;
          segments_.push_back({node, own.name, own.header, own.index});
          here_.emplace(segments_.size() - 1, std::move(stored->second));
          continue;
        }
      }
      segments_.push_back({node,
                           SegmentName::parse(parts[0]).value(),
                           parse_manifest(parts[2]).value(),
                           parse_rank_index(parts[3]).value()});
    }
  }
  for (std::size_t s = 0; s < segments_.size(); ++s) {
    const Shared& segment = segments_[s];
    headers_.try_emplace(segment.header.version, segment.header);
    auto& of_version = pieces_[segment.header.version];
    for (std::size_t b = 0; b < segment.index.blocks.size(); ++b) {
      const ShardBlock& block = segment.index.blocks[b].block;
      of_version[block.item + "/" + block.dataset].push_back({s, b});
    }
  }
}

std::vector<MemoryPiece> MemorySources::pieces(Version version,
                                               const std::string& item_path,
                                               int node) const {
  std::vector<MemoryPiece> chosen;
  const auto of_version = pieces_.find(version);
  if (of_version == pieces_.end()) return chosen;
  const auto of_item = of_version->second.find(item_path);
  if (of_item == of_version->second.end()) return chosen;
  for (const MemoryPiece piece : of_item->second) {
    if (excluded_.contains(piece)) continue;
    const auto same = std::ranges::find_if(
        chosen, [&](MemoryPiece other) { return block(other).block == block(piece).block; });
    if (same == chosen.end()) {
      chosen.push_back(piece);
    } else if (node_of(piece) == node && node_of(*same) != node) {
      *same = piece;
    }
  }
  return chosen;
}

const ShardBlock& MemorySources::block(MemoryPiece piece) const {
  return segments_[piece.segment].index.blocks[piece.block].block;
}

int MemorySources::node_of(MemoryPiece piece) const {
  return segments_[piece.segment].node;
}

std::string MemorySources::describe(MemoryPiece piece) const {
  const SegmentName& name = segments_[piece.segment].name;
  return fmt::format("{} of {}", block(piece).dataset_path(), name.file_name());
}

bool MemorySources::covers(Version version, const StateItem& item) const {
  constexpr int kAnyNode = 0;
  const std::vector<MemoryPiece> stored = pieces(version, item.path(), kAnyNode);
  std::int64_t elements = 0;
  for (std::size_t i = 0; i < stored.size(); ++i) {
    const ShardBlock& one = block(stored[i]);
    if (one.global_shape != item.global_shape || one.dtype != item.dtype ||
        !one.block.fits(item.global_shape))
      return false;
    for (std::size_t j = 0; j < i; ++j) {
      if (overlap(one.block, block(stored[j]).block)) return false;
    }
    elements += one.block.extent.num_elements();
  }
  return elements == item.global_shape.num_elements();
}

Status MemorySources::read(MemoryPiece piece, std::span<std::byte> destination) const {
  const auto stored = here_.find(piece.segment);
  if (stored == here_.end()) {
    return Status::failure(
        StatusCode::kNotFound,
        fmt::format("{} is not on this node any more", segments_[piece.segment].name.file_name()));
  }
  return read_block(stored->second, piece.block, destination);
}

std::map<int, Version> MemorySources::buffers_of(Rank rank, int node) const {
  std::map<int, Version> buffers;
  for (const Shared& segment : segments_) {
    if (segment.node == node && segment.name.rank == rank && segment.name.copy == 0)
      buffers[segment.name.buffer] = segment.header.version;
  }
  return buffers;
}

std::vector<Transfer> plan_transfers(const std::vector<const StateItem*>& items,
                                     Version version,
                                     const MemorySources& memory,
                                     const Nodes& nodes) {
  std::vector<Transfer> transfers;
  for (const StateItem* item : items) {
    for (int node = 0; node < nodes.size(); ++node) {
      for (const MemoryPiece piece : memory.pieces(version, item->path(), node)) {
        const int from = memory.node_of(piece);
        if (from == node) continue;
        const ShardBlock& block = memory.block(piece);
        const std::vector<Rank>& readers = nodes.ranks(from);
        const Rank reader = readers[(piece.segment + piece.block) % readers.size()];
        for (const Rank rank : nodes.ranks(node)) {
          const bool needs = std::ranges::any_of(item->blocks, [&](const StateBlock& part) {
            return is_held_by(part, rank) && overlap(part.block, block.block);
          });
          if (needs) transfers.push_back({piece, reader, rank, bytes_of(block)});
        }
      }
    }
  }
  return transfers;
}

Received exchange_pieces(const std::vector<Transfer>& transfers,
                         const MemorySources& memory,
                         std::size_t round_bytes,
                         Exchange& exchange) {
  Received received;
  const auto num_ranks = std::size_t(exchange.size());
  for (std::size_t begin = 0; begin < transfers.size();) {
    std::vector<std::size_t> sent(num_ranks, 0);
    std::vector<std::size_t> taken(num_ranks, 0);
    std::size_t end = begin;
    for (; end < transfers.size(); ++end) {
      const Transfer& next = transfers[end];
      std::size_t& out = sent[std::size_t(next.from.value)];
      std::size_t& in = taken[std::size_t(next.to.value)];
      if (end > begin && (out + next.num_bytes > round_bytes || in + next.num_bytes > round_bytes))
        break;
      out += next.num_bytes;
      in += next.num_bytes;
    }
    // Per peer: a text for what cannot be read, else the bytes.
    std::vector<std::vector<std::string>> to(num_ranks);
    std::vector<std::vector<MemoryPiece>> from(num_ranks);
    for (std::size_t t = begin; t < end; ++t) {
      const Transfer& transfer = transfers[t];
      if (transfer.to == exchange.rank())
        from[std::size_t(transfer.from.value)].push_back(transfer.piece);
      if (transfer.from != exchange.rank()) continue;
      std::string bytes(transfer.num_bytes, '\0');
      const Status status = memory.read(transfer.piece, std::as_writable_bytes(std::span(bytes)));
      to[std::size_t(transfer.to.value)].push_back(status.ok() ? pack({"ok", bytes})
                                                               : pack({"failed", status.message}));
    }
    std::vector<std::string> messages;
    for (const auto& fields : to) messages.push_back(pack(fields));
    const std::vector<std::string> answers = exchange.all_to_all(messages);
    for (std::size_t r = 0; r < num_ranks; ++r) {
      const std::vector<std::string> fields = unpack(answers[r]);
      PECAN_ASSERT(fields.size() == from[r].size());
      for (std::size_t i = 0; i < fields.size(); ++i) {
        const std::vector<std::string> parts = unpack(fields[i]);
        const MemoryPiece piece = from[r][i];
        const auto bytes = std::as_bytes(std::span(parts[1]));
        if (parts[0] != "ok") {
          received.failed.emplace(piece, parts[1]);
        } else if (xxh3(bytes) != memory.block(piece).xxh3) {
          received.failed.emplace(
              piece,
              fmt::format("{} was changed on its way from rank {}", memory.describe(piece), r));
        } else {
          received.bytes.emplace(piece, std::vector(bytes.begin(), bytes.end()));
        }
      }
    }
    begin = end;
  }
  return received;
}

}  // namespace pecan::checkpoint
