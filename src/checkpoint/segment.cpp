#include "checkpoint/segment.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include <unistd.h>

#include <pecan/core/hash.hpp>
#include <pecan/core/text.hpp>

#include <pecan/device/device.hpp>

namespace pecan::checkpoint {
namespace {

constexpr std::uint64_t kMagic = 0x316F6D654D6E6350;  // on-disk: "PcnMemo1"
constexpr std::uint64_t kSegmentVersion =
    1;  // on-disk: raise with every change that old readers cannot read
constexpr std::string_view kMemoryFile = "memory";

constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kAlignment = 64;  ///< of blocks in the payload
static_assert(kAlignment == device::kBufferAlignment, "snapshots are laid out alike everywhere");

/// Of the description: run, lineage and the trainer's tables (13 digits for each of 256 experts in
/// 60 layers are 210 KB), and the blocks. One with the widest numbers takes 120 bytes besides its
/// item's and dataset's names, which come to 70.
constexpr std::size_t kHeadBytes = std::size_t(1) << 20;
constexpr std::size_t kBytesPerBlock = 256;

constexpr std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

constexpr std::size_t description_capacity(std::size_t max_blocks) {
  return round_up(kHeadBytes + kBytesPerBlock * max_blocks, kPageBytes);
}

/// Words of the header, each 8 bytes, little-endian.
enum Word : std::size_t {
  kMagicWord,
  kVersionWord,
  kDescriptionOffset,
  kManifestBytes,
  kIndexBytes,
  kPayloadOffset,
  kPayloadBytes,
  kDescriptionHash,
  kCommitWord,  ///< XXH3 of the words before it; 0: no snapshot
  kNumWords
};
using Header = std::array<std::uint64_t, kNumWords>;
using HeaderBytes = std::array<std::byte, 8 * kNumWords>;

HeaderBytes to_bytes(const Header& header) {
  HeaderBytes bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = std::byte(header[i / 8] >> (8 * (i % 8)) & 0xFF);
  return bytes;
}

Header from_bytes(const HeaderBytes& bytes) {
  Header header{};
  for (std::size_t i = 0; i < bytes.size(); ++i)
    header[i / 8] |= std::uint64_t(bytes[i]) << (8 * (i % 8));
  return header;
}

/// What the commit word of this header is.
std::uint64_t seal_of(const Header& header) {
  const HeaderBytes bytes = to_bytes(header);
  return xxh3(std::span<const std::byte>(bytes).first(8 * kCommitWord));
}

/// Where blocks lie behind each other in a payload, and where the last one ends.
struct PayloadLayout {
  std::vector<std::uint64_t> offsets;
  std::uint64_t num_bytes = 0;
};

/// nullopt if the blocks do not fit in `limit` bytes.
std::optional<PayloadLayout> lay_out(const std::vector<BlockEntry>& blocks, std::uint64_t limit) {
  PayloadLayout layout;
  layout.offsets.reserve(blocks.size());
  for (const BlockEntry& entry : blocks) {
    const std::uint64_t offset = round_up(layout.num_bytes, kAlignment);
    const std::uint64_t element = size_of(entry.block.dtype);
    const auto count = std::uint64_t(entry.block.block.extent.num_elements());
    if (offset > limit || count > (limit - offset) / element) return {};
    layout.offsets.push_back(offset);
    layout.num_bytes = offset + count * element;
  }
  return layout;
}

bool is_word(std::string_view text, std::string_view also) {
  return !text.empty() && std::ranges::all_of(text, [&](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           also.find(c) != std::string_view::npos;
  });
}

/// Cuts "<mark><number>" from the end.
std::optional<std::int32_t> take_number(std::string_view& text, std::string_view mark) {
  const std::size_t begin = text.rfind(mark);
  if (begin == std::string_view::npos) return {};
  const char* const end = text.data() + text.size();
  std::int32_t number = 0;
  const auto parsed = std::from_chars(text.data() + begin + mark.size(), end, number);
  if (parsed.ec != std::errc() || parsed.ptr != end || number < 0) return {};
  text = text.substr(0, begin);
  return number;
}

/// What to try when memory cannot be had.
std::string_view hint_for(StatusCode code) {
  return code == StatusCode::kNoSpace
             ? "enlarge the directory (mount -o remount,size=..., --shm-size of containers), see "
               "what lies in it (pecan-inspect --memory), or lower "
               "checkpoint.pec.experts_per_snapshot"
             : "checkpoint.memory_dir must be there, and writable, on every node";
}

std::atomic_ref<std::uint64_t> commit_word(std::span<std::byte> file) {
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(file.data() + 8 * kCommitWord));
}

Status read_exactly(File& file, std::uint64_t offset, std::span<std::byte> bytes) {
  const Result<std::size_t> count = file.read_at(offset, bytes);
  if (!count.ok()) return count.status();
  if (count.value() == bytes.size()) return {};
  return Status::failure(StatusCode::kCorrupt, "the file ended while it was read");
}

Result<Header> read_header(File& file) {
  HeaderBytes bytes{};
  if (Status status = read_exactly(file, 0, bytes); !status.ok()) return status;
  return from_bytes(bytes);
}

Status corrupt(const std::string& path, const std::string& why) {
  return Status::failure(StatusCode::kCorrupt,
                         fmt::format("{} is no intact snapshot: {}", path, why));
}

Status no_snapshot(const std::string& path) {
  return Status::failure(StatusCode::kNotFound,
                         fmt::format("{} holds no snapshot: none was finished in it, or the next "
                                     "one is being written",
                                     path));
}

/// Checks the header by itself and against the size of the file.
Status check_header(const std::string& path, const Header& header, std::uint64_t file_bytes) {
  if (header[kCommitWord] == 0) return no_snapshot(path);
  if (header[kMagicWord] != kMagic) return corrupt(path, "it does not begin with \"PcnMemo1\"");
  if (header[kCommitWord] != seal_of(header))
    return corrupt(path, "its header contradicts its commit word");
  if (header[kVersionWord] > kSegmentVersion) {
    return Status::failure(
        StatusCode::kInvalid,
        fmt::format("{} has format version {}, newer than {}, the newest that this program reads; "
                    "use the version of Pecan that wrote it",
                    path,
                    header[kVersionWord],
                    kSegmentVersion));
  }
  // Each bound is checked before it is used to compute the next one: nothing can wrap around.
  const bool fits = header[kPayloadOffset] <= file_bytes &&
                    header[kPayloadBytes] <= file_bytes - header[kPayloadOffset] &&
                    header[kDescriptionOffset] <= header[kPayloadOffset] &&
                    header[kManifestBytes] <= header[kPayloadOffset] - header[kDescriptionOffset] &&
                    header[kIndexBytes] <= header[kPayloadOffset] - header[kDescriptionOffset] -
                                               header[kManifestBytes];
  if (!fits) return corrupt(path, fmt::format("its parts do not lie in its {} bytes", file_bytes));
  return {};
}

/// How the description contradicts itself or the file's name; empty if it does not.
std::string contradiction(const StoredSegment& segment) {
  const SegmentName& name = segment.name;
  const Manifest& header = segment.header;
  const RankIndex& index = segment.index;
  if (header.run_id != name.run_id)
    return fmt::format("its name is of another run than its content, {}", shortened(header.run_id));
  if (index.rank != name.rank)
    return fmt::format("its name is of another rank than its content, {}", index.rank);
  if (index.rank.value >= header.world_size)
    return fmt::format("it is of rank {} of {}", index.rank, header.world_size);
  if (index.version != header.version)
    return fmt::format("its parts are of steps {} and {} (start {} and {})",
                       header.version.step,
                       index.version.step,
                       header.version.incarnation.value + 1,
                       index.version.incarnation.value + 1);
  if (index.files.size() != 1 || index.files[0].name != kMemoryFile)
    return "its blocks are not said to be in memory";
  return {};
}

/// Fills what the description says.
Status read_description(const Header& header, StoredSegment& segment) {
  std::string text(header[kManifestBytes] + header[kIndexBytes], '\0');
  if (Status status = read_exactly(
          *segment.file, header[kDescriptionOffset], std::as_writable_bytes(std::span(text)));
      !status.ok()) {
    return status;
  }
  if (xxh3(text) != header[kDescriptionHash])
    return corrupt(segment.path, "its description contradicts its checksum");
  Result<Manifest> manifest = parse_manifest(text.substr(0, header[kManifestBytes]));
  if (!manifest.ok()) {
    return Status::failure(manifest.status().code,
                           fmt::format("{}: {}", segment.path, manifest.status().message));
  }
  Result<RankIndex> index = parse_rank_index(text.substr(header[kManifestBytes]));
  if (!index.ok()) {
    return Status::failure(index.status().code,
                           fmt::format("{}: {}", segment.path, index.status().message));
  }
  segment.header = std::move(manifest).value();
  segment.index = std::move(index).value();
  segment.description_hash = header[kDescriptionHash];
  if (const std::string why = contradiction(segment); !why.empty())
    return corrupt(segment.path, why);
  std::optional<PayloadLayout> layout = lay_out(segment.index.blocks, header[kPayloadBytes]);
  if (!layout || layout->num_bytes != header[kPayloadBytes])
    return corrupt(segment.path, "its blocks do not make up its payload");
  segment.offsets = std::move(layout->offsets);
  for (std::uint64_t& offset : segment.offsets) offset += header[kPayloadOffset];
  return {};
}

std::size_t bytes_of(const BlockEntry& entry) {
  return std::size_t(entry.block.block.extent.num_elements()) * size_of(entry.block.dtype);
}

}  // namespace

