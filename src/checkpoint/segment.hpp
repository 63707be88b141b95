#pragma once
/// Snapshots in host memory that survive their process: one buffer of one rank is one file in a
/// memory directory (docs/formats/memory.md).

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/file_system.hpp>
#include <pecan/core/shared_memory.hpp>

#include <pecan/checkpoint/manifest.hpp>

namespace pecan::checkpoint {

/// Whose buffer a file is: "pecan.<run id>.<host>.r00003.b1", and for a copy that another rank
/// keeps of it "pecan.<run id>.<host>.r00003.b1.c1".
struct SegmentName {
  std::string run_id;  ///< letters, digits, - and _
  std::string host;    ///< where the file is; also dots
  Rank rank;
  int buffer = 0;
  int copy = 0;  ///< 0: the rank's own
  auto operator<=>(const SegmentName&) const = default;
  [[nodiscard]] std::string file_name() const;
  /// Only what file_name() gives.
  static std::optional<SegmentName> parse(std::string_view file_name);
};

/// This node's name, fit for a SegmentName.
[[nodiscard]] std::string this_host();

/// Removes what earlier starts of a run have left on this node, unless `keeps` it or a process uses
/// it.
void remove_superseded_segments(const std::string& directory,
                                const std::string& host,
                                const std::string& run_id,
                                const std::function<bool(const SegmentName&)>& keeps);

/// The entry that an index's list of files holds in memory: all of the payload.
[[nodiscard]] FileEntry memory_file(Rank writer, std::uint64_t payload_bytes);

/// What a committed segment says and holds.
struct SegmentContent {
  std::string manifest;
  std::string index;
  std::span<const std::byte> payload;
};

/// One buffer: begin, fill the payload, commit, and again. Between begin and commit the file holds
/// no snapshot, so that a process that is killed at any point leaves a whole one or none
/// (design: memory tier commit). The payload may be filled by any thread; the calls are the
/// owner's.
class Segment {
 public:
  /// Reserves the file for payloads of up to `payload_capacity` bytes in `max_blocks` blocks; a
  /// file of this name is replaced. CheckpointError where memory is short or the directory cannot
  /// be written.
  Segment(const std::string& directory,
          const SegmentName& name,
          std::size_t payload_capacity,
          std::size_t max_blocks);
  /// Takes over what an earlier start has left under this name, if it is large enough and nobody
  /// holds it; what it holds stays until begin().
  static std::optional<Segment> adopt(const std::string& directory,
                                      const SegmentName& name,
                                      std::size_t payload_capacity,
                                      std::size_t max_blocks);
  /// Size of such a file. Pure.
  [[nodiscard]] static std::size_t file_bytes(std::size_t payload_capacity, std::size_t max_blocks);

  [[nodiscard]] std::span<std::byte> payload() const;
  /// Takes the commit back: the payload may be overwritten.
  void begin();
  /// Makes the payload a snapshot: `header` describes run and step (no units, copies, files or
  /// blocks), `index` the blocks, of which each lies at the first multiple of 64 behind the one
  /// before. kNoSpace if the description is larger than max_blocks allows for; the file then holds
  /// no snapshot.
  Status commit(const Manifest& header, const RankIndex& index);
  /// Of a committed segment.
  [[nodiscard]] SegmentContent content() const;
  /// Whether the first `num_bytes` of the payload are the blocks of `index`, by their checksums:
  /// kCorrupt. Before commit().
  [[nodiscard]] Status verify(const RankIndex& index, std::size_t num_bytes) const;
  /// Gives back what a smaller payload does not need; between begin and commit.
  Status shrink_payload(std::size_t payload_capacity);
  /// Removes the file, at the end of the run.
  Status remove() { return memory_.remove(); }
  [[nodiscard]] const std::string& path() const { return memory_.path(); }

 private:
  Segment() = default;
  SharedMemory memory_;
  std::size_t payload_offset_ = 0;
  std::size_t payload_capacity_ = 0;
};

/// A committed snapshot. It stays readable while the object lives, even if the file is replaced.
struct StoredSegment {
  SegmentName name;
  std::string path;
  Manifest header;
  RankIndex index;
  std::uint64_t description_hash = 0;  ///< XXH3 of header and index as they stand in the file
  std::vector<std::uint64_t> offsets;  ///< of each block, in the file
  std::unique_ptr<File> file;
};

/// Reads and checks all but the payload, and whether name, run, rank and step agree. kNotFound:
/// there is no snapshot in it, or its owner is writing the next one; kInvalid: the name is none, or
/// the format is newer; kCorrupt: anything else that is not as commit() wrote it.
Result<StoredSegment> read_segment(FileSystem& fs, const std::string& path);
/// Reads one block of the index; `destination` has its size. kCorrupt if its checksum differs.
Status read_block(const StoredSegment& segment,
                  std::size_t block,
                  std::span<std::byte> destination);

}  // namespace pecan::checkpoint
