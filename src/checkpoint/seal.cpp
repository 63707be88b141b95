#include "checkpoint/seal.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include <pecan/core/hash.hpp>

namespace pecan::checkpoint {
namespace {

constexpr std::uint64_t kMagic = 0x316C6165536E6350;  // on-disk: "PcnSeal1"
constexpr std::uint64_t kWordBytes = 8;
constexpr std::uint64_t kTailWords = 3;  ///< number of ranges, checksum, magic
constexpr std::size_t kPieceBytes = std::size_t(1) << 20;

void put_word(std::vector<std::byte>& bytes, std::uint64_t word) {
  for (unsigned i = 0; i < kWordBytes; ++i) bytes.push_back(std::byte(word >> (8 * i) & 0xFF));
}

std::uint64_t word_at(std::span<const std::byte> bytes, std::size_t index) {
  std::uint64_t word = 0;
  for (std::size_t i = 0; i < kWordBytes; ++i)
    word |= std::uint64_t(bytes[kWordBytes * index + i]) << (8 * i);
  return word;
}

Status read_exactly(File& file, std::uint64_t offset, std::span<std::byte> bytes) {
  const Result<std::size_t> count = file.read_at(offset, bytes);
  if (!count.ok()) return count.status();
  if (count.value() == bytes.size()) return {};
  return Status::failure(StatusCode::kIo, "the file ended while it was read");
}

/// Hashes [begin, end) of the file.
Status hash_range(File& file,
                  std::uint64_t begin,
                  std::uint64_t end,
                  std::vector<std::byte>& piece,
                  Xxh3Stream& hash) {
  while (begin < end) {
    const auto bytes =
        std::span(piece).first(std::size_t(std::min<std::uint64_t>(piece.size(), end - begin)));
    if (Status status = read_exactly(file, begin, bytes); !status.ok()) return status;
    hash.update(bytes);
    begin += bytes.size();
  }
  return {};
}

/// Checksum of the seal's table and of all of [0, end) outside of the table's ranges, which are
/// ascending.
Result<std::uint64_t> hash_of(File& file, std::span<const std::byte> table, std::uint64_t end) {
  Xxh3Stream hash;
  hash.update(table);
  std::vector<std::byte> piece(std::size_t(std::min<std::uint64_t>(end, kPieceBytes)));
  std::uint64_t done = 0;
  for (std::size_t i = 0; 2 * kWordBytes * i < table.size(); ++i) {
    if (Status status = hash_range(file, done, word_at(table, 2 * i), piece, hash); !status.ok())
      return status;
    done = word_at(table, 2 * i) + word_at(table, 2 * i + 1);
  }
  if (Status status = hash_range(file, done, end, piece, hash); !status.ok()) return status;
  return hash.digest();
}

/// Whether the ranges ascend without overlap in [0, end).
bool is_legal(std::span<const std::byte> table, std::uint64_t end) {
  std::uint64_t done = 0;
  for (std::size_t i = 0; 2 * kWordBytes * i < table.size(); ++i) {
    const std::uint64_t offset = word_at(table, 2 * i);
    const std::uint64_t num_bytes = word_at(table, 2 * i + 1);
    if (offset < done || offset > end || num_bytes > end - offset) return false;
    done = offset + num_bytes;
  }
  return true;
}

}  // namespace

Status append_seal(File& file, std::span<const DataRange> data) {
  const Result<std::uint64_t> end = file.size();
  if (!end.ok()) return end.status();
  std::vector<std::byte> seal;
  for (const DataRange& range : data) {
    put_word(seal, range.offset);
    put_word(seal, range.num_bytes);
  }
  PECAN_EXPECTS(is_legal(seal, end.value()));
  const Result<std::uint64_t> hash = hash_of(file, seal, end.value());
  if (!hash.ok()) return hash.status();
  put_word(seal, data.size());
  put_word(seal, hash.value());
  put_word(seal, kMagic);
  return file.write_at(end.value(), seal);
}

Result<std::uint64_t> check_seal(File& file, const std::string& path) {
  const auto corrupt = [&](std::string_view why) {
    return Status::failure(
        StatusCode::kCorrupt,
        fmt::format("shard {}: {}; use an older copy of what it holds", path, why));
  };
  const Result<std::uint64_t> size = file.size();
  if (!size.ok()) return size.status();
  std::vector<std::byte> tail(kTailWords * kWordBytes);
  if (size.value() < tail.size()) return corrupt("it is too short for a shard");
  const std::uint64_t table_end = size.value() - tail.size();
  if (Status status = read_exactly(file, table_end, tail); !status.ok()) return status;
  if (word_at(tail, 2) != kMagic)
    return corrupt("it has no seal at its end: it is cut, unfinished or no shard");
  const std::uint64_t num_ranges = word_at(tail, 0);
  if (num_ranges > table_end / (2 * kWordBytes)) return corrupt("its seal is damaged");
  std::vector<std::byte> table(std::size_t(num_ranges * 2 * kWordBytes));
  const std::uint64_t end = table_end - table.size();
  if (Status status = read_exactly(file, end, table); !status.ok()) return status;
  if (!is_legal(table, end)) return corrupt("its seal is damaged");
  const Result<std::uint64_t> hash = hash_of(file, table, end);
  if (!hash.ok()) return hash.status();
  if (hash.value() != word_at(tail, 1)) return corrupt("its metadata contradicts its seal");
  return end;
}

}  // namespace pecan::checkpoint