std::string SegmentName::file_name() const {
  const std::string own = fmt::format("pecan.{}.{}.r{:05}.b{}", run_id, host, rank.value, buffer);
  return copy == 0 ? own : fmt::format("{}.c{}", own, copy);
}

std::optional<SegmentName> SegmentName::parse(std::string_view file_name) {
  constexpr std::string_view kPrefix = "pecan.";
  std::string_view rest = file_name;
  if (!rest.starts_with(kPrefix)) return {};
  rest.remove_prefix(kPrefix.size());
  // From the end: a host may have dots.
  const std::size_t last_dot = rest.rfind('.');
  int copy = 0;
  if (last_dot != std::string_view::npos && rest.substr(last_dot).starts_with(".c")) {
    const auto number = take_number(rest, ".c");
    if (!number || *number == 0) return {};
    copy = *number;
  }
  const auto buffer = take_number(rest, ".b");
  const auto rank = buffer ? take_number(rest, ".r") : std::nullopt;
  const std::size_t dot = rest.find('.');
  if (!rank || dot == std::string_view::npos) return {};
  SegmentName name{std::string(rest.substr(0, dot)),
                   std::string(rest.substr(dot + 1)),
                   Rank{*rank},
                   *buffer,
                   copy};
  if (!is_word(name.run_id, "-_") || !is_word(name.host, "-_.")) return {};
  if (name.file_name() != file_name) return {};  // such as leading zeros
  return name;
}

std::string this_host() {
  std::array<char, 256> text{};
  static_cast<void>(gethostname(text.data(), text.size() - 1));
  std::string name = text[0] == '\0' ? "localhost" : text.data();
  for (char& c : name) {
    if (!is_word({&c, 1}, "-_.")) c = '-';
  }
  return name;
}

void remove_superseded_segments(const std::string& directory,
                                const std::string& host,
                                const std::string& run_id,
                                const std::function<bool(const SegmentName&)>& keeps) {
  std::error_code ignored;  // what stays costs memory and is listed by pecan-inspect --memory
  for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
    const auto name = SegmentName::parse(entry.path().filename().string());
    if (!name || name->run_id != run_id || name->host != host || keeps(*name)) continue;
    static_cast<void>(SharedMemory::remove_unless_in_use(entry.path().string()));
  }
}

FileEntry memory_file(Rank writer, std::uint64_t payload_bytes) {
  // Without a checksum of the whole: the blocks have theirs, and another pass would cost as much.
  return {std::string(kMemoryFile), FileKind::kState, writer, {payload_bytes, 0}};
}

Segment::Segment(const std::string& directory,
                 const SegmentName& name,
                 std::size_t payload_capacity,
                 std::size_t max_blocks)
    : payload_offset_(kPageBytes + description_capacity(max_blocks)),
      payload_capacity_(payload_capacity) {
  PECAN_VALIDATE(SegmentName::parse(name.file_name()) == name,
                 CheckpointError,
                 "run id \"{}\" and host \"{}\" cannot name a file of snapshots in memory; both "
                 "need letters, digits, - and _",
                 shortened(name.run_id),
                 shortened(name.host));
  const std::string path = directory + "/" + name.file_name();
  const std::size_t num_bytes = file_bytes(payload_capacity, max_blocks);
  Result<SharedMemory> memory = SharedMemory::create(path, num_bytes);
  PECAN_VALIDATE(memory.ok(),
                 CheckpointError,
                 "a buffer for snapshots in memory cannot be made: {}; {}",
                 memory.status().message,
                 hint_for(memory.status().code));
  memory_ = std::move(memory).value();
}

std::optional<Segment> Segment::adopt(const std::string& directory,
                                      const SegmentName& name,
                                      std::size_t payload_capacity,
                                      std::size_t max_blocks) {
  Result<SharedMemory> memory = SharedMemory::adopt(directory + "/" + name.file_name());
  if (!memory.ok() || memory.value().bytes().size() < sizeof(HeaderBytes)) return {};
  const std::span<const std::byte> file = memory.value().bytes();
  HeaderBytes bytes{};
  std::memcpy(bytes.data(), file.data(), bytes.size());
  const Header words = from_bytes(bytes);
  const std::uint64_t offset = words[kPayloadOffset];
  if (words[kMagicWord] != kMagic || words[kVersionWord] != kSegmentVersion ||
      offset % kPageBytes != 0 || offset < kPageBytes + description_capacity(max_blocks) ||
      offset > file.size() || file.size() - offset < payload_capacity)
    return {};
  Segment segment;
  segment.payload_offset_ = offset;
  segment.payload_capacity_ = file.size() - offset;
  segment.memory_ = std::move(memory).value();
  return segment;
}

std::size_t Segment::file_bytes(std::size_t payload_capacity, std::size_t max_blocks) {
  return kPageBytes + description_capacity(max_blocks) + payload_capacity;
}

std::span<std::byte> Segment::payload() const {
  return memory_.bytes().subspan(payload_offset_, payload_capacity_);
}

void Segment::begin() {
  commit_word(memory_.bytes()).store(0, std::memory_order_relaxed);
  // No later store comes before this one: a process killed from here on leaves no snapshot.
  std::atomic_thread_fence(std::memory_order_release);
}

Status Segment::commit(const Manifest& header, const RankIndex& index) {
  PECAN_EXPECTS(commit_word(memory_.bytes()).load(std::memory_order_relaxed) == 0);
  PECAN_EXPECTS(header.units.empty() && header.copies.empty() && header.files.empty() &&
                header.blocks.empty());
  const std::optional<PayloadLayout> layout = lay_out(index.blocks, payload_capacity_);
  PECAN_VALIDATE(layout,
                 InternalError,
                 "a snapshot of {} blocks does not fit in its {} bytes",
                 index.blocks.size(),
                 payload_capacity_);
  const std::string run = to_json(header), blocks = to_json(index);
  const std::string description = run + blocks;
  const std::size_t capacity = payload_offset_ - kPageBytes;
  if (description.size() > capacity) {
    return Status::failure(
        StatusCode::kNoSpace,
        fmt::format("the description of the snapshot at step {} has {} bytes, but {} has room for "
                    "{}; please report it",
                    header.version.step,
                    description.size(),
                    path(),
                    capacity));
  }
  Header words{};
  words[kMagicWord] = kMagic;
  words[kVersionWord] = kSegmentVersion;
  words[kDescriptionOffset] = kPageBytes;
  words[kManifestBytes] = run.size();
  words[kIndexBytes] = blocks.size();
  words[kPayloadOffset] = payload_offset_;
  words[kPayloadBytes] = layout->num_bytes;
  words[kDescriptionHash] = xxh3(description);
  words[kCommitWord] = seal_of(words);

  const HeaderBytes bytes = to_bytes(words);
  std::byte* const file = memory_.bytes().data();
  std::memcpy(file + kPageBytes, description.data(), description.size());
  std::memcpy(file, bytes.data(), 8 * kCommitWord);
  std::uint64_t word = 0;
  std::memcpy(&word, bytes.data() + 8 * kCommitWord, sizeof(word));
  // All the rest comes before the commit word: a process killed up to here leaves no snapshot, and
  // afterwards a whole one.
  std::atomic_thread_fence(std::memory_order_release);
  commit_word(memory_.bytes()).store(word, std::memory_order_relaxed);
  return {};
}

SegmentContent Segment::content() const {
  HeaderBytes bytes{};
  std::memcpy(bytes.data(), memory_.bytes().data(), bytes.size());
  const Header words = from_bytes(bytes);
  PECAN_EXPECTS(words[kCommitWord] != 0);
  const char* const text =
      reinterpret_cast<const char*>(memory_.bytes().data()) + words[kDescriptionOffset];
  return {{text, words[kManifestBytes]},
          {text + words[kManifestBytes], words[kIndexBytes]},
          payload().first(words[kPayloadBytes])};
}

Status Segment::verify(const RankIndex& index, std::size_t num_bytes) const {
  const std::optional<PayloadLayout> layout = lay_out(index.blocks, num_bytes);
  if (!layout || layout->num_bytes != num_bytes)
    return corrupt(path(), "its blocks do not make up its payload");
  for (std::size_t b = 0; b < index.blocks.size(); ++b) {
    const BlockEntry& entry = index.blocks[b];
    if (xxh3(payload().subspan(layout->offsets[b], bytes_of(entry))) != entry.block.xxh3)
      return corrupt(path(), entry.block.dataset_path() + " contradicts its checksum");
  }
  return {};
}

Status Segment::shrink_payload(std::size_t payload_capacity) {
  PECAN_EXPECTS(commit_word(memory_.bytes()).load(std::memory_order_relaxed) == 0);
  PECAN_EXPECTS(payload_capacity <= payload_capacity_);
  payload_capacity_ = payload_capacity;
  return memory_.shrink(payload_offset_ + payload_capacity);
}

Result<StoredSegment> read_segment(FileSystem& fs, const std::string& path) {
  StoredSegment segment;
  segment.path = path;
  const std::optional<SegmentName> name =
      SegmentName::parse(std::string_view(path).substr(path.rfind('/') + 1));
  if (!name) {
    return Status::failure(
        StatusCode::kInvalid,
        fmt::format("{} is no snapshot in memory: these are named pecan.RUN.HOST.rRANK.bBUFFER, "
                    "copies for other nodes .cCOPY behind that",
                    path));
  }
  segment.name = *name;
  Result<std::unique_ptr<File>> file = fs.open(path, OpenMode::kRead);
  if (!file.ok()) return file.status();
  segment.file = std::move(file).value();
  const Result<std::uint64_t> size = segment.file->size();
  if (!size.ok()) return size.status();
  // Its owner was killed before it had reserved the memory.
  if (size.value() == 0) return no_snapshot(path);
  if (size.value() < sizeof(HeaderBytes))
    return corrupt(path, fmt::format("its {} bytes are less than a header", size.value()));
  const Result<Header> header = read_header(*segment.file);
  if (!header.ok()) return header.status();
  Status status = check_header(path, header.value(), size.value());
  if (status.ok()) status = read_description(header.value(), segment);
  if (status.ok()) return segment;
  // What seems damaged may be the owner's next snapshot.
  const Result<Header> now = read_header(*segment.file);
  return now.ok() && now.value() != header.value() ? no_snapshot(path) : status;
}

Status read_block(const StoredSegment& segment,
                  std::size_t block,
                  std::span<std::byte> destination) {
  const BlockEntry& entry = segment.index.blocks.at(block);
  PECAN_EXPECTS(destination.size() == bytes_of(entry));
  if (Status status = read_exactly(*segment.file, segment.offsets[block], destination);
      !status.ok()) {
    return Status::failure(status.code, fmt::format("{}: {}", segment.path, status.message));
  }
  if (xxh3(destination) == entry.block.xxh3) return {};
  return corrupt(
      segment.path,
      fmt::format(
          "{} of step {} contradicts its checksum", entry.block.dataset_path(), entry.block.step));
}

}  // namespace pecan::checkpoint
